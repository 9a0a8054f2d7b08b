"""The command line as a user meets it: what it answers to mistakes, and a grid from start to report."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bench.cell.backbone import MICRO_NAME
from bench.predictions import PATTERN
from bench.record import RECORD_NAME, SCHEMA, read
from tests.bench.in_process import saving
from tests.conftest import tiny_vit

TINY = ("--weights", "random", "--scale", "smoke", "--seeds", "0")
GRID = ("run", "--methods", "ncm,linear-probe", *TINY)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


BAD = {
    "unknown method": (["--methods", "nmc"], "unknown method 'nmc'; did you mean 'ncm'"),
    "unknown benchmark": (["--benchmarks", "cifar10"], "did you mean 'cifar100'"),
    "unknown option of the command": (["--benchmark", "digits"], "did you mean '--benchmarks'"),
    "unknown hyper-parameter": (["--set", "ncm.metrik=cosine"], "did you mean 'metric'"),
    "unknown option in a variant": (["--methods", "finetune:rang=3"], "did you mean 'rank'"),
    "unknown option of a benchmark": (["--benchmarks", "digits:x=1"], "unknown option of digits 'x'"),
    "value of the wrong type": (["--methods", "finetune", "--set", "finetune.rank=big"], "got 'big'"),
    "value out of bounds": (["--methods", "finetune:rank=0"], "got 0"),
    "more tasks than prompts": (
        ["--methods", "dualprompt:pool_size=4"],
        "legal: at least 5; set dualprompt.pool_size=5",
    ),
    "more tasks than components": (["--methods", "coda-prompt:pool_size=4"], "legal: at least 5"),
    "more prompts than the pool has": (["--methods", "l2p:top_k=11"], "legal: at most l2p.pool_size"),
    "unknown protocol option": (["--set", "protocol.epoch=1"], "did you mean 'epochs'"),
    "one method by two names": (["--methods", "ncm,ncm:metric=euclidean"], "the same cell twice: ncm-digits"),
    "more tasks than classes": (["--tasks", "11"], "11 tasks cannot be cut from 10 classes"),
    "tasks that are no number": (["--tasks", "ten"], "got 'ten'"),
    "missing data": (["--benchmarks", "digits,imagenet-r"], "imagenet-r"),
    "missing weights file": (["--weights", "absent.safetensors"], "'absent.safetensors' does not exist"),
    "ambiguous backbone": (["--backbone", "vit_tiny_patch16_224"], "give the full tag, one of"),
    "unknown backbone": (["--backbone", "vit_tiny_patch16_224.augreg"], "did you mean"),
    "image size that does not suit": (["--image-size", "33"], "multiples of its patch size, 4"),
    "image size beyond all memory": (["--image-size", "100000"], "less than or equal to 4096"),
    "cuda where there is none": (["--device", "cuda"], "torch sees no CUDA device"),
    "unknown executor": (["--executor", "process"], "unknown executor 'process'; did you mean 'processes'"),
    "executor like no other": (["--executor", "slurm"], "Legal: auto, processes, ray, serial"),
    "a cluster's address, serially": (["--ray-address", "auto"], "use --executor ray"),
    "several cells at a time, serially": (["--executor", "serial", "--workers", "2"], "--executor processes"),
    "a name on two lines": (["--methods", "ncm\nfinetune"], "unknown method 'ncm finetune'"),
    "a benchmark's option that is a list": (["--benchmarks", "digits:a=[1]"], "unknown option of digits 'a'"),
    "a value cut at its plus": (["--benchmarks", "image-folder:path=a+b"], 'together: path="a+b"'),
    "a value cut at its comma": (
        ["--benchmarks", "image-folder:path=a,b"],
        'together: image-folder:path="a,b"',
    ),
    "a quote that is left open": (["--benchmarks", "image-folder:path='a"], "ends with the sign it starts"),
    "a results folder no system can name": (["--results", "x" * 5000], "File name too long; give another"),
    "one option twice": (["--methods", "finetune:rank=2+rank=4"], "rank given twice"),
    "config file that is not there": (["--config", "grid.toml"], "cannot read the config file"),
}


@pytest.mark.parametrize(("arguments", "words"), BAD.values(), ids=BAD)
def test_a_mistake_is_answered_in_a_sentence_and_nothing_is_written(
    arguments, words, cli, tmp_path, monkeypatch, no_network
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    defaults = dict(
        zip(["--methods", "--weights", "--scale", "--seeds"], ["ncm", "random", "smoke", "0"], strict=True)
    )
    others = [part for k, v in defaults.items() if k not in arguments for part in (k, v)]
    status, out, err = cli("run", *others, *arguments)
    assert status == 2
    assert err.startswith("error: ")
    assert words in err
    assert "Traceback" not in err + out
    assert not (tmp_path / "results").exists()


def test_weights_of_another_architecture_are_refused(cli, tmp_path):
    wrong = {k: v.clone() for k, v in tiny_vit().state_dict().items()}
    save_file(wrong, str(tmp_path / "other.safetensors"))
    status, _, err = cli("run", "--methods", "ncm", "--scale", "smoke", "--weights", "other.safetensors")
    assert status == 2
    assert "another architecture" in err


def test_a_weights_file_that_is_none_is_refused(cli, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"not safetensors")
    status, _, err = cli("run", "--methods", "ncm", "--scale", "smoke", "--weights", "broken.safetensors")
    assert status == 2
    assert "not a readable safetensors file" in err


def test_malformed_toml_and_unknown_keys_are_refused(cli, tmp_path):
    path = tmp_path / "grid.toml"
    for text, words in (
        ("methods = [", "not valid TOML"),
        ("sead = 1", "did you mean"),
        ("set = 3", "is a table"),
        ("executor = 3", "executor: "),
        ('executor = "serail"', "did you mean 'serial'"),
    ):
        path.write_text(text)
        status, _, err = cli("run", "--config", str(path))
        assert status == 2
        assert words in err


def test_an_unwritable_results_folder_is_refused(cli, tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "results")
    status, _, err = cli(*GRID)
    assert status == 2
    assert "cannot write results" in err


def test_a_results_folder_that_is_a_file_is_refused(cli, tmp_path):
    (tmp_path / "results").write_text("mine")
    status, _, err = cli(*GRID)
    assert status == 2
    assert "cannot write results" in err
    assert (tmp_path / "results").read_text() == "mine"


def test_a_grid_runs_is_reused_and_is_reported(cli, tmp_path):
    status, out, _ = cli(*GRID)
    assert status == 0
    assert "linear-probe" in out
    done = snapshot(tmp_path / "results")
    assert len([path for path in done if path.endswith(RECORD_NAME)]) == 2
    assert len([path for path in done if fnmatch(path, f"*/{PATTERN}")]) == 2
    others = [path for path in done if not path.endswith((RECORD_NAME, ".safetensors"))]
    assert {done[path] for path in others} == {b""}  # locks
    status, out, _ = cli(*GRID)
    assert status == 0
    assert "cells: 2; 2 done before, 0 to run" in out
    assert snapshot(tmp_path / "results") == done
    status, out, _ = cli("report")
    assert status == 0
    report = (tmp_path / "results" / "report" / "report.md").read_text()
    assert "linear-probe" in report
    assert "random weights" in report


DAMAGES = [lambda t: t[: len(t) // 2], lambda t: t.replace(f'"schema": {SCHEMA}', '"schema": 99')]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("again", ["failed", "all"])
def test_a_damaged_record_is_reported_and_left_alone_until_a_rerun_is_requested(damage, again, cli, tmp_path):
    cli("run", "--methods", "ncm", *TINY)
    (path,) = (tmp_path / "results").glob(f"ncm*/{RECORD_NAME}")
    path.write_text(damage(path.read_text()))
    damaged = path.read_bytes()
    status, out, _ = cli(*GRID)
    assert status == 1
    assert "cells: 2; 0 done before, 1 left alone, 1 to run" in out
    assert out.count(f"the record 'results/{path.parent.name}/{RECORD_NAME}' ") == 2  # before, and in the end
    assert path.read_bytes() == damaged
    (other,) = (tmp_path / "results").glob(f"linear-probe*/{RECORD_NAME}")
    assert read(other).done
    assert cli(*GRID, "--rerun", again)[0] == 0
    assert read(path).done


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_report_names_the_records_it_cannot_read(damage, cli, tmp_path):
    cli(*GRID)
    (path,) = (tmp_path / "results").glob(f"ncm*/{RECORD_NAME}")
    path.write_text(damage(path.read_text()))
    status, _, err = cli("report")
    assert status == 1
    assert f"not in the report: the record 'results/{path.parent.name}/{RECORD_NAME}' " in err
    report = (tmp_path / "results" / "report" / "report.md").read_text()
    assert "**Not in this report**: the record" in report
    assert path.parent.name in report
    assert "linear-probe" in report


def test_a_report_names_both_folders_of_a_cell_that_was_copied_and_renders_the_rest(cli, tmp_path):
    cli(*GRID)
    (original,) = (tmp_path / "results").glob("ncm*")
    copy = original.with_name(f"{original.name} (copy)")
    shutil.copytree(original, copy)
    status, out, err = cli("report")
    assert status == 1
    assert "records: 2" in out
    assert (
        f"not in the report: 'results/{copy.name}', with the same record as 'results/{original.name}'" in err
    )
    report = (tmp_path / "results" / "report" / "report.md").read_text()
    assert "- Cells: 2, of which 2 done" in report
    assert original.name in report
    assert copy.name in report


def test_a_dry_run_writes_nothing_and_shows_what_is_reused(cli, tmp_path):
    cli("run", "--methods", "ncm", *TINY)
    before = snapshot(tmp_path)
    status, out, _ = cli(*GRID, "--dry-run")
    assert status == 0
    assert "cells: 2; 1 to run" in out
    assert "reused" in out
    assert snapshot(tmp_path) == before


def test_missing_data_can_be_skipped_with_the_reason_on_record(cli, tmp_path, no_network):
    arguments = (*GRID, "--benchmarks", "digits,imagenet-r", "--skip-missing")
    status, out, _ = cli(*arguments)
    assert status == 1
    records = [read(path) for path in (tmp_path / "results").glob(f"*/{RECORD_NAME}")]
    assert sorted(r.status for r in records) == ["done", "done", "skipped", "skipped"]
    assert all("imagenet-r" in r.reason for r in records if r.status == "skipped")
    assert "skipped" in out


def test_a_config_file_is_overridden_by_the_command_line(cli, tmp_path):
    (tmp_path / "grid.toml").write_text(
        'methods = ["linear-probe"]\nweights = "random"\nscale = "smoke"\nseeds = [0, 1]\ntasks = 2\n'
        "[set]\nprotocol.epochs = 2\nlinear-probe.lr = 0.5\n"
    )
    status, _, _ = cli("run", "--config", "grid.toml", "--seeds", "3")
    assert status == 0
    (record,) = [read(path) for path in (tmp_path / "results").glob(f"*/{RECORD_NAME}")]
    assert (record.seed, record.tasks, record.method) == (3, 2, "linear-probe:lr=0.5")
    assert record.config["protocol"]["epochs"] == 2
    assert record.config["method"]["options"]["lr"] == 0.5


def test_a_failing_cell_is_recorded_and_tried_again_while_the_rest_goes_on(cli, tmp_path):
    def broken(run, cell, folder, measurements):
        if cell.method.name == "ncm":
            raise RuntimeError("the disk\nis on fire")

    status, out, _ = cli(*GRID, executors=saving(broken))
    assert status == 1
    assert "1 of 2 cells are not done" in out
    path = next((tmp_path / "results").glob(f"ncm*/{RECORD_NAME}"))
    assert read(path).reason == "RuntimeError: the disk is on fire"
    assert "in broken" in (path.parent / "traceback.txt").read_text()
    assert cli(*GRID, "--rerun", "failed")[0] == 0
    assert read(path).status == "done"
    assert not (path.parent / "traceback.txt").exists()


def test_a_run_that_diverges_and_one_out_of_memory_have_their_own_status(cli, tmp_path):
    status, _, _ = cli("run", "--methods", "finetune:lr=1e30", *TINY, "--set", "protocol.epochs=3")
    assert status == 1
    (path,) = (tmp_path / "results").glob(f"*/{RECORD_NAME}")
    assert read(path).status == "diverged"
    assert "lower learning rate" in read(path).reason

    def greedy(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert cli("run", "--methods", "ncm", *TINY, executors=saving(greedy))[0] == 1
    (path,) = (tmp_path / "results").glob(f"ncm*/{RECORD_NAME}")
    assert read(path).status == "oom"


def interrupted(run, cell, folder, measurements):
    """As Ctrl-C: a signal requests a stop of the grid, and the cell ends by an exception."""
    if cell.method.name == "linear-probe":
        signal.raise_signal(signal.SIGINT)
        raise KeyboardInterrupt


def test_ctrl_c_leaves_valid_records_and_says_how_to_go_on(cli, tmp_path):
    status, out, _ = cli("run", "--methods", "ncm,linear-probe", *TINY, executors=saving(interrupted))
    assert status == 1
    assert "stopped: 1 of 2 cells ended" in out
    assert "the same command runs the rest, and resumes interrupted cells after their last" in out
    statuses = {read(p).method: read(p).status for p in (tmp_path / "results").glob(f"*/{RECORD_NAME}")}
    assert statuses == {"ncm": "done", "linear-probe": "interrupted"}
    assert cli(*GRID)[0] == 0
    assert cli(*GRID, "--rerun", "all", executors=saving(interrupted))[0] == 1
    assert {read(p).status for p in (tmp_path / "results").glob(f"*/{RECORD_NAME}")} == {"done"}


def test_a_full_disk_is_reported_in_a_sentence_and_harms_no_record(cli, tmp_path, monkeypatch):
    cli("run", "--methods", "ncm", *TINY)
    before = snapshot(tmp_path / "results")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    status, out, err = cli(*GRID)
    assert status == 1
    assert "No space left on device" in err
    assert "Traceback" not in out + err
    now = snapshot(tmp_path / "results")
    assert {path: now[path] for path in before} == before
    assert {now[path] for path in now.keys() - before.keys()} == {b""}  # the lock of the other cell


def without_times(record) -> dict:
    plain = record.model_dump(mode="json")
    sizes = ("train_images", "flops", "trainable", "stored", "stored_bytes", "deployed", "deployed_bytes")
    plain["cost"] = {name: record.cost.by_experience(name) for name in sizes}
    plain["cost"]["plain_flops"] = record.cost.plain_flops
    plain["manifest"] |= {"started": None, "ended": None}
    return plain


def test_the_same_command_twice_gives_equal_records_but_for_times(cli, tmp_path):
    runs = []
    for _ in range(2):
        arguments = ("--methods", "finetune,joint,ncm", "--set", "protocol.augmentation=crop-flip")
        assert cli("run", *arguments, *TINY, "--rerun", "all")[0] == 0
        paths = sorted((tmp_path / "results").glob(f"*/{RECORD_NAME}"))
        runs.append([without_times(read(path)) for path in paths])
    assert len(runs[0]) == 3
    assert runs[0] == runs[1]


def test_methods_of_one_seed_see_the_same_classes_in_the_same_order(cli, tmp_path):
    cli("run", "--methods", "finetune,ncm", "--weights", "random", "--scale", "smoke", "--seeds", "0,1")
    records = [read(path) for path in (tmp_path / "results").glob(f"*/{RECORD_NAME}")]
    orders = {seed: {tuple(r.class_order) for r in records if r.seed == seed} for seed in (0, 1)}
    assert [len(distinct) for distinct in orders.values()] == [1, 1]
    assert orders[0] != orders[1]


def test_a_record_counts_every_test_image_once_and_every_parameter(cli, tmp_path):
    assert cli("run", "--methods", "finetune:rank=3", *TINY, "--tasks", "3")[0] == 0
    (path,) = (tmp_path / "results").glob(f"*/{RECORD_NAME}")
    record = read(path)
    assert sorted(record.class_order) == list(range(10))
    assert record.config["task_sizes"] == [4, 3, 3]
    assert record.counts == [4 * 6, 3 * 6, 3 * 6]  # smoke: six test images a class
    width, depth, rank = 128, 6, 3
    low_rank = depth * 2 * (2 * width * rank)  # k and v, down and up
    heads = [size * (width + 1) for size in (4, 3, 3)]
    cost = record.cost
    assert cost.by_experience("trainable") == [low_rank + head for head in heads]
    assert cost.by_experience("stored") == [low_rank + sum(heads[: i + 1]) for i in range(3)]
    deployed = cost.by_experience("deployed")
    backbone = deployed[0] - heads[0]  # the low-rank maps are merged into its weights
    assert deployed == [backbone + sum(heads[: i + 1]) for i in range(3)]
    assert all(each.train_seconds > 0 and each.eval_seconds > 0 for each in cost.experiences)
    assert len(cost.experiences) == 3
    assert record.manifest.backbone_sha256 == "random"


def test_the_paper_protocol_differs_where_it_says(cli, tmp_path):
    cli("run", "--methods", "ncm", *TINY, "--protocol", "paper")
    (path,) = (tmp_path / "results").glob(f"*/{RECORD_NAME}")
    protocol = read(path).config["protocol"]
    expected = {"name": "paper", "normalisation": "unit", "augmentation": "crop-flip", "schedule": "coda"}
    assert {key: protocol[key] for key in expected} == expected
    assert protocol["head_init"] == "default"


def test_prompts_chosen_by_batch_are_marked_in_record_and_report(cli, tmp_path):
    _, out, _ = cli("run", "--methods", "l2p,l2p:selection=batch", *TINY)
    records = [read(path) for path in (tmp_path / "results").rglob(RECORD_NAME)]
    marked = {r.method: any("task identity leaks" in w for w in r.manifest.warnings) for r in records}
    assert marked == {"l2p": False, "l2p:selection=batch": True}
    cli("report")
    report = (tmp_path / "results" / "report" / "report.md").read_text()
    for text in (out, report):
        flat = " ".join(text.split()).lower().replace("*", "")
        assert "warning: prompts were chosen by batch" in flat
        assert "task identity leaks into it (l2p:selection=batch)" in flat
        assert "test_batches=task" not in flat


def test_the_official_configuration_of_l2p_is_whole_and_its_leak_is_told(cli, tmp_path):
    paper = ("--protocol", "paper", "--backbone", "micro_vit_patch4_32.cifar100")
    _, out, _ = cli("run", "--methods", "l2p,l2p:length=5+top_k=5+pull=0.5+selection=sample", *TINY, *paper)
    records = {read(path).method: read(path) for path in (tmp_path / "results").rglob(RECORD_NAME)}
    code, text = records["l2p"], records["l2p:length=5+pull=0.5+selection=sample+top_k=5"]
    options = code.config["method"]["options"]
    official = {
        "length": 10,
        "top_k": 4,
        "pull": 1.0,
        "selection": "batch",
        "vote_size": 16,
        "clip_over": "all",
    }
    assert {name: options[name] for name in official} == official
    for record, leaks in ((code, True), (text, False)):
        assert any("test_batches=task" in warning for warning in record.manifest.warnings) == leaks
        assert any("selection=batch" in warning for warning in record.manifest.warnings) == leaks
        assert any("clip_over=all" in warning for warning in record.manifest.warnings)
    flat = " ".join(out.split())
    assert "every test batch was of one task" in flat
    assert "(clip_over=all)" in flat


def test_validation_never_opens_the_test_images(cli, tmp_path):
    cli("run", "--methods", "ncm", *TINY, "--eval-on", "validation")
    cli("run", "--methods", "ncm", *TINY)
    records = [read(path) for path in (tmp_path / "results").glob(f"*/{RECORD_NAME}")]
    assert len({r.manifest.split_sha256 for r in records}) == 2
    assert {r.config["eval_on"] for r in records} == {"test", "validation"}


def test_list_shows_what_exists_and_whether_its_data_are_here(cli):
    status, out, _ = cli("list", "--json")
    assert status == 0
    components = {item["name"]: item for item in json.loads(out)}
    assert {"finetune", "linear-probe", "ncm", "joint", "digits", "cifar100"} <= set(components)
    assert "not on this machine" in components["cifar100"]["data"]
    assert "path=FOLDER" in components["image-folder"]["data"]
    assert components["digits-domains"]["scenarios"] == ["domain-incremental", "class-incremental"]
    assert components["ncm"]["scenarios"] is None
    text = cli("list")[1]
    assert "digits" in text
    assert "scenarios: domain-incremental (default), class-incremental" in text


HEAVY = {"torch", "timm", "avalanche", "torchvision", "sklearn", "pandas", "matplotlib", "seaborn", "scipy"}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["list"], ["report", "--help"], ["run", "--methods", "x"]]
)
def test_starting_up_imports_nothing_heavy(arguments, tmp_path):
    code = (
        "import sys; from bench.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        f"print('HEAVY', sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip().splitlines()[-1] == "HEAVY []"


def test_doctor_reports_what_is_here_and_downloads_nothing(cli, no_network):
    status, out, _ = cli("doctor")
    assert status == 0
    for words in (
        "torch ",
        "packaged, intact",
        "benchmark cifar100: not on this machine",
        "augreg_in21k: not on",
    ):
        assert words in out


def test_doctor_shows_the_size_of_the_decoded_images_and_how_to_empty_it(cli, tmp_path):
    assert "decoded images" not in cli("doctor")[1]
    folder = tmp_path / "data" / "decoded"
    folder.mkdir(parents=True)
    (folder / "0.npy").write_bytes(bytes(3 * 2**20))
    (folder / ".decoding-0").write_bytes(bytes(2**19))
    out = cli("doctor")[1]
    assert f"decoded images: 3.5 MiB in 2 files; to empty it, delete the folder {folder}" in out


def test_broken_images_are_named_before_training_starts(cli, tmp_path):
    for label in ("cat", "dog"):
        for i in range(5):
            path = tmp_path / "pets" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(path)
    broken = tmp_path / "pets" / "dog" / "3.png"
    broken.write_bytes(broken.read_bytes()[:100])
    arguments = ("run", "--methods", "ncm", *TINY, "--benchmarks", "image-folder:path=pets", "--tasks", "2")
    arguments += ("--backbone", MICRO_NAME, "--image-size", "32")
    status, _, err = cli(*arguments)
    assert status == 2
    assert str(broken) in err
    assert not (tmp_path / "results").exists()
    broken.unlink()
    assert cli(*arguments)[0] == 0


@pytest.mark.parametrize("name", ["a+b", "a,b", "2024-01-05", "8", "true", "a=b", "bob's"])
def test_a_folder_of_any_name_can_be_given(name, cli, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(24):
        folder = tmp_path / name / f"class {number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{number}.png")
    small = ("--tasks", "2", "--image-size", "32", "--backbone", MICRO_NAME, "--dry-run", "--methods", "ncm")
    quoted = f'"{name}"'
    benchmark = f"image-folder:path={quoted}"
    status, out, err = cli("run", "--benchmarks", benchmark, *small, *TINY)
    assert (status, err) == (0, "")
    assert "1 to run" in out
    status, again, _ = cli(
        "run", "--benchmarks", "image-folder", "--set", f"image-folder.path={name}", *small, *TINY
    )
    assert (status, again) == (0, out)
    status, again, _ = cli("run", "--config", str(_config(tmp_path, name)), *small, *TINY)
    assert (status, again) == (0, out)


def _config(folder: Path, name: str) -> Path:
    path = folder / "grid.toml"
    path.write_text(f'benchmarks = ["image-folder"]\n[set]\nimage-folder.path = "{name}"\n')
    return path


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry run"])
def test_a_method_that_does_not_fit_the_backbone_is_refused_before_anything_is_run(dry, cli, tmp_path):
    grid = ("--methods", "ncm,duallora", "--backbone", "test_vit2.r160_in1k", "--image-size", "160")
    status, out, err = cli("run", *grid, *dry, *TINY)
    assert status == 2
    assert (
        "duallora on the backbone test_vit2.r160_in1k cannot be used: duallora reads the class token" in err
    )
    assert out == ""
    assert not (tmp_path / "results").exists()
