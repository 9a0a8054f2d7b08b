from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.record import Record
from reports.html import page
from reports.report import write_report
from reports.text import clean, code, escape, in_table
from tests.reports.conftest import Make

#: Every tag that a page may have.
TAGS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "nav",
        "h1",
        "h2",
        "h3",
        "h4",
        "p",
        "blockquote",
        "ul",
        "li",
    ),
    *(
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "div",
        "figure",
        "figcaption",
        "img",
        "a",
        "code",
        "strong",
    ),
    "em",
}
#: Every attribute that a tag may have; none where nothing is said.
ATTRIBUTES = {
    "html": {"lang"},
    "meta": {"charset", "http-equiv", "name", "content"},
    "nav": {"aria-label"},
    "div": {"class", "role", "tabindex", "aria-labelledby"},
    "h1": {"id"},
    "h2": {"id"},
    "h3": {"id"},
    "h4": {"id"},
    "th": {"style"},
    "td": {"style"},
    "a": {"href"},
    "img": {"src", "alt"},
}
VOID = {"meta", "img", "br", "hr"}

DOT = b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'


class Seen(HTMLParser):
    """What a reader of the page meets: tags with their attributes, and the text in each kind of tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self._texts: list[str] = []
        self._open: list[int] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self._open.append(len(self.tags))
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._texts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.tags[self._open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for i in self._open:
            self._texts[i] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def values(self, tag: str, name: str) -> list[str]:
        return [attrs[name] for name_of_tag, attrs in self.tags if name_of_tag == tag and name in attrs]

    def text(self, *tags: str) -> list[str]:
        """Of the elements of these kinds, in order, with what is in them."""
        return [text.strip() for (tag, _), text in zip(self.tags, self._texts, strict=True) if tag in tags]


def assert_inert(html: str) -> Seen:
    """Nothing but the tags that a page has, and no attribute that leads out of it."""
    seen = Seen(html)
    for tag, attrs in seen.tags:
        assert tag in TAGS
        assert attrs.keys() <= ATTRIBUTES.get(tag, set()), tag
    ids = [attrs["id"] for _, attrs in seen.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {href.removeprefix("#") for href in seen.values("a", "href")} <= set(ids)
    assert set(seen.values("th", "style") + seen.values("td", "style")) <= {
        "text-align:left",
        "text-align:right",
    }
    assert set(seen.values("meta", "http-equiv")) == {"Content-Security-Policy"}
    assert not re.search(r"url\(|@import", "".join(seen.text("style")))
    for source in seen.values("img", "src"):
        assert_image(source)
    return seen


def assert_image(source: str) -> None:
    """A data URI that decodes to a whole SVG or PNG."""
    match = re.fullmatch(r"data:image/(svg\+xml|png);base64,([A-Za-z0-9+/=]+)", source)
    assert match is not None, source[:80]
    content = base64.b64decode(unquote_to_bytes(match[2]), validate=True)
    if match[1] == "png":
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        assert content.endswith(b"IEND\xaeB`\x82")
        return
    root = ElementTree.fromstring(content)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    targets = {v for node in root.iter() for k, v in node.attrib.items() if k.endswith("href")}
    assert all(target.startswith(("#", "data:")) for target in targets)


def no_image(path: str) -> bytes:
    raise AssertionError(f"an image was asked for: {path}")


@pytest.fixture(scope="module")
def report(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(records, tmp_path_factory.mktemp("report")).with_suffix(".html")


@pytest.fixture(scope="module")
def html(report: Path) -> str:
    return report.read_text(encoding="utf-8")


def test_the_page_holds_its_images_and_leads_nowhere(html: str, report: Path) -> None:
    text = report.with_suffix(".md").read_text(encoding="utf-8")
    seen = assert_inert(html)
    assert len(seen.values("img", "src")) == text.count("![") > 4
    assert all(seen.values("img", "alt"))
    assert not re.search(r"figures/\w", html)


def test_an_image_has_its_bytes_and_one_caption() -> None:
    text = (
        "![A \\<dot\\>](figures/a.svg)\n\nA \\<dot\\>: [SVG](figures/a.svg) · [PNG](figures/a.png)\n\nafter"
    )
    asked: list[str] = []
    seen = assert_inert(page(text, lambda path: asked.append(path) or DOT))  # type: ignore[func-returns-value]
    assert asked == ["figures/a.svg"]
    (source,) = seen.values("img", "src")
    assert base64.b64decode(source.partition(",")[2]) == DOT
    assert seen.values("img", "alt") == ["A <dot>"]
    assert seen.text("figcaption") == ["A <dot>"]
    assert seen.text("p") == ["after"]


def test_a_link_out_of_the_page_becomes_text() -> None:
    text = "See [the *numbers*](cells.csv), [the paper](https://example.org/1) and <https://example.org/2>."
    seen = assert_inert(page(text, no_image))
    assert seen.values("a", "href") == []
    assert "(https://example.org/1) and https://example.org/2." in page(text, no_image)
    assert "cells.csv" not in page(text, no_image)


def test_an_image_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a\.gif.*\.svg, \.png"):
        page("![a](a.gif)", lambda path: b"")


def test_the_head_says_what_a_browser_must_know(html: str) -> None:
    seen = Seen(html)
    assert html.startswith("<!DOCTYPE html>\n")
    assert seen.values("html", "lang") == ["en"]
    assert seen.values("meta", "charset") == ["utf-8"]
    assert "width=device-width, initial-scale=1" in seen.values("meta", "content")
    assert seen.text("title") == seen.text("h1") == ["Continual-learning benchmark"]
    (policy,) = [value for value in seen.values("meta", "content") if "-src" in value]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_the_contents_link_to_every_heading_of_the_second_and_third_level(html: str) -> None:
    seen = Seen(html)
    headings = [attrs["id"] for tag, attrs in seen.tags if tag in ("h2", "h3")]
    assert seen.values("a", "href") == [f"#{name}" for name in headings]
    assert seen.text("a") == seen.text("h2", "h3")
    assert html.index("<nav") < html.index("<h2")


def test_equal_headings_have_ids_of_their_own() -> None:
    seen = assert_inert(page("# A\n\n## B\n\n## B-2\n\n## B\n\n## *\n", no_image))
    assert [attrs["id"] for tag, attrs in seen.tags if tag in ("h1", "h2")][:4] == ["a", "b", "b-2", "b-3"]


def test_tables_scroll_and_are_named_by_the_heading_above() -> None:
    text = "## One\n\n| a | b |\n|:---|---:|\n| x | **1** |\n"
    seen = assert_inert(page(text, no_image))
    assert [attrs for tag, attrs in seen.tags if tag == "div"] == [
        {"class": "table", "role": "region", "tabindex": "0", "aria-labelledby": "one"}
    ]
    assert seen.values("td", "style") == ["text-align:left", "text-align:right"]
    assert seen.text("strong") == ["1"]


EVIL = (
    "x|y`z\n# <img src=a onerror=alert(1)>*</style><script>[k](javascript:alert(1)) ![i](http://e.org/i.png)"
)


def test_foreign_text_is_neutralised(make: Make, unfinished: Make, tmp_path: Path) -> None:
    warned = {"warnings": [EVIL], "command": EVIL, "device": EVIL, "versions": {EVIL: EVIL}}
    config = {EVIL: EVIL, "method": {"options": {EVIL: EVIL}}}
    cells = [
        make(EVIL, 0, EVIL, tasks=2, manifest=warned, config=config),
        unfinished(EVIL, 1, "failed", EVIL, benchmark=EVIL, tasks=2, manifest=warned, config=config),
    ]
    html = write_report(cells, tmp_path).with_suffix(".html").read_text(encoding="utf-8")
    seen = assert_inert(html)
    assert f"{clean(EVIL)}, class-incremental" in seen.text("h2")
    assert clean(EVIL) in seen.text("td")


foreign = st.text() | st.text("#-+=1.)<>&[]()!*_`~|\\$:/'\" ax", max_size=12)


@given(foreign)
def test_escaped_text_is_shown_as_it_is(text: str) -> None:
    shown = clean(text)
    places = [
        f"## {escape(text)}",
        f"- {escape(text)}",
        f"> **Warning:** {escape(text)}",
        f"| a | {in_table(escape(text))} |\n|:---|---:|\n| {in_table(escape(text))} | b |",
        escape(text),
    ]
    seen = assert_inert(page("\n\n".join(places) + "\n", no_image))
    assert seen.text("h2") == [shown]
    assert seen.text("li")[-1] == shown
    assert seen.text("th") == ["a", shown]
    assert seen.text("td") == [shown, "b"]
    assert seen.text("p")[-1] == shown if shown else True


@given(foreign)
def test_code_is_shown_as_it_is(text: str) -> None:
    places = [f"- x {code(text)}", f"| a |\n|:---|\n| {in_table(code(text))} |"]
    seen = assert_inert(page("\n\n".join(places) + "\n", no_image))
    assert seen.text("code") == [clean(text), clean(text).replace("\\|", "|")]


def test_html_in_the_text_stays_text() -> None:
    seen = assert_inert(page("a <b>bold</b>\n\n<script>alert(1)</script>\n", no_image))
    assert seen.text("p") == ["a <b>bold</b>", "<script>alert(1)</script>"]
