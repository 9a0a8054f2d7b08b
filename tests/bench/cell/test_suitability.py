"""A method that cannot work with a backbone is refused in planning, in a sentence that names both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from bench.cell import suitability
from bench.cell.suitability import check_cells
from methods.errors import UsageError
from methods.ncm import Ncm
from methods.registry import METHODS
from tests.bench.cell.conftest import plan_cell

DISTILLED = "deit_tiny_distilled_patch16_224.fb_in1k"
PARALLEL = "vit_pwee_patch16_reg1_gap_256.sbb_in1k"
DIFFERENTIAL = "vit_dlittle_patch16_reg1_gap_256.sbb_nadamuon_in1k"
#: Random weights of timm's own test models: class token, mean, attention pooling.
FITTING = ["test_vit.r160_in1k", "test_vit2.r160_in1k", "test_vit3.r160_in1k"]


def check(method: str, tag: str, folder: Path, size: int = 160) -> None:
    cell, inputs = plan_cell(method, folder / "results", backbone=tag, image_size=size)
    check_cells([cell], inputs.build_backbone)


@pytest.mark.parametrize(
    ("tag", "size", "words"),
    [
        (DISTILLED, 224, "cannot open a VisionTransformerDistilled, which classifies in its own way"),
        (PARALLEL, 256, "cannot open a ParallelScalingBlock, in which attention is no part of its own"),
        (DIFFERENTIAL, 256, "cannot open a DiffAttention with parts"),
    ],
    ids=["distilled", "parallel", "differential"],
)
def test_a_backbone_that_cannot_be_opened_is_refused(tag: str, size: int, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"the backbone {tag} cannot be used: {words}"):
        check("ncm", tag, tmp_path, size)


@pytest.mark.parametrize("tag", FITTING)
@pytest.mark.parametrize("method", list(METHODS))
def test_methods_fit_every_pooling_or_say_what_they_need(method: str, tag: str, tmp_path: Path) -> None:
    if method not in ("duallora", "s-prompts") or tag == FITTING[0]:
        check(method, tag, tmp_path)
    else:
        with pytest.raises(
            UsageError, match=f"{method} on the backbone {tag} cannot be used: .* class token"
        ):
            check(method, tag, tmp_path)


def test_an_attention_that_computes_something_else_is_found_by_its_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(suitability.Plug):
        def attend(self, x: Any, q: Any, k: Any, v: Any) -> Any:
            return q, k, v.flip(2)

    monkeypatch.setattr(suitability, "Plug", Other)
    with pytest.raises(UsageError, match="computed in another way than timm's standard attention"):
        check("ncm", FITTING[0], tmp_path)


def test_logits_that_are_not_one_per_class_are_refused() -> None:
    class Nested(VisionTransformer):
        def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            return super().forward(x)[:, None]

    model = Nested(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=4, num_classes=5).eval()
    with pytest.raises(UsageError, match=r"gives \(1, 1, 2\) logits for an image of 2 classes"):
        suitability.check_opened(model, 16)


def test_an_error_of_any_type_names_the_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def adapt(self: Ncm, model: Any) -> None:
        model.no_such_part  # noqa: B018

    monkeypatch.setattr(Ncm, "adapt", adapt)
    with pytest.raises(UsageError, match=r"ncm on the backbone .* AttributeError: .*no_such_part.*leave the"):
        check("ncm", FITTING[0], tmp_path)


def test_each_pair_of_a_method_and_a_backbone_is_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    monkeypatch.setattr(suitability, "check_method", lambda cell, *_: tried.append(cell.method.label))
    cells = [
        plan_cell(m, tmp_path, seeds=(s,))[0] for s in (0, 1) for m in ("ncm", "finetune", "finetune:rank=2")
    ]
    check_cells(cells, plan_cell("ncm", tmp_path)[1].build_backbone)
    assert tried == ["ncm", "finetune", "finetune:rank=2"]


def test_a_check_leaves_the_gradients_of_the_process_as_they_were(tmp_path: Path) -> None:
    check("ncm", FITTING[0], tmp_path)
    assert torch.is_grad_enabled()
