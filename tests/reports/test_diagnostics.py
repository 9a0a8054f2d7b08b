from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.record import Record
from methods.errors import UsageError
from reports import diagnostics
from reports.groups import Row, group
from reports.report import write_report
from reports.tables import diagnostics_table

Make = Callable[..., Record]

MEANING = "How open | it is."


def diagnosed(meaning: str = MEANING, **values: list[Any]) -> dict[str, Any]:
    """A field of a record: diagnostics by name, an entry per task."""
    return {"diagnostics": {name: {"meaning": meaning, "values": v} for name, v in values.items()}}


def row(*records: Record) -> Row:
    (only,) = group(records)
    return only.rows[0]


def section_of(text: str) -> str:
    return re.split(r"^##+ (?!Diagnostics)", text.partition("### Diagnostics\n")[2], flags=re.MULTILINE)[0]


# ---- means over seeds --------------------------------------------------------------------------


def test_blocks_and_numbers_are_averaged_over_seeds(make: Make) -> None:
    first = make("a", 0, tasks=2, **diagnosed(gate=[[0.2, 0.4], [0.6, 0.8]], share=[0.5, 1.0]))
    second = make("a", 1, tasks=2, **diagnosed(gate=[[0.4, 0.4], [0.8, 1.0]], share=[0.7, 0.0]))
    both = row(first, second)
    assert diagnostics.means(both, "gate") == [pytest.approx([0.3, 0.4]), pytest.approx([0.7, 0.9])]
    assert diagnostics.means(both, "share") == [pytest.approx(0.6), pytest.approx(0.5)]


def test_what_one_seed_lacks_is_no_mean(make: Make) -> None:
    first = make("a", 0, tasks=2, **diagnosed(share=[None, 1.0]))
    second = make("a", 1, tasks=2, **diagnosed(share=[0.5, 0.5]))
    third = make("a", 2, tasks=2, diagnostics=None)
    assert diagnostics.means(row(first, second), "share") == [None, 0.75]
    assert diagnostics.means(row(first, second, third), "share") == []
    assert diagnostics.means(row(first), "other") == []


def test_an_unfinished_seed_takes_no_part(make: Make, unfinished: Make) -> None:
    whole = make("a", 0, tasks=1, **diagnosed(share=[0.5]))
    assert diagnostics.means(row(whole, unfinished("a", 1, "failed", "Why.", tasks=1)), "share") == [0.5]


@pytest.mark.parametrize("other", [[1.0], [[1.0, 1.0, 1.0]]])
def test_seeds_that_contradict_each_other_are_refused(make: Make, other: list[Any]) -> None:
    cells = (
        make("a", 0, tasks=1, **diagnosed(gate=[[1.0, 1.0]])),
        make("a", 1, tasks=1, **diagnosed(gate=other)),
    )
    with pytest.raises(UsageError, match=r"a on digits have 'gate' in different forms.*--rerun all"):
        diagnostics.means(row(*cells), "gate")


def test_a_table_is_that_of_the_first_seed_because_prompts_of_seeds_are_not_the_same(make: Make) -> None:
    first = make("a", 1, tasks=2, **diagnosed(choices=[[[1.0]], [[0.8, 0.2], [0.0, 1.0]]]))
    second = make("a", 2, tasks=2, **diagnosed(choices=[[[0.5]], [[0.4, 0.6, 0.0]]]))
    several = row(second, first)
    assert diagnostics.last_table(several, "choices") == (1, [[0.8, 0.2], [0.0, 1.0]])
    assert diagnostics.means(several, "choices") == [None, None]


def test_a_row_without_a_table_has_none(make: Make) -> None:
    cell = make("a", 0, tasks=1, **diagnosed(choices=[[[1.0]]], gate=[[0.5]], share=[0.5]))
    tables = {n: diagnostics.last_table(row(cell), n) for n in ("choices", "gate", "share", "other")}
    assert tables == {"choices": (0, [[1.0]]), "gate": None, "share": None, "other": None}


@pytest.mark.parametrize("other", [[1.0, 1.0], [None, [1.0, 0.0]]], ids=["numbers", "lists"])
def test_seeds_with_tables_and_others_are_refused(make: Make, other: list[Any]) -> None:
    known = [[[1.0]], [[0.8, 0.2], [0.0, 1.0]]]
    cells = make("a", 0, tasks=2, **diagnosed(gate=known)), make("a", 1, tasks=2, **diagnosed(gate=other))
    with pytest.raises(UsageError, match=r"a on digits have 'gate' in different forms.*--rerun all"):
        diagnostics.means(row(*cells), "gate")


# ---- the section of the report -----------------------------------------------------------------


@pytest.fixture
def two_methods(make: Make) -> list[Record]:
    """The worse method tells more, so that the order of the rows is not that of the names."""
    return [
        make("b", 0, skill=0.9, tasks=2, **diagnosed(task_share=[1.0, 0.51234])),
        make("a", 0, skill=0.5, tasks=2, **diagnosed(gate_own=[None, [0.1, 0.3]], task_share=[1.0, None])),
        make("a", 1, skill=0.5, tasks=2, **diagnosed(gate_own=[None, [0.3, 0.3]], task_share=[1.0, None])),
    ]


def test_the_table_shows_the_last_task(two_methods: list[Record]) -> None:
    (only,) = group(two_methods)
    table = diagnostics_table(only)
    assert table is not None
    assert table.columns == ("method", "gate own", "task share")
    assert table.rows == (("b", "—", "0.512"), ("a", "0.250 (0.200\N{EN DASH}0.300)", "—"))


