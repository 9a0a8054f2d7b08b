"""How long cells will take, estimated from the records of similar cells."""

from __future__ import annotations

import heapq
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from bench.grid.plan import PlannedCell
from bench.record import Record
from bench.spec import Cell

#: Cells that are equal in all of these take about the same time.
SIMILAR_BY = ("method", "benchmark", "scale", "eval_on", "device", "tasks", "protocol")


def seconds_by_cell(planned: Iterable[PlannedCell], past: Iterable[Record]) -> dict[Cell, float]:
    """Estimated seconds of each cell for which there are records of similar cells.

    The mean over cells that differ in the seed at most; else over cells with other settings of the method.
    """
    samples: dict[str, list[float]] = {}
    for record in past:
        if record.done:
            for key in _keys(record.config):
                samples.setdefault(key, []).append(seconds_of(record))
    estimates = {}
    for item in planned:
        keys = _keys(item.cell.model_dump(mode="json"))
        similar = next((samples[key] for key in keys if key in samples), None)
        if similar:
            estimates[item.cell] = statistics.fmean(similar)
    return estimates


def seconds_of(record: Record) -> float:
    """Seconds that a finished cell took, without its inference, and without the break if it was resumed."""
    manifest, cost = record.manifest, record.cost
    started, ended = datetime.fromisoformat(manifest.started), datetime.fromisoformat(manifest.ended)
    experiences = cost.experiences if cost else []
    measured = sum((e.train_seconds or 0.0) + (e.eval_seconds or 0.0) for e in experiences)
    return measured if manifest.resumed else max((ended - started).total_seconds(), measured)


def _keys(config: Mapping[str, Any]) -> list[str]:
    """Keys that similar cells have in common: first with the settings of the method, then without."""
    exact = {name: _without_label(config.get(name)) for name in SIMILAR_BY}
    method = exact["method"]
    loose = exact | {"method": method.get("name") if isinstance(method, Mapping) else method}
    return [json.dumps(key, sort_keys=True) for key in (exact, loose)]  # a record on disk has sorted keys


def _without_label(part: Any) -> Any:
    return {k: v for k, v in part.items() if k != "label"} if isinstance(part, Mapping) else part


def longest_first(planned: Sequence[PlannedCell], seconds: Mapping[Cell, float]) -> list[PlannedCell]:
    """The longest cells first, so that no worker is idle early; cells without an estimate before them."""
    if not seconds:
        return list(planned)
    return sorted(planned, key=lambda item: -seconds.get(item.cell, float("inf")))


def schedule(planned: Sequence[PlannedCell], seconds: Mapping[Cell, float], workers: int) -> float:
    """Seconds until all cells with an estimate are done, if each starts as soon as a worker is free."""
    free_at = [0.0] * workers
    for item in planned:
        if item.cell in seconds:
            heapq.heapreplace(free_at, free_at[0] + seconds[item.cell])
    return max(free_at)


def in_words(seconds: float) -> str:
    """ "40 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
