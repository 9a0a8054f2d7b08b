"""Marked places are filled, and nothing else of a page changes."""

from __future__ import annotations

import pytest

from methods.errors import UsageError
from scripts.docs.markers import fill, names

CONTENTS = {"table": {"t": "| a |\n|:---|\n| 1 |"}, "value": {"v": "3.05 ± 1.53", "w": "x"}}


def test_a_table_stands_on_lines_between_its_markers():
    page = "# Title\n\n<!-- table: t -->\nold\n<!-- end -->\n\nText.\n"
    assert (
        fill(page, CONTENTS)
        == f"# Title\n\n<!-- table: t -->\n{CONTENTS['table']['t']}\n<!-- end -->\n\nText.\n"
    )


def test_a_value_stands_inside_its_sentence():
    page = "It is <!-- value: v -->0<!-- end --> points, then <!-- value: w --><!-- end -->."
    assert fill(page, CONTENTS) == (
        "It is <!-- value: v -->3.05 ± 1.53<!-- end --> points, then <!-- value: w -->x<!-- end -->."
    )


def test_filling_twice_changes_nothing():
    once = fill("<!-- table: t --><!-- end --> <!-- value: v --><!-- end -->", CONTENTS)
    assert fill(once, CONTENTS) == once


def test_a_page_without_markers_is_unchanged():
    assert fill("a <!-- comment --> b <!-- end -->", CONTENTS) == "a <!-- comment --> b <!-- end -->"


def test_a_backslash_in_a_text_is_kept():
    assert fill("<!-- value: v -->a<!-- end -->", {"table": {}, "value": {"v": r"\1"}}) == (
        r"<!-- value: v -->\1<!-- end -->"
    )


@pytest.mark.parametrize(
    "page", ["<!-- value: v -->3", "<!-- value: v -->3 <!-- value: w -->4<!-- end -->", "<!-- table: t"]
)
def test_a_marker_without_an_end_is_refused(page):
    with pytest.raises(UsageError, match="has no end; write '<!-- end -->'"):
        fill(page, CONTENTS)


def test_an_unknown_name_is_answered_with_the_nearest_and_all_legal_ones():
    with pytest.raises(UsageError, match="unknown value 'vv'; did you mean 'v'\\? Legal: v, w"):
        fill("<!-- value: vv -->3<!-- end -->", CONTENTS)


def test_names_lists_kinds_and_names_in_order():
    page = "<!-- value: v -->3<!-- end -->\n<!-- table: t -->\n<!-- end -->"
    assert names(page) == [("value", "v"), ("table", "t")]
