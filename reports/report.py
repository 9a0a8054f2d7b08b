"""The Markdown report of a folder of records. Equal records give equal bytes, in any order."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from bench.metrics import metrics_of
from bench.model import Scenario
from bench.record import Record
from methods.errors import UsageError, abbreviate
from reports import costs, diagnostics, figures, files, folder, html, published, summary, tables
from reports.folder import FIGURES_FOLDER, REPORT_NAME, TABLES_FOLDER, TITLE
from reports.groups import Group, group, in_order, method_facts, order_of, phrase
from reports.tables import SCALE_OF_UNIT, Table
from reports.text import code, counted, escape, in_table
from reports.warnings import unfinished, warnings

HTML_NAME = "report.html"
CELLS_NAME = "cells.csv"

UNKNOWN = "unknown"
#: What the tasks of a scenario bring.
WHAT_COMES: dict[Scenario, str] = {"class-incremental": "Classes", "domain-incremental": "Domains"}
#: Names of classes in the report; the records have all.
NAMES_SHOWN = 200

FILES = (
    f"`{HTML_NAME}` (the whole report in one page), `{FIGURES_FOLDER}/` (SVG and PNG), "
    f"`{TABLES_FOLDER}/` (each table as CSV and LaTeX), `{CELLS_NAME}` (the raw numbers of every cell)"
)

#: The figures of a group by kind: contents by the names of their files; none if there is nothing to draw.
Drawn = dict[str, dict[str, bytes]]


def write_report(records: Sequence[Record], out: Path, complaints: Sequence[str] = ()) -> Path:
    """Write `out`/report.md, its figures and the other files that `FILES` names, all of them or none.

    Files of earlier reports that are not of this one are removed; see `reports.folder`.

    Args:
        records: of any benchmarks and conditions; only comparable ones share a table.
        out: the folder of the report; created if necessary.
        complaints: sentences on records that cannot be used; they are at the top of the report.

    Returns:
        The path of the report.

    Raises:
        UsageError: if there is no record, two are of the same cell, or `out` cannot be written to.
    """
    if not records:
        raise UsageError(
            "; ".join(["no records to report on", *complaints])
            + "; make some with python -m bench run, and pass its --results here"
        )
    rendered = render_report(records, complaints)
    try:
        folder.write_files(out, rendered)
    except OSError as error:
        raise UsageError(f"cannot write the report to '{out}' ({_why(error)}); give another --out") from None
    return out / REPORT_NAME


def _why(error: OSError) -> str:
    return f"{error.strerror}: '{error.filename}'" if error.filename else f"{error.strerror}"


def render_report(records: Sequence[Record], complaints: Sequence[str] = ()) -> dict[str, bytes]:
    """The files of a report by their names, relative to its folder; last report.md, which links to others.

    Raises:
        UsageError: if two records are of the same cell.
    """
    groups = group(records)
    drawn = _draw(groups)
    text = "\n".join(_lines(records, groups, drawn, complaints)) + "\n"
    images = dict(
        item for of_group in drawn.values() for of_kind in of_group.values() for item in of_kind.items()
    )
    return {
        **images,
        **{f"{TABLES_FOLDER}/{name}": content for name, content in files.render_tables(groups).items()},
        CELLS_NAME: files.render_cells(groups),
        HTML_NAME: html.page(text, images.__getitem__).encode(),
        REPORT_NAME: text.encode(),
    }


def _draw(groups: Sequence[Group]) -> dict[str, Drawn]:
    """The figures of each group, by its stem."""
    styles = figures.styles_of(groups)
    return {g.stem: _draw_group(g, styles) for g in groups}


def _draw_group(g: Group, styles: dict[str, figures.Style]) -> Drawn:
    rendered = figures.render_figures(g, styles)
    return {
        kind: {f"{FIGURES_FOLDER}/{name}": content for name, content in contents.items()}
        for kind, contents in rendered.items()
    }


def _lines(
    records: Sequence[Record], groups: Sequence[Group], drawn: dict[str, Drawn], complaints: Sequence[str]
) -> Iterator[str]:
    yield from [f"# {TITLE}", ""]
    yield from (f"- **Not in this report**: {escape(complaint)}" for complaint in complaints)
    yield from _top(records, groups)
    for g in groups:
        yield from _results(g, drawn[g.stem])
    yield from _formulas({g.scenario for g in groups})
    yield from ["## Conditions", ""]
    for g in groups:
        yield from _conditions(g)


def _top(records: Sequence[Record], groups: Sequence[Group]) -> Iterator[str]:
    yield from (f"- {escape(line)}" for line in summary.overview(records, groups))
    yield f"- Files: {FILES}"
    yield from ["", "## Answer", ""]
    yield "Final accuracy, means over seeds; differences are between runs with the same seed and order."
    yield ""
    yield from (f"- **{escape(g.title)}**: {escape(summary.answer(g))}" for g in groups)
    yield ""


CAPTIONS = {
    "curves": "Accuracy after each task, {}; lines are means over seeds, bands are their 95 % t-intervals",
    "tradeoff": "Final accuracy against latency and training memory, {}; means over seeds, bars are their "
    "95 % t-intervals, the grey line is the Pareto front, dashed lines are references",
    "forgetting": "Accuracy lost per task by the end of the stream, {}; means over seeds",
    "matrices": "Accuracy matrices, {}; means over seeds",
    "growth": "Costs against the number of tasks learnt, {}; means over seeds, bands are their 95 % "
    "t-intervals",
    "latency": "Inference time after the last task, {}; samples of all seeds: boxes are the 25th to the 75th "
    "percentile with the median, whiskers the 5th to the 95th, diamonds the 99th; the dashed line is the "
    "median of the plain ViT",
    "diagnostics": "Diagnostics by block and task, {}; means over seeds",
    "choices": "Prompts chosen for the test images, by task, {}; one seed per method",
}


# ---- results of a group ------------------------------------------------------------------------


def _results(g: Group, drawn: Drawn) -> Iterator[str]:
    yield from [f"## {escape(g.title)}", "", _facts_line(g), ""]
    for warning in warnings(g):
        yield from [f"> **Warning:** {escape(warning)}", ""]
    yield from _markdown(tables.headline(g))
    for note in tables.notes(g):
        yield from [escape(note), ""]
    yield from _list_of("Unfinished cells, not included in any mean:", map(escape, unfinished(g)))
    for kind in ("curves", "tradeoff", "forgetting", "matrices", "growth", "latency"):
        yield from _figure(g, drawn, kind)
    yield from _details(g)
    yield from _published(g)
    yield from _diagnostics(g, drawn)


def _facts_line(g: Group) -> str:
    return "Conditions: " + " · ".join(escape(phrase(*fact)) for fact in in_order(g.facts)) + "."


def _figure(g: Group, drawn: Drawn, kind: str) -> Iterator[str]:
    for path in drawn[kind]:
        if path.endswith(".svg"):
            alt = escape(CAPTIONS[kind].format(g.title))
            yield from [f"![{alt}]({path})", "", f"{alt}: [SVG]({path})", ""]


def _details(g: Group) -> Iterator[str]:
    pairs = tables.paired(g)
    if pairs is not None:
        yield from [f"### Differences from {escape(pairs[0])}, paired by seed", ""]
        yield from _markdown(pairs[1])
        yield from [escape(tables.PAIRED_NOTE), ""]
    yield from ["### Other metrics", ""]
    yield from _markdown(tables.other_metrics(g))
    by_domain = tables.by_domain(g)
    if by_domain is not None:
        yield from ["### By domain", ""]
        yield from _markdown(by_domain)
        yield from [tables.BY_DOMAIN_NOTE, ""]
    yield from _costs(g)


def _costs(g: Group) -> Iterator[str]:
    parts = costs.parts(g)
    if parts:
        yield from ["### Costs", ""]
    for part in parts:
        yield from [f"#### {part.title}", ""]
        yield from _markdown(part.table)
        for note in part.notes:
            yield from [escape(note), ""]


def _published(g: Group) -> Iterator[str]:
    comparison = published.compare(g, published.load())
    if comparison is None:
        return
    yield from ["### Published numbers", ""]
    if comparison.table is not None:
        yield from _markdown(comparison.table)
    for note in comparison.notes:
        yield from [escape(note), ""]
    reasons = (f"({i}) {escape(reason)}" for i, reason in enumerate(comparison.reasons, start=1))
    yield from _list_of("Not comparable (published vs here):", reasons)


def _diagnostics(g: Group, drawn: Drawn) -> Iterator[str]:
    meanings = diagnostics.meanings(g)
    if not meanings:
        return
    yield from ["### Diagnostics", ""]
    values = tables.diagnostics_table(g)
    if values is not None:
        yield from _markdown(values)
        yield from [tables.DIAGNOSTICS_NOTE, ""]
    yield from (f"- **{escape(name)}**: {escape(meaning)}" for name, meaning in meanings)
    yield ""
    for kind in ("diagnostics", "choices"):
        yield from _figure(g, drawn, kind)


# ---- formulas and conditions -------------------------------------------------------------------


def _formulas(scenarios: Collection[Scenario]) -> Iterator[str]:
    yield from ["## Metrics", ""]
    yield "T is the number of tasks; a[i,j] is the accuracy on task j's test images after learning task i:"
    yield "correct[i,j] / count[j]. Fractions are shown in percent, their differences in points."
    yield ""
    metrics = dict.fromkeys(metric for scenario in sorted(scenarios) for metric in metrics_of(scenario))
    for metric in metrics:
        about = f"{SCALE_OF_UNIT[metric.unit]}, {metric.direction} is better; {metric.source}"
        also = metric.domain_title if "domain-incremental" in scenarios else None
        title = f"{metric.title}; of domains: {also}" if also else metric.title
        yield f"- **{escape(title)}** ({code(metric.name)}, {escape(about)}): {code(metric.formula)}"
    yield ""


def _conditions(g: Group) -> Iterator[str]:
    yield from [f"### Conditions of {escape(g.title)}", ""]
    yield from ["| condition | value |", "|:---|:---|"]
    for name, values in _all_facts(g).items():
        yield f"| {in_table(escape(name))} | {in_table(', '.join(map(code, values)))} |"
    yield ""
    yield from _list_of("Settings of the methods:", _settings(g))
    yield from _list_of(f"{WHAT_COMES[g.scenario]} in the order learnt:", _orders(g))
    yield from _list_of("Names of the classes:", _class_names(g))
    yield from _list_of("Commands:", map(code, _distinct(r.manifest.command for r in g.records)))


def _all_facts(g: Group) -> dict[str, list[str]]:
    """The conditions of the table, then what its cells recorded; several values where the cells differ."""
    manifests = [record.manifest for record in g.records]
    facts = {name: [value if value is not None else UNKNOWN] for name, value in in_order(g.facts)}
    facts |= {"seeds": [str(seed) for seed in sorted({record.seed for record in g.records})]}
    facts |= {"classes of each task": _distinct(_task_sizes(record) for record in g.records)}
    facts |= {"machine": _distinct(f"{m.device}, {counted(m.threads, 'thread')}" for m in manifests)}
    facts |= _timing(g)
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
    return {name: values or [UNKNOWN] for name, values in facts.items()}


def _timing(g: Group) -> dict[str, list[str]]:
    """The conditions of the latencies; empty if nothing was timed."""
    facts = {
        "timed on": _distinct(costs.conditions(record) for record in g.done),
        "timing": _distinct(costs.procedure(record) for record in g.done),
    }
    return {name: values for name, values in facts.items() if values}


def _task_sizes(record: Record) -> str | None:
    sizes = record.config.get("task_sizes")
    return " ".join(map(str, sizes)) if isinstance(sizes, list) else None


def _commit(record: Record) -> str:
    manifest = record.manifest
    return f"{manifest.commit or UNKNOWN}{' with uncommitted changes' if manifest.dirty else ''}"


def _distinct(values: Iterable[str | None]) -> list[str]:
    return sorted({value for value in values if value is not None})


def _settings(g: Group) -> Iterator[str]:
    for row in g.rows:
        facts = method_facts(row.records[0])
        settings = code(", ".join(f"{name} = {value}" for name, value in facts.items())) if facts else "none"
        yield f"{escape(row.method)}: {settings}"


def _orders(g: Group) -> Iterator[str]:
    orders = {(record.seed, order_of(record)) for record in g.records if record.class_order}
    between = ", " if g.scenario == "domain-incremental" else " "
    for seed, order in sorted(orders):
        yield f"seed {seed}: {code(between.join(order))}"


def _class_names(g: Group) -> Iterator[str]:
    """A line with the names by number; none if they are unknown, or are the numbers."""
    pairs = {pair for r in g.records for pair in zip(r.class_order or (), r.class_names or (), strict=False)}
    if any(name != str(number) for number, name in pairs):
        yield code(abbreviate([f"{number} = {name}" for number, name in sorted(pairs)], NAMES_SHOWN))


# ---- Markdown ----------------------------------------------------------------------------------


def _markdown(table: Table) -> Iterator[str]:
    yield f"| {' | '.join(in_table(escape(column)) for column in table.columns)} |"
    yield f"|{':---|' * table.heads}{'---:|' * (len(table.columns) - table.heads)}"
    for i, row in enumerate(table.rows):
        cells = (_cell(cell, (i, j) in table.bold) for j, cell in enumerate(row))
        yield f"| {' | '.join(cells)} |"
    yield ""


def _cell(text: str, bold: bool) -> str:
    escaped = in_table(escape(text))
    return f"**{escaped}**" if bold else escaped


def _list_of(title: str, items: Iterable[str]) -> Iterator[str]:
    lines = [f"- {item}" for item in items]
    if lines:
        yield from [title, "", *lines, ""]
