"""What a record is valid for: the content of the images, wherever they are; not their names alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.cell import resume
from bench.cell.backbone import MICRO_NAME
from bench.cell.inputs import Inputs, paths_from
from bench.cell.progress import ignore
from bench.cell.runner import run_cell
from bench.grid.plan import plan
from bench.record import RECORD_NAME, Record, read
from bench.spec import Cell, settings_from
from tests.bench.cell.conftest import CONTEXT
from tests.bench.in_process import saving

CLASSES = ("ant", "bee", "cat", "dog")


def noise(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Four classes of six images."""
    for label, name in enumerate(CLASSES):
        for number in range(6):
            noise(tmp_path / "pets" / name / f"{number}.png", 10 * label + number)
    return tmp_path / "pets"


def turn_grey(folder: Path) -> None:
    """Overwrite every image under its name."""
    for path in folder.rglob("*.png"):
        Image.new("RGB", (20, 20), (128, 128, 128)).save(path)


def arguments(path: str, *methods: str) -> list[str]:
    return [
        "run",
        *("--methods", ",".join(methods or ["ncm"]), "--benchmarks", f"image-folder:path={path}"),
        *("--backbone", MICRO_NAME, "--image-size", "32", "--weights", "random"),
        *("--scale", "smoke", "--seeds", "0", "--tasks", "2"),
    ]


def records(folder: Path) -> dict[str, Record]:
    return {path.parent.name: read(path) for path in folder.glob(f"*/{RECORD_NAME}")}


def test_images_overwritten_under_their_names_are_other_cells(
    cli: Callable[..., Any], pets: Path, tmp_path: Path
) -> None:
    cli(*arguments("pets"))
    before = records(tmp_path / "results")
    turn_grey(pets)
    status, out, _ = cli(*arguments("pets"))
    assert status == 0
    assert "0 done before, 1 to run" in out
    assert "the images of image-folder:path=pets have changed since 1 record" in out
    assert "(same names, other content, or changes" in out
    after = records(tmp_path / "results")
    assert len(after) == 2
    assert before.items() < after.items()  # the record of the other images is as it was
    status, out, _ = cli(*arguments("pets"))
    assert "1 done before, 0 to run" in out
    assert "have changed" not in out


def test_a_dry_run_says_what_has_changed(cli: Callable[..., Any], pets: Path) -> None:
    cli(*arguments("pets"))
    (pets / "ant" / "5.png").rename(pets / "ant" / "6.png")
    out = cli(*arguments("pets"), "--dry-run")[1]
    assert "have changed since 1 record" in out
    assert "images were added, removed, renamed or moved" in out
    assert "(image-folder:path=pets)" in out  # the id has no place in it


def test_an_interrupted_cell_does_not_go_on_with_other_images(
    cli: Callable[..., Any], pets: Path, tmp_path: Path
) -> None:
    def stop_after_saving(*saved: Any) -> None:
        resume.save(*saved)
        raise KeyboardInterrupt

    cli(*arguments("pets", "linear-probe"), executors=saving(stop_after_saving))
    turn_grey(pets)
    out = cli(*arguments("pets", "linear-probe"))[1]
    assert "have changed since 1 record" in out
    (done,) = [record for record in records(tmp_path / "results").values() if record.done]
    assert done.manifest.resumed == []


@pytest.mark.parametrize("elsewhere", ["pets2", "other/pets"])
def test_the_same_images_by_another_path_are_the_same_cell(
    elsewhere: str, cli: Callable[..., Any], pets: Path, tmp_path: Path
) -> None:
    cli(*arguments("pets"))
    shutil.copytree(pets, tmp_path / elsewhere)
    shutil.rmtree(pets)
    assert "1 done before, 0 to run" in cli(*arguments(elsewhere))[1]
    assert "1 done before, 0 to run" in cli(*arguments(str(tmp_path / elsewhere)))[1]


