"""How long cells will take, from what cells like them took before."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from bench.plan import Planned
from bench.record import Record
from bench.spec import Cell

#: Cells that differ in nothing else take about the same time.
LIKE = ("method", "benchmark", "scale", "eval_on", "device", "tasks", "protocol")


def seconds_by_cell(planned: Iterable[Planned], past: Iterable[Record]) -> dict[Cell, float]:
    """About what each cell will take, for those that past records tell of: the mean of cells of other seeds,
    or of the same one; else of other settings of the method.
    """
    took: dict[str, list[float]] = {}
    for record in past:
        if record.done:
            for key in _keys(record.config):
                took.setdefault(key, []).append(seconds_of(record))
    found = {}
    for item in planned:
        known = (took[key] for key in _keys(item.cell.model_dump(mode="json")) if key in took)
        if samples := next(known, None):
            found[item.cell] = statistics.fmean(samples)
    return found


def seconds_of(record: Record) -> float:
    """What a finished cell took, its inference apart; without the break, if it was interrupted."""
    ran, cost = record.manifest, record.cost
    whole = (datetime.fromisoformat(ran.ended) - datetime.fromisoformat(ran.started)).total_seconds()
    measured = [*(cost.train_seconds or []), *(cost.eval_seconds or [])] if cost else []
    known = sum(seconds or 0.0 for seconds in measured)
    return known if ran.resumed else max(whole, known)


def _keys(config: Mapping[str, Any]) -> list[str]:
    """What cells are alike by: first with the method's settings, then without."""
    exact = {name: _without_label(config.get(name)) for name in LIKE}
    method = exact["method"]
    loose = exact | {"method": method.get("name") if isinstance(method, Mapping) else method}
    return [repr(sorted(exact.items(), key=str)), repr(sorted(loose.items(), key=str))]


def _without_label(part: Any) -> Any:
    return {k: v for k, v in part.items() if k != "label"} if isinstance(part, Mapping) else part


def longest_first(planned: Sequence[Planned], seconds: Mapping[Cell, float]) -> list[Planned]:
    """In the order that keeps all workers busy to the end; those that nothing is known of come first."""
    if not seconds:
        return list(planned)
    return sorted(planned, key=lambda item: -seconds.get(item.cell, float("inf")))


def schedule(planned: Sequence[Planned], seconds: Mapping[Cell, float], workers: int) -> float:
    """Seconds until the last of the cells that are known is done, each begun as soon as a worker is free."""
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
