"""One cell after the other, each in a process of its own; then, one session after the other, inference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.display import Display
from bench.executors.alone import DiedError, alone
from bench.measure import inference_memory, keep, latencies
from bench.plan import Places, Planned
from bench.record import Record
from bench.runner import record_of_death, run_cell
from bench.spec import Cell


def run(cells: Sequence[Planned], places: Places, command: str | None, shown: Display) -> Iterator[Record]:
    """Run the cells in their order; yield each record as soon as it is on disk."""
    for planned in cells:
        shown.start(planned)
        record = _run(planned, places, command, shown)
        shown.end(record)
        yield record


def _run(planned: Planned, places: Places, command: str | None, shown: Display) -> Record:
    device = planned.cell.device
    try:
        return alone(run_cell, planned, places, command, device=device, observe=shown.tick)
    except DiedError as error:
        return record_of_death(planned.cell, places, command, str(error))


def measure(
    sessions: Sequence[tuple[Cell, ...]], places: Places, shown: Display
) -> Iterator[tuple[Cell, ...]]:
    """Hold the sessions in their order; yield the cells of each once their records are on disk.

    Raises:
        DiedError, torch.OutOfMemoryError: if a session cannot be held; the states it needs stay.
    """
    for cells in sessions:
        shown.measure(cells)
        device = cells[0].device
        memory = {
            cell.id: alone(inference_memory, cell, places, device=device, observe=shown.tick)
            for cell in cells
        }
        found = alone(latencies, cells, places, device=device, observe=shown.tick)
        for cell in cells:
            keep(cell, places, found[cell.id], memory[cell.id])
        yield cells
