"""Tasks from which a method learns nothing: of one class, and those in which its loss was zero throughout."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from bench.spec import Cell
from methods.hyper import make_hyper
from methods.registry import METHODS


def untaught_tasks(cell: Cell) -> list[int]:
    """The tasks of one class, from 1, if the cell's method learns nothing from one class."""
    method = METHODS[cell.method.name].load()
    if method.learns_from_one_class(make_hyper(cell.method.name, method.Hyper, cell.method.options)):
        return []
    return [task for task, classes in enumerate(cell.task_sizes or (), start=1) if classes == 1]


def warn_of_one_class(cell: Cell) -> list[str]:
    """The warning of a cell whose method learns nothing from some of its tasks; empty if it learns from all.

    It names no method, so that a report shows the warning of several methods once.
    """
    tasks = untaught_tasks(cell)
    if not tasks:
        return []
    return [
        f"{_in_words(tasks, cell.tasks)} a single class, and the cross-entropy compares the classes of "
        "a task with each other only: it is 0 there, so these classes are not learnt; take fewer tasks"
    ]


def warn_of_zero_loss(cell: Cell, tasks: Collection[int]) -> list[str]:
    """The warning of a cell whose loss was zero throughout these tasks, unless it was to be expected."""
    unexpected = sorted(set(tasks) - set(untaught_tasks(cell)))
    if not unexpected:
        return []
    numbers = ", ".join(map(str, unexpected))
    return [
        f"the loss was exactly 0 at every step of task {numbers} (of {cell.tasks}): it taught nothing there"
    ]


def _in_words(tasks: Sequence[int], total: int) -> str:
    if len(tasks) == total:
        return "each task has" if total > 1 else "the only task has"
    if len(tasks) == 1:
        return f"task {tasks[0]} of {total} has"
    return f"tasks {', '.join(map(str, tasks))} of {total} have"
