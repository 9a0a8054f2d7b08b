"""One cell after the other, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.display import Display
from bench.plan import Places, Planned
from bench.record import Record
from bench.runner import run_cell


def run(cells: Sequence[Planned], places: Places, command: str | None, shown: Display) -> Iterator[Record]:
    """Run the cells in their order; yield each record as soon as it is on disk."""
    for planned in cells:
        shown.start(planned)
        record = run_cell(planned, places, command, shown.tick)
        shown.end(record)
        yield record