def test_the_section_explains_its_names_and_shows_its_figure(
    two_methods: list[Record], tmp_path: Path
) -> None:
    text = write_report(two_methods, tmp_path).read_text(encoding="utf-8")
    section = section_of(text)
    for line in (
        "| method | gate own | task share |",
        "| b | — | 0.512 |",
        r"- **gate own**: How open \| it is.",
        r"- **task share**: How open \| it is.",
    ):
        assert line in section.splitlines()
    linked = set(re.findall(r"\]\((figures/[^)]+)\)", section))
    drawn = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("figures/*-diagnostics.*")}
    assert linked == {path for path in drawn if path.endswith(".svg")}
    assert sorted(Path(path).suffix for path in drawn) == [".png", ".svg"]
    captions = dict(re.findall(r"!\[(\w+ \w+).*\]\(.*-(\w+)\.svg\)", text))
    assert captions == {
        "Accuracy after": "curves",
        "Accuracy lost": "forgetting",
        "Accuracy matrices": "matrices",
        "Costs against": "growth",
        "Diagnostics by": "diagnostics",
    }


@pytest.fixture
def prompted(make: Make) -> list[Record]:
    """One method with a table and a number, one with a table alone."""
    choices = [[[1.0, 0.0]], [[0.8, 0.2], [0.1, 0.9]]]
    return [
        make("b", 0, skill=0.9, tasks=2, **diagnosed(choices=choices, in_use=[1.0, 1.5])),
        make("a", 0, skill=0.5, tasks=2, **diagnosed(choices=[[[1.0]], [[0.5], [1.0]]])),
    ]


def test_tables_are_no_columns(prompted: list[Record]) -> None:
    (only,) = group(prompted)
    table = diagnostics_table(only)
    assert table is not None
    assert table.columns == ("method", "in use")
    assert table.rows == (("b", "1.50"), ("a", "—"))


def test_what_is_a_table_for_one_method_alone_has_a_column(make: Make) -> None:
    first = make("a", 0, skill=0.9, tasks=1, **diagnosed(gate=[[[1.0]]]))
    (only,) = group([first, make("b", 0, skill=0.5, tasks=1, **diagnosed(gate=[0.25]))])
    table = diagnostics_table(only)
    assert table is not None
    assert table.columns == ("method", "gate")
    assert table.rows == (("a", "—"), ("b", "0.250"))


def test_a_table_that_another_cell_lacks_is_no_column_either(make: Make) -> None:
    cells = make("a", 0, tasks=1, **diagnosed(gate=[[[1.0]]])), make("a", 1, tasks=1, diagnostics=None)
    (only,) = group(cells)
    assert diagnostics_table(only) is None


def test_tables_alone_are_explained_and_shown(prompted: list[Record], tmp_path: Path) -> None:
    (only,) = group(prompted[1:])
    assert diagnostics_table(only) is None
    text = write_report(prompted[1:], tmp_path).read_text(encoding="utf-8")
    section = section_of(text)
    assert "| method |" not in section
    assert r"- **choices**: How open \| it is." in section.splitlines()
    caption = "Prompts chosen for the test images, by task, digits, class-incremental; one seed per method"
    assert f"![{caption}](" in section
    linked = set(re.findall(r"\]\((figures/[^)]+)\)", section))
    assert linked == {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*-choices.svg")}
    assert linked


def test_same_records_same_bytes_in_any_order(two_methods: list[Record], make: Make, tmp_path: Path) -> None:
    cells_of_all = [
        *two_methods,
        make("c", 0, tasks=2, **diagnosed(choices=[None, [[0.5, 0.5], [0.0, 1.0]]])),
    ]
    folders = tmp_path / "forth", tmp_path / "back"
    for cells, folder in zip((cells_of_all, cells_of_all[::-1]), folders, strict=True):
        write_report(cells, folder)
    forth, back = ({p.name: p.read_bytes() for p in folder.rglob("*.*")} for folder in folders)
    for kind in ("diagnostics", "choices"):
        assert any(f"-{kind}" in name for name in forth)
    assert forth == back


def test_a_single_task_has_the_figure_of_its_diagnostics_alone(make: Make, tmp_path: Path) -> None:
    text = write_report([make(tasks=1, **diagnosed(gate=[[0.5, 0.6]]))], tmp_path).read_text(encoding="utf-8")
    assert re.findall(r"!\[(\w+)", text) == ["Diagnostics"]


@pytest.mark.parametrize("nothing", [{"diagnostics": None}, {"diagnostics": {}}])
def test_without_diagnostics_there_is_no_section(make: Make, tmp_path: Path, nothing: dict[str, Any]) -> None:
    text = write_report([make(**nothing)], tmp_path).read_text(encoding="utf-8")
    assert "Diagnostics" not in text
    assert list(tmp_path.glob("figures/*-diagnostics.*")) == []


def test_names_and_meanings_are_foreign_text(make: Make, tmp_path: Path) -> None:
    evil = {"diagnostics": {"<b>|x": {"meaning": "*a*\n# b", "values": [[1.0]]}}}
    section = section_of(write_report([make(tasks=1, **evil)], tmp_path).read_text(encoding="utf-8"))
    assert r"| method | &lt;b&gt;\|x |" in section
    assert r"- **&lt;b&gt;\|x**: \*a\* # b" in section


def test_a_name_with_two_meanings_says_whose_each_is(make: Make) -> None:
    (only,) = group(
        [
            make("a", 0, skill=0.9, tasks=1, **diagnosed(gate=[1.0], share=[1.0])),
            make("b", 0, skill=0.7, tasks=1, **diagnosed("Another thing.", gate=[1.0])),
            make("c", 0, skill=0.5, tasks=1, **diagnosed(gate=[1.0])),
        ]
    )
    assert diagnostics.meanings(only) == [
        ("gate (b)", "Another thing."),
        ("gate (a, c)", MEANING),
        ("share", MEANING),
    ]
