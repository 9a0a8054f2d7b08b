"""Whole commands beside a bare loop: the loop makes the passes that were counted; no times are compared."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cell.manifest import RunContext
from bench.cell.progress import ignore
from bench.cell.runner import counting_images, run_cell
from bench.cell.strategy import Strategy
from bench.record import Record, write
from methods.registry import METHODS
from reports.text import DASH
from scripts.common import plan_cells
from scripts.perf import bare, end_to_end
from scripts.perf.end_to_end import BARE, BARE_KEPT, COLD, NO_CACHE, NOISE, PLAIN, WARM, Measured

SMALL = ["--scale", "smoke", "--tasks", "2", "--seeds", "0", "--threads", "1"]
CONTEXT = RunContext(None, "serial", 1, 1)
KEPT = {False: ["--no-feature-cache"], True: []}


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images of each pass of every evaluation."""
    passed: list[int] = []
    original = Strategy.eval

    def counted(self: Strategy, *arguments: Any, **options: Any) -> Any:
        with counting_images(self.model) as images:
            result = original(self, *arguments, **options)
        passed.extend(images)
        return result

    monkeypatch.setattr(Strategy, "eval", counted)
    return passed


def run(name: str, folder: Path, kept: bool) -> Record:
    """The record of a small cell, run in this process."""
    folder.mkdir(exist_ok=True)
    options = [*SMALL, "--methods", name, "--results", str(folder), "--data-root", str(folder), *KEPT[kept]]
    (cell,), inputs = plan_cells(options)
    return run_cell(cell, inputs.paths, CONTEXT, ignore).record


@pytest.mark.parametrize("name", METHODS)
def test_the_work_of_the_bare_loop_is_what_a_cell_passes(
    name: str, tmp_path: Path, evaluated: list[int]
) -> None:
    """Both works follow from a record with kept features; each is counted in a cell of its own."""
    method, record = METHODS[name].load(), run(name, tmp_path, kept=True)
    for kept in (True, False):
        evaluated.clear()
        cost = end_to_end.cost_of(run(name, tmp_path / f"{kept}", kept))
        work = end_to_end.work_of(record, method, kept)
        assert work.stepped + work.passed == cost.total("forward_images")
        assert work.evaluated == sum(evaluated)
        assert max(evaluated, default=0) <= work.eval_batch


@pytest.mark.parametrize(
    ("name", "without", "kept"),
    [("ncm", 1, 0), ("linear-probe", 1, 0), ("finetune", 2, 2), ("duallora", 2, 2), ("l2p", 3, 2)],
)
def test_the_floor_of_training(name: str, without: int, kept: int) -> None:
    method = METHODS[name].load()
    assert (end_to_end.floor(method, False), end_to_end.floor(method, True)) == (without, kept)


