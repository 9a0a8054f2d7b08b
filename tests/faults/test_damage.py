"""Files that are not what they say: records, predictions, checkpoints, weights."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from bench import predictions
from bench.cell import checkpoint
from bench.cell.backbone import MICRO_WEIGHTS
from bench.record import RECORD_NAME, SCHEMA
from tests.faults.commands import (
    TASKS,
    cell_of,
    check_checkpoints,
    check_predictions,
    contents,
    done_files,
    facts,
    grid_of,
    on_disk,
    record_of,
)

slow = pytest.mark.slow
BOTH = done_files("finetune", "ncm")
GRID = grid_of("finetune,ncm")

DAMAGES = {
    "truncated": (lambda text: text[: len(text) // 2], "is not whole JSON"),
    "of another schema": (lambda text: text.replace(f'"schema": {SCHEMA}', '"schema": 99'), "has schema 99"),
}


@pytest.fixture
def finished(whole, folder) -> Path:
    """The results of `finetune,ncm`, without `ncm`."""
    results = Path(shutil.copytree(whole("finetune,ncm").results, folder / "results"))
    shutil.rmtree(cell_of(results, "ncm"))
    return results


@pytest.mark.parametrize("kind", [pytest.param("truncated"), pytest.param("of another schema", marks=slow)])
def test_a_damaged_record_is_left_alone_and_the_other_cells_run(kind, finished, run, whole, drill):
    damage, words = DAMAGES[kind]
    path = cell_of(finished, "finetune") / RECORD_NAME
    path.write_text(damage(path.read_text()))
    damaged = path.read_bytes()
    result = run(*GRID)
    assert result.status == 1
    assert f"the record '{path.relative_to(finished.parent)}' {words}" in result.output
    assert "1 left alone, 1 to run" in result.output
    assert on_disk(finished) == BOTH
    assert path.read_bytes() == damaged
    expected = whole("finetune,ncm").facts
    record = record_of(finished, "ncm")
    assert facts(record) == expected["ncm"]
    assert record.cost.latency is not None

    if kind == "truncated":
        return  # the next command is the slow one's part
    healthy = contents(cell_of(finished, "ncm"))
    assert run(*GRID, "--rerun", "failed").status == 0
    assert on_disk(finished) == BOTH
    check_predictions(finished)
    assert contents(cell_of(finished, "ncm")) == healthy
    assert facts(record_of(finished, "finetune")) == expected["finetune"]


@slow
@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_record_with_checkpoints_beside_it_stops_no_other_cell(
    kind, interrupted, run, whole, drill
):
    damage, words = DAMAGES[kind]
    path = cell_of(interrupted, "finetune") / RECORD_NAME
    path.write_text(damage(path.read_text()))
    before = contents(cell_of(interrupted, "finetune"))
    result = run(*GRID)
    assert result.status == 1
    assert f"the record '{path.relative_to(interrupted.parent)}' {words}" in result.output
    assert contents(cell_of(interrupted, "finetune")) == before
    kept = {"finetune/record.json", "finetune/checkpoints/1", "finetune/checkpoints/2"}
    assert on_disk(interrupted) == kept | done_files("ncm")
    expected = whole("finetune,ncm").facts
    record = record_of(interrupted, "ncm")
    assert facts(record) == expected["ncm"]
    assert record.cost.latency is not None

    assert run(*GRID, "--rerun", "failed").status == 0
    assert on_disk(interrupted) == BOTH
    assert {name: facts(record_of(interrupted, name)) for name in expected} == expected
    drill(
        f"a record {kind} among the planned cells",
        "it, byte for byte, and its checkpoints; the other cells are done",
        "leaves it alone, says so; --rerun failed runs it again",
    )


@slow
def test_the_repetition_of_a_damaged_record_can_be_interrupted(interrupted, start, run, whole, drill):
    path = cell_of(interrupted, "finetune") / RECORD_NAME
    path.write_bytes(path.read_bytes()[:300])
    command = start(*GRID, "--rerun", "failed")
    command.wait_for_words(f"it continues after task 2 of {TASKS}")
    command.signal(signal.SIGINT)
    result = command.result()
    assert result.status == 1
    assert "stopped: 0 of 1 cells ended" in result.output
    assert on_disk(interrupted) == {
        "finetune/record.json",
        "finetune/checkpoints/1",
        "finetune/checkpoints/2",
    }
    assert record_of(interrupted, "finetune").status == "interrupted"
    assert run(*GRID).status == 0
    assert on_disk(interrupted) == BOTH
    assert facts(record_of(interrupted, "finetune")) == whole("finetune,ncm").facts["finetune"]
    drill(
        "SIGINT while a damaged record is run again", "its record (interrupted), its checkpoints", "resumes"
    )


@slow
def test_checkpoints_without_a_record_do_not_stop_a_command_that_does_not_run_their_cell(
    interrupted, run, whole, drill
):
    """As a grid leaves them that is killed."""
    (cell_of(interrupted, "finetune") / RECORD_NAME).unlink()
    before = contents(interrupted)
    result = run(*GRID, "--rerun", "failed")
    assert result.status == 1
    assert "2 of 2 cells have no record; the command without --rerun runs them" in result.output
    assert contents(interrupted) == before
    assert run(*GRID).status == 0
    assert on_disk(interrupted) == BOTH
    record = record_of(interrupted, "finetune")
    assert record.manifest.resumed == [2]
    assert facts(record) == whole("finetune,ncm").facts["finetune"]
    drill("checkpoints without a record, and --rerun failed", "what was there", "resumes, without --rerun")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {truncate: "truncated", flip: "a bit flipped"}


@slow
@pytest.mark.parametrize("which", [[2], [1], [1, 2]], ids=["the last", "the first", "both"])
@pytest.mark.parametrize("damage", [truncate, flip], ids=["truncated", "a bit flipped"])
def test_a_damaged_checkpoint_is_set_aside(damage, which, interrupted, start, whole, drill):
    kept = checkpoint.list_checkpoints(cell_of(interrupted, "finetune"))
    for n in which:
        damage(kept[n])
    damaged = {n: kept[n].read_bytes() for n in which}
    used = max({1, 2} - set(which), default=0)
    noticed = which if used < 2 else []  # the first one is not read where the second one is intact
    command = start(*GRID)
    command.wait_for_words("task 3/3")
    for n in noticed:
        path = kept[n].relative_to(interrupted.parent)
        said = (
            f"the checkpoint '{path}' is damaged: its content does not have the hash in its name; "
            "it was set aside"
        )
        assert said in command.output
        assert kept[n].with_name(kept[n].name + ".damaged").read_bytes() == damaged[n]
    result = command.result()
    assert result.status == 0
    assert (f"it continues after task {used} of {TASKS}" in result.output) == (used > 0)
    assert result.output.count("it was set aside, and the cell continues from an earlier") == len(noticed)
    record = record_of(interrupted, "finetune")
    assert record.manifest.resumed == ([used] if used else [])
    assert facts(record) == whole("finetune,ncm").facts["finetune"]
    assert on_disk(interrupted) == BOTH
    drill(
        f"a checkpoint is damaged ({DAMAGE[damage]}): after task {' and '.join(map(str, which))}",
        "each that was read is set aside as *.damaged, until the cell is measured",
        "resumes from an earlier one, or from scratch; the record of an uninterrupted run",
    )


@slow
@pytest.mark.parametrize("damage", [truncate, flip], ids=["truncated", "a bit flipped"])
def test_a_damaged_checkpoint_that_waits_to_be_measured_costs_the_measurement_only(
    damage, unmeasured, run, whole, drill
):
    path = checkpoint.list_checkpoints(cell_of(unmeasured, "finetune"))[3]
    damage(path)
    result = run(*grid_of("finetune"))
    assert result.status == 0
    assert "it was set aside, and the inference of this model is not measured" in result.output
    assert {*done_files("finetune"), "finetune/checkpoints/3.damaged"} <= on_disk(unmeasured)
    check_checkpoints(unmeasured)
    record = record_of(unmeasured, "finetune")
    assert record.cost.latency is None
    assert facts(record) == whole("finetune,ncm").facts["finetune"]
    drill(
        "the last checkpoint of a finished cell, damaged before inference was timed",
        "its record (done), without the time of inference; the checkpoint as *.damaged",
        "has nothing left to do",
    )


@slow
@pytest.mark.parametrize("where", [".", checkpoint.FOLDER])
def test_a_partial_file_that_was_left_behind_is_deleted(where, unmeasured, run, drill):
    """As a command leaves it that is killed while it writes."""
    cell = cell_of(unmeasured, "finetune")
    (cell / where / ".record.json.99999").write_text('{"schema":')
    assert run(*grid_of("finetune")).status == 0
    assert on_disk(unmeasured) == done_files("finetune")
    drill(
        "kill -9 while a record is written", "the old record, and a partial file", "deletes the partial file"
    )


@slow
@pytest.mark.parametrize(
    "damage", [truncate, flip, Path.unlink], ids=["truncated", "a bit flipped", "deleted"]
)
def test_a_damaged_predictions_file_costs_no_accuracy(damage, whole, folder, run, drill):
    results = Path(shutil.copytree(whole("finetune,ncm").results, folder / "results"))
    (path,) = cell_of(results, "finetune").glob(predictions.PATTERN)
    damage(path)
    before = contents(results)
    result = run(*GRID)
    assert result.status == 0
    assert "2 done before, 0 to run" in result.output
    assert contents(results) == before
    expected = whole("finetune,ncm").facts
    assert {name: facts(record_of(results, name)) for name in expected} == expected
    with pytest.raises(predictions.PredictionsError, match="run the cell again with --rerun all"):
        check_predictions(results)

    assert run(*GRID, "--rerun", "all").status == 0
    assert on_disk(results) == BOTH
    check_predictions(results)
    assert {name: facts(record_of(results, name)) for name in expected} == expected
    drill(
        "a predictions file that is truncated, changed or deleted",
        "the records, with all their numbers",
        "has nothing left to do; --rerun all writes it again",
    )


@slow
def test_predictions_that_no_record_names_are_deleted(interrupted, run, whole, drill):
    """As a command leaves them that is killed between the predictions and the record."""
    stray = cell_of(interrupted, "finetune") / f"{predictions.PREFIX}{'0' * 12}.safetensors"
    stray.write_bytes(b"of another machine")
    assert run(*GRID).status == 0
    assert on_disk(interrupted) == BOTH
    assert not stray.exists()
    check_predictions(interrupted)
    expected = whole("finetune,ncm").facts
    assert {name: facts(record_of(interrupted, name)) for name in expected} == expected
    drill(
        "kill -9 between the predictions and their record",
        "the predictions, no record",
        "runs the cell again",
    )


@slow
@pytest.mark.parametrize("content", ["garbage", "a truncated copy"])
def test_a_weights_file_that_is_none_is_refused_before_anything_is_written(content, folder, run, drill):
    weights = folder / "weights.safetensors"
    whole = MICRO_WEIGHTS.read_bytes()
    weights.write_bytes(b"garbage" * 1000 if content == "garbage" else whole[: len(whole) // 2])
    before = weights.read_bytes()
    arguments = list(grid_of("finetune,ncm"))
    arguments[arguments.index("random")] = weights.name
    result = run(*arguments)
    assert result.status == 2
    assert result.output.startswith(f"error: {weights.name} is not a readable safetensors file: ")
    assert [path.name for path in folder.iterdir()] == [weights.name]
    assert weights.read_bytes() == before
    drill(f"a weights file that is {content}", "nothing: exit status 2 and a sentence", "the same")


def test_damaged_features_are_computed_again_and_change_no_number(finished, run, whole, drill, environment):
    """Those that an earlier grid has left on disk, where the next one reads them."""
    files = list((Path(environment["DUALLORA_BENCH_DATA"]) / "features").glob("*.safetensors"))
    assert files
    for path in files:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    result = run(*GRID)
    assert result.status == 0
    assert "damaged" in result.output
    assert on_disk(finished) == BOTH
    check_predictions(finished)
    record = record_of(finished, "ncm")
    assert facts(record) == whole("finetune,ncm").facts["ncm"]
    assert record.cost.feature_images > 0
    drill("a bit of every kept feature file flips", "the records of before", "computes the features again")
