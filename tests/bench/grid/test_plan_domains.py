"""Commands on streams of domains: what is planned, and what is refused before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.cell.inputs import Inputs
from bench.spec import Cell
from methods.errors import UsageError
from tests.bench.grid.conftest import cells

DIGITS = ("plain", "thick", "inverted", "rotated", "checkered")
Tree = Callable[[dict[str, int]], Path]


def cell_of(inputs: Inputs, benchmark: str, **values: object) -> Cell:
    (planned,) = cells(inputs, "ncm", benchmarks=[benchmark], scale="smoke", **values)
    return planned.cell


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Writes images below a folder, `counts[folder]` each."""

    def write(counts: dict[str, int]) -> Path:
        for name, count in counts.items():
            folder = tmp_path / "tree" / name
            folder.mkdir(parents=True)
            for number in range(count):
                rng = np.random.default_rng([number, *name.encode()])
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{number}.png")
        return tmp_path / "tree"

    return write


def test_a_stream_of_domains_has_a_task_for_each_in_the_seeds_order(inputs: Inputs) -> None:
    own, shuffled = (cell_of(inputs, "digits-domains", seeds=[seed]) for seed in (0, 1))
    assert (own.scenario, own.tasks, own.domains) == ("domain-incremental", 5, DIGITS)
    assert shuffled.domains != own.domains
    assert sorted(shuffled.domains or ()) == sorted(DIGITS)
    assert own.class_order == shuffled.class_order == tuple(range(10))


def test_the_other_scenario_is_another_cell(inputs: Inputs) -> None:
    domains = cell_of(inputs, "digits-domains")
    classes = cell_of(inputs, "digits-domains", scenario="class-incremental", tasks=2)
    assert (classes.tasks, classes.domains, classes.task_sizes) == (2, None, (5, 5))
    assert classes.split_sha256 != domains.split_sha256


@pytest.mark.parametrize("tasks", [2, 6])
def test_a_number_of_tasks_that_is_not_that_of_the_domains_is_refused(tasks: int, inputs: Inputs) -> None:
    with pytest.raises(UsageError, match=rf"its 5 domains \(plain, .*\), not {tasks}; leave --tasks out"):
        cell_of(inputs, "digits-domains", tasks=tasks)


def test_a_scenario_that_a_benchmark_does_not_have_is_refused(inputs: Inputs) -> None:
    with pytest.raises(UsageError, match="digits has no domain-incremental stream; legal for it: class-inc"):
        cell_of(inputs, "digits", scenario="domain-incremental")


def test_a_list_of_domains_is_their_order(inputs: Inputs, tmp_path: Path) -> None:
    file = tmp_path / "order.txt"
    file.write_text("\n".join(reversed(DIGITS)))
    assert cell_of(inputs, "digits-domains", class_order=str(file)).domains == DIGITS[::-1]
    file.write_text("\n".join([*DIGITS[:4], "chequered"]))
    with pytest.raises(UsageError, match=r"each of the 5 domains .*unknown: chequered; missing: checkered"):
        cell_of(inputs, "digits-domains", class_order=str(file))


FULL = {f"{domain}/{name}": 6 for domain in ("real", "sketch") for name in ("ant", "bee")}


def test_a_folder_of_domains_is_planned_on_validation_too(inputs: Inputs, tree: Tree) -> None:
    path = tree(FULL)
    cell = cell_of(inputs, f"domain-folder:path={path}", eval_on="validation")
    assert (cell.tasks, cell.domains, cell.task_sizes) == (2, ("real", "sketch"), (2, 2))
    assert cell.places == ("path",)


BAD = {
    "a domain without a class": (
        {**FULL, "clipart/ant": 6, "clipart/cow": 6},
        "'bee' is not in clipart, 'cow' is in clipart alone",
    ),
    "a domain with one image": ({**FULL, "clipart/ant": 1, "clipart/bee": 1}, "has one in its domain"),
    "classes instead of domains": ({"ant": 3, "bee": 3}, "these are classes, not domains"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_folder_that_is_none_of_domains_is_refused(case: str, inputs: Inputs, tree: Tree) -> None:
    counts, words = BAD[case]
    with pytest.raises(UsageError, match=words):
        cell_of(inputs, f"domain-folder:path={tree(counts)}")


def test_lists_that_name_absent_images_are_refused(inputs: Inputs, tree: Tree) -> None:
    path = tree(FULL)
    for domain in ("real", "sketch"):
        for side in ("train", "test"):
            (path / f"{domain}_{side}.txt").write_text(f"{domain}/ant/77{side}.png 0")
    with pytest.raises(
        UsageError, match="the lists name 4 images that are not in the folder: real/ant/77train"
    ):
        cell_of(inputs, f"domain-folder:path={path}+lists={path}")
