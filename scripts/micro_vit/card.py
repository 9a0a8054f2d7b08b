"""Measure the packaged micro ViT and write its card, as JSON for programs and as Markdown for people.

.nox/env/bin/python -m scripts.micro_vit.card --data-root ~/.cache/duallora-bench --out bench/weights
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from bench.benchmarks.digits import Digits
from bench.benchmarks.loading import load_arrays
from bench.benchmarks.splits import class_order, class_stream, make_split
from bench.cell.backbone import MICRO_ARCHITECTURE, MICRO_NAME
from bench.cell.batches import central, unit
from methods.vit import embed
from scripts.micro_vit.train import Recipe, images

RANDOM_SEEDS = (0, 1, 2)


def trained(path: Path) -> VisionTransformer:
    """The network as packaged: weights stored in float16 and used in float32."""
    model = VisionTransformer(**MICRO_ARCHITECTURE, num_classes=100)
    model.load_state_dict({k: v.float() for k, v in load_file(str(path)).items()})
    return model.eval()


def untrained(seed: int) -> VisionTransformer:
    torch.manual_seed(seed)
    return VisionTransformer(**MICRO_ARCHITECTURE, num_classes=100).eval()


@torch.no_grad()
def accuracy(model: VisionTransformer, x: Tensor, y: Tensor) -> float:
    hits = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))
    return hits / len(y)


@torch.no_grad()
def features(model: VisionTransformer, pixels: np.ndarray) -> np.ndarray:
    """uint8 (n, H, W, 3) -> (n, D)."""
    x = central(unit(torch.from_numpy(pixels)), 1.0, 32) * 2 - 1
    return torch.cat([embed(model, batch) for batch in x.split(500)]).numpy()


def digits_probe(model: VisionTransformer) -> float:
    """Test accuracy of logistic regression on standardised frozen features, on the digits benchmark."""
    dataset = Digits(Digits.Options()).open([])
    stream = class_stream(dataset, class_order(len(dataset.classes), 0), 1)
    split = make_split(dataset, stream, scale=Digits.scales["full"], eval_on="test")
    data = load_arrays(dataset, split, 32, 1.0)
    scaler = StandardScaler().fit(features(model, data.train_x))
    probe = LogisticRegression(max_iter=5000)
    probe.fit(scaler.transform(features(model, data.train_x)), data.train_y)
    return float(probe.score(scaler.transform(features(model, data.test_x)), data.test_y))


def measure(path: Path, data_root: Path) -> dict[str, Any]:
    model = trained(path)
    return {
        "name": MICRO_NAME,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "architecture": MICRO_ARCHITECTURE,
        "normalisation": {"mean": 0.5, "std": 0.5},
        "pretrained_on": "CIFAR-100, its 50,000 training images and labels",
        "recipe": asdict(Recipe()),
        "cifar100_test_accuracy": accuracy(model, *images(data_root, train=False)),
        "digits_probe_accuracy": digits_probe(model),
        "digits_probe_accuracy_random_weights": [digits_probe(untrained(seed)) for seed in RANDOM_SEEDS],
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
    }


def markdown(card: dict[str, Any]) -> str:
    random = ", ".join(f"{100 * value:.1f} %" for value in card["digits_probe_accuracy_random_weights"])
    recipe = "\n".join(f"| {name} | {value} |" for name, value in card["recipe"].items())
    return f"""# {card["name"]}

A vision transformer small enough to be packaged: {card["parameters"]:,} parameters,
{MICRO_ARCHITECTURE["depth"]} blocks of width {MICRO_ARCHITECTURE["embed_dim"]}, 32-pixel input, patches of
{MICRO_ARCHITECTURE["patch_size"]} pixels; timm's `VisionTransformer`. Stored as float16, used as float32.

Written by `scripts/micro_vit/card.py`; the weights by `scripts/micro_vit/train.py`.

| what | value |
|---|---|
| sha256 | `{card["sha256"]}` |
| pre-trained on | {card["pretrained_on"]}, supervised |
| input | mean = std = 0.5 |
| CIFAR-100 test accuracy, 100 classes | {100 * card["cifar100_test_accuracy"]:.2f} % |
| linear probe on `digits`, test accuracy | {100 * card["digits_probe_accuracy"]:.1f} % |
| the same probe on random weights, seeds {", ".join(map(str, RANDOM_SEEDS))} | {random} |

**CIFAR-100 is what this network was trained on.** A `cifar100` cell that uses it is contaminated: the record
and the report say so, and its numbers say nothing about a method.

The probe is logistic regression on standardised class-token features, trained and tested on the split of the
`digits` benchmark.

## Recipe

| setting | value |
|---|---|
{recipe}

AdamW, cosine to zero, random flips and shifts, bfloat16 autocast. No weight averaging.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("bench/weights"))
    args = parser.parse_args()
    card = measure(args.out / f"{MICRO_NAME}.safetensors", args.data_root)
    (args.out / f"{MICRO_NAME}.json").write_text(json.dumps(card, indent=2) + "\n")
    (args.out / "README.md").write_text(markdown(card))
    print(markdown(card))


if __name__ == "__main__":
    main()