WORK = bare.Work(
    architecture={"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2},
    image_size=8,
    classes=3,
    precision="fp32",
    device="cpu",
    threads=1,
    batch=4,
    eval_batch=10,
    stepped=9,
    passed=5,
    evaluated=11,
    through="backbone",
)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_bare_loop_makes_every_pass_of_its_work(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[tuple[bool, int, bool]] = []
    build = bare.build

    def watched(work: bare.Work) -> Any:
        model = build(work)
        model.register_forward_hook(
            lambda module, inputs, logits: passes.append(
                (module.training, len(inputs[0]), logits.requires_grad)
            )
        )
        return model

    monkeypatch.setattr(bare, "build", watched)
    bare.run(replace(WORK, precision=precision))
    steps, forwards = [(True, n, True) for n in (4, 4, 1)], [(True, n, False) for n in (4, 1)]
    assert passes == [*steps, *forwards, (False, 10, False), (False, 1, False)]


@pytest.mark.parametrize(("through", "reached"), [("backbone", True), ("classifier", False)])
def test_a_step_sends_its_gradient_through_the_backbone_only_where_the_method_does(
    through: Any, reached: bool
) -> None:
    model = bare.build(replace(WORK, through=through))
    model(torch.zeros(2, 3, 8, 8)).sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {"head.weight", "head.bias"} | ({"pos_embed"} if reached else set())


def test_an_architecture_of_timm_is_built_by_its_name() -> None:
    model = bare.build(replace(WORK, architecture="vit_tiny_patch16_224", image_size=32))
    assert (model.embed_dim, model.patch_embed.img_size, model.num_classes) == (192, (32, 32), 3)


# ---- the tables -----------------------------------------------------------------------------------------


def in_process(words: Sequence[str], results: Path) -> float:
    """As `end_to_end.command`, in this process and without the timing of inference."""
    (cell,), inputs = plan_cells([*words, "--results", str(results)])
    record = run_cell(cell, inputs.paths, CONTEXT, ignore).record
    write(record, results / cell.id)
    return 8.0


def loop_here(work: bare.Work) -> Measured:
    """As `end_to_end.loop`, in this process, with one image of each kind."""
    counts = {name: min(getattr(work, name), 1) for name in ("stepped", "passed", "evaluated")}
    return Measured(2.0, *astuple(bare.run(replace(work, **counts))))


@pytest.fixture(scope="module")
def printed() -> list[str]:
    return list(end_to_end.report(["ncm", "finetune"], SMALL[:4], 1, in_process, loop_here))


def rows(markdown: str) -> Iterator[list[str]]:
    for line in markdown.splitlines()[2:]:
        yield line.strip("| ").split(" | ")


def test_every_method_is_run_with_and_without_kept_features_where_it_uses_any(printed: list[str]) -> None:
    ncm = [NO_CACHE, COLD, WARM, f"{WARM}, {NOISE}: / {WARM}"]
    finetune = [NO_CACHE, f"{NO_CACHE}, {NOISE}: / {NO_CACHE}"]
    names = [("ncm", name) for name in ncm] + [("finetune", name) for name in finetune]
    assert [tuple(row[:2]) for row in rows(printed[-2])] == names
    assert [tuple(row[:2]) for row in rows(printed[-1])] == [n for n in names if NOISE not in n[1]]


def test_commands_are_compared_with_a_loop_that_makes_the_same_passes(printed: list[str]) -> None:
    by_run = {(row[0], row[1]): row[2:] for row in rows(printed[-2])}
    assert by_run["finetune", NO_CACHE][:3] == ["8.0", "1.00 (1.00 to 1.00)", "4.00 (4.00 to 4.00)"]
    assert by_run["ncm", WARM][2] == DASH  # with kept features it makes no pass
    assert all(cells[2] == DASH for (_, name), cells in by_run.items() if name == COLD)


def test_passes_are_those_of_the_record(printed: list[str]) -> None:
    by_run = {(row[0], row[1]): row[2:4] for row in rows(printed[-1])}
    assert by_run == {
        ("ncm", NO_CACHE): ["1.00", "1"],
        ("ncm", COLD): ["0.00", "0"],
        ("ncm", WARM): ["0.00", "0"],
        ("finetune", NO_CACHE): ["1.00", "2"],
    }


def test_the_setting_is_printed(printed: list[str]) -> None:
    assert printed[-3].startswith("digits, 2 tasks, 120 images in training, 90 in evaluation; micro_vit")


def test_seconds_an_image_are_multiples_of_a_plain_pass() -> None:
    times = {WARM: [3.0, 8.0], PLAIN: [1.0, 2.0]}
    assert end_to_end.plain_passes(times, WARM, end_to_end.PLAIN_IMAGES // 2) == [6.0, 8.0]


def test_ratios_are_formed_within_a_round() -> None:
    """A machine that is three times as slow in the second round changes no ratio."""
    times = {WARM: [3.0, 9.0], BARE_KEPT: [2.0, 6.0], BARE: [1.0, 1.0]}
    assert end_to_end.relative(times, WARM, BARE_KEPT) == "1.50 (1.50 to 1.50)"
    assert end_to_end.relative(times, WARM, None) == DASH


def test_a_command_that_cannot_be_run_is_an_error_and_no_time() -> None:
    """The one test that starts the command as the script does."""
    run = end_to_end.command(end_to_end.until_record, None)
    with pytest.raises(SystemExit, match="ended with status 2"):
        run(["--methods", "finetun"], Path("results"))


WRITES = "import pathlib, time; p = pathlib.Path({folder!r}, 'cell'); p.mkdir(); "
WRITES += "(p / 'record.json').touch(); time.sleep({seconds})"


@pytest.mark.parametrize(("until", "seconds"), [("record", 3600), ("end", 0)])
def test_the_clock_stops_at_the_record_or_at_the_end(until: str, seconds: int, tmp_path: Path) -> None:
    """The first process is ended by its record: without that it would take an hour."""
    script = WRITES.format(folder=str(tmp_path), seconds=seconds)
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        start = time.perf_counter()
        assert end_to_end.UNTIL[until](process, tmp_path) > start
    assert (tmp_path / "cell" / "record.json").exists()


@pytest.mark.parametrize("until", end_to_end.UNTIL)
def test_a_command_that_fails_has_no_time(until: str, tmp_path: Path) -> None:
    with (
        subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]) as process,
        pytest.raises(SystemExit, match="ended with status 3"),
    ):
        end_to_end.UNTIL[until](process, tmp_path)
