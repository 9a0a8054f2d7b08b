"""The Markdown report of a folder of records. Equal records give equal bytes, in any order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bench.metrics import METRICS
from bench.record import Record
from methods.errors import UsageError
from reports import diagnostics, figures, tables
from reports.groups import Group, group, in_order, method_facts, phrase
from reports.tables import SCALE_OF_UNIT, Table
from reports.text import code, escape, in_table

REPORT_NAME = "report.md"

#: The files of a group's figures by kind, relative to the report; none where there was nothing to draw.
Drawn = dict[str, list[str]]


def write_report(records: Sequence[Record], out: Path) -> Path:
    """Write `out`/report.md and its figures, `out`/figures/*.svg and *.png.

    Returns:
        The path of the report.

    Raises:
        UsageError: if there is no record, one cell is given twice, or `out` cannot be written to.
    """
    if not records:
        raise UsageError(
            "no records to report on; make some: python -m bench run (its --results is read here)"
        )
    groups = group(records)
    try:
        drawn = _draw(groups, out)
        path = out / REPORT_NAME
        path.write_text("\n".join(_lines(records, groups, drawn)) + "\n", encoding="utf-8", newline="\n")
    except OSError as error:
        raise UsageError(
            f"cannot write the report to '{out}' ({error.strerror}); give another --out"
        ) from None
    return path


def _draw(groups: Sequence[Group], out: Path) -> dict[str, Drawn]:
    """The figures of each group, by its stem."""
    styles = figures.styles_of(groups)
    out.mkdir(parents=True, exist_ok=True)
    return {g.stem: _draw_group(g, styles, out) for g in groups}


def _draw_group(g: Group, styles: dict[str, figures.Style], out: Path) -> Drawn:
    folder = out / "figures"
    written = {
        "curves": figures.write_curves(g, styles, folder),
        "matrices": figures.write_matrices(g, folder),
        "diagnostics": figures.write_diagnostics(g, folder),
        "choices": figures.write_choices(g, folder),
    }
    return {kind: [path.relative_to(out).as_posix() for path in paths] for kind, paths in written.items()}


def _lines(records: Sequence[Record], groups: Sequence[Group], drawn: dict[str, Drawn]) -> Iterator[str]:
    yield from ["# Continual-learning benchmark", ""]
    yield from _overview(records)
    for g in groups:
        yield from _results(g, drawn[g.stem])
    yield from _formulas()
    yield from ["## Conditions", ""]
    for g in groups:
        yield from _conditions(g)


def _overview(records: Sequence[Record]) -> Iterator[str]:
    done = sum(record.done for record in records)
    yield f"- Methods: {_names(record.method for record in records)}"
    yield f"- Benchmarks: {_names(record.benchmark for record in records)}"
    yield f"- Seeds: {', '.join(map(str, sorted({record.seed for record in records})))}"
    yield f"- Cells: {len(records)}, of which {done} done"
    yield ""


def _names(texts: Iterable[str]) -> str:
    return ", ".join(escape(text) for text in sorted(set(texts)))


CAPTIONS = {
    "curves": "Accuracy after each task, {}; lines are means over seeds, bands their 95 % t-intervals",
    "matrices": "Accuracy matrices, {}; means over seeds",
    "diagnostics": "Diagnostics by block and task, {}; means over seeds",
    "choices": "Which prompts test images were given, by task, {}; one seed of each method",
}


# ---- results of a group ------------------------------------------------------------------------


def _results(g: Group, drawn: Drawn) -> Iterator[str]:
    yield from [f"## {escape(g.title)}", "", _facts_line(g), ""]
    for warning in tables.warnings(g):
        yield from [f"> **Warning:** {escape(warning)}", ""]
    yield from _markdown(tables.headline(g))
    for note in tables.notes(g):
        yield from [escape(note), ""]
    yield from _list_of("Not finished, and not part of any mean:", map(escape, tables.unfinished(g)))
    for kind in ("curves", "matrices"):
        yield from _figure(g, drawn, kind)
    yield from _details(g)
    yield from _diagnostics(g, drawn)


def _facts_line(g: Group) -> str:
    return "Conditions: " + " · ".join(escape(phrase(*fact)) for fact in in_order(g.facts)) + "."


def _figure(g: Group, drawn: Drawn, kind: str) -> Iterator[str]:
    paths = drawn[kind]
    if paths:
        alt = escape(CAPTIONS[kind].format(g.title))
        links = " · ".join(f"[{path.rpartition('.')[2].upper()}]({path})" for path in paths)
        yield from [f"![{alt}]({paths[0]})", "", f"{alt}: {links}", ""]


def _details(g: Group) -> Iterator[str]:
    pairs = tables.paired(g)
    if pairs is not None:
        yield from [f"### Differences from {escape(pairs[0])}, paired by seed", ""]
        yield from _markdown(pairs[1])
        yield from [escape(tables.PAIRED_NOTE), ""]
    yield from ["### Other metrics", ""]
    yield from _markdown(tables.other_metrics(g))
    measured = tables.costs(g)
    if measured is not None:
        yield from ["### Costs", ""]
        yield from _markdown(measured)


def _diagnostics(g: Group, drawn: Drawn) -> Iterator[str]:
    meanings = diagnostics.meanings(g)
    if not meanings:
        return
    yield from ["### Diagnostics", ""]
    told = tables.told(g)
    if told is not None:
        yield from _markdown(told)
        yield from [tables.DIAGNOSTICS_NOTE, ""]
    yield from (f"- **{escape(name)}**: {escape(meaning)}" for name, meaning in meanings)
    yield ""
    for kind in ("diagnostics", "choices"):
        yield from _figure(g, drawn, kind)


# ---- formulas and conditions -------------------------------------------------------------------


def _formulas() -> Iterator[str]:
    yield from ["## Metrics", ""]
    yield "T is the number of tasks; a[i,j] is the accuracy on task j's test images after learning task i:"
    yield "correct[i,j] / count[j]. Fractions are shown in percent, their differences in points."
    yield ""
    for metric in METRICS:
        about = f"{SCALE_OF_UNIT[metric.unit]}, {metric.direction} is better; {metric.source}"
        yield f"- **{escape(metric.title)}** ({code(metric.name)}, {escape(about)}): {code(metric.formula)}"
    yield ""


def _conditions(g: Group) -> Iterator[str]:
    yield from [f"### Conditions of {escape(g.title)}", ""]
    yield from ["| condition | value |", "|:---|:---|"]
    for name, values in _all_facts(g).items():
        yield f"| {in_table(escape(name))} | {in_table(', '.join(map(code, values)))} |"
    yield ""
    yield from _list_of("Settings of the methods:", _settings(g))
    yield from _list_of("Classes in the order learnt:", _class_orders(g))
    yield from _list_of("Commands:", map(code, _distinct(r.manifest.command for r in g.records)))


def _all_facts(g: Group) -> dict[str, list[str]]:
    """What the table shares, then what its cells recorded; several values where the cells differ."""
    manifests = [record.manifest for record in g.records]
    facts = {name: [value if value is not None else "unknown"] for name, value in in_order(g.facts)}
    facts |= {"machine": _distinct(f"{m.device}, {m.threads} threads" for m in manifests)}
    packages = sorted({package for m in manifests for package in m.versions})
    facts |= {
        f"version of {package}": _distinct(m.versions.get(package) for m in manifests) for package in packages
    }
    facts |= {"backbone": _distinct(m.backbone for m in manifests)}
    facts |= {"backbone sha256": _distinct(m.backbone_sha256 for m in manifests)}
    facts |= {"commit": _distinct(_commit(record) for record in g.records)}
    facts |= {
        "first start": [min(m.started for m in manifests)],
        "last end": [max(m.ended for m in manifests)],
    }
    return {name: values or ["unknown"] for name, values in facts.items()}


def _commit(record: Record) -> str:
    manifest = record.manifest
    return f"{manifest.commit or 'unknown'}{' with uncommitted changes' if manifest.dirty else ''}"


def _distinct(values: Iterable[str | None]) -> list[str]:
    return sorted({value for value in values if value is not None})


def _settings(g: Group) -> Iterator[str]:
    for row in g.rows:
        facts = method_facts(row.records[0])
        settings = code(", ".join(f"{name} = {value}" for name, value in facts.items())) if facts else "none"
        yield f"{escape(row.method)}: {settings}"


def _class_orders(g: Group) -> Iterator[str]:
    orders = {(record.seed, tuple(record.class_order)) for record in g.records if record.class_order}
    for seed, order in sorted(orders):
        yield f"seed {seed}: {code(' '.join(map(str, order)))}"


# ---- Markdown ----------------------------------------------------------------------------------


def _markdown(table: Table) -> Iterator[str]:
    yield f"| {' | '.join(in_table(escape(column)) for column in table.columns)} |"
    yield f"|:---|{'---:|' * (len(table.columns) - 1)}"
    for row in table.rows:
        yield f"| {' | '.join(in_table(escape(cell)) for cell in row)} |"
    yield ""


def _list_of(title: str, items: Iterable[str]) -> Iterator[str]:
    lines = [f"- {item}" for item in items]
    if lines:
        yield from [title, "", *lines, ""]