def test_two_paths_of_the_same_images_in_one_grid_are_refused(
    cli: Callable[..., Any], pets: Path, tmp_path: Path
) -> None:
    shutil.copytree(pets, tmp_path / "copy")
    both = [*arguments("pets"), "--benchmarks", "image-folder:path=pets,image-folder:path=copy"]
    status, _, err = cli(*both)
    assert status == 2
    assert "two folders hold the same images" in err


def test_a_report_shows_the_same_images_in_one_table(
    cli: Callable[..., Any], pets: Path, tmp_path: Path
) -> None:
    cli(*arguments("pets"))
    pets.rename(tmp_path / "animals")
    cli(*arguments(str(tmp_path / "animals"), "linear-probe"))
    cli("report")
    report = (tmp_path / "results" / "report" / "report.md").read_text()
    tables = [line for line in report.splitlines() if line.startswith("## ") and "image-folder" in line]
    assert len(tables) == 1, tables
    assert "image-folder:path=animals" in tables[0]  # the first of the two names; not the whole path


def planned(pets: Path, results: Path) -> tuple[Cell, Inputs]:
    settings = settings_from(
        {
            "methods": ("ncm",),
            "benchmarks": (f"image-folder:path={pets}",),
            "seeds": (0,),
            "tasks": 2,
            "scale": "smoke",
            "weights": "random",
            "backbone": MICRO_NAME,
            "image_size": 32,
            "results": results,
            "data_root": results.parent / "data",
        }
    )
    inputs = Inputs(paths_from(settings))
    (item,) = plan(settings, "cpu", inputs, skip_missing=False)
    return item.cell, inputs


def test_a_worker_that_has_other_images_under_these_names_says_so(pets: Path, tmp_path: Path) -> None:
    cell, inputs = planned(pets, tmp_path / "results")
    noise(pets / "bee" / "3.png", 99)
    record = run_cell(cell, inputs.paths, CONTEXT, ignore).record
    assert record.status == "failed"
    assert "the images of image-folder:path=pets have other content here" in (record.reason or "")
    assert (cell.data_sha256 or "none")[:12] in (record.reason or "")


def test_a_worker_that_has_other_files_says_so(pets: Path, tmp_path: Path) -> None:
    cell, inputs = planned(pets, tmp_path / "results")
    (pets / "bee" / "3.png").rename(pets / "bee" / "7.png")
    record = run_cell(cell, inputs.paths, CONTEXT, ignore).record
    assert record.status == "failed"
    assert "other images" in (record.reason or "")


def test_the_record_has_the_hash_of_what_was_learnt_from(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of what is there when the cell ends."""
    cell, inputs = planned(pets, tmp_path / "results")

    def save(*saved: Any) -> None:
        turn_grey(pets)

    record = run_cell(cell, inputs.paths, CONTEXT, ignore, save).record
    assert record.done
    assert record.manifest.data_sha256 == cell.data_sha256


def test_what_is_embedded_or_has_a_published_checksum_is_the_cell_that_it_was(tmp_path: Path) -> None:
    settings = settings_from({"methods": ("ncm",), "benchmarks": ("digits",), "seeds": (0,)})
    inputs = Inputs(paths_from(settings))
    (item,) = plan(settings, "cpu", inputs, skip_missing=False)
    assert item.cell.data_sha256 is None
    assert item.cell.places == ()


def test_copies_and_files_left_out_are_told_in_plan_record_and_report(
    cli: Callable[..., Any], pets: Path, tmp_path: Path
) -> None:
    shutil.copytree(pets, tmp_path / "both" / "train")
    shutil.copytree(pets, tmp_path / "both" / "test")
    (tmp_path / "both" / "train" / "ant" / "boxes.txt").write_text("0 0 1 1")
    dry = cli(*arguments("both"), "--dry-run")[1]
    status, out, _ = cli(*arguments("both"))
    assert status == 0
    cli("report")
    report = (tmp_path / "results" / "report" / "report.md").read_text()
    (record,) = records(tmp_path / "results").values()
    for words in (
        "48 images are used; left out: 1 not named like images (.txt 1)",
        "test images are trained on, too",
    ):
        assert words in dry
        assert words in out
        assert any(words in warning for warning in record.manifest.warnings)
        assert words in report
