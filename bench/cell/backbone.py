"""Backbones: their weights, the normalisation of their input, and the packaged micro ViT.

A backbone is named by its full timm tag. The name of an architecture alone is refused, because timm has
changed the weights behind such names between versions.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from bench.storage import expanded
from methods.errors import MissingError, UsageError, abbreviate, unknown

DEFAULT_BACKBONE = "vit_base_patch16_224.augreg_in21k"

MICRO_NAME = "micro_vit_patch4_32.cifar100"
MICRO_ARCHITECTURE = {"img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4}
MICRO_WEIGHTS = Path(__file__).parents[1] / "weights" / f"{MICRO_NAME}.safetensors"

#: Benchmarks whose training images a backbone was pre-trained on: a cell that uses both is contaminated.
PRETRAINED_ON = {MICRO_NAME: ("cifar100",)}

#: How the names of weights begin that google-research/vision_transformer trained, in JAX; those of augreg2
#: were trained further with timm, whose GELU is exact.
FROM_JAX = ("orig_in", "augreg_in", "sam_in")

RANDOM = "random"
HUB_FILE = "model.safetensors"
HUB_SECONDS = 5.0


@dataclass(frozen=True)
class Backbone:
    """A backbone whose weights were located.

    Attributes:
        weights: their file; None for random weights.
        sha256: hash of that file, or "random".
        mean, std: the input normalisation that the weights were trained with, per channel.
    """

    tag: str
    weights: Path | None
    sha256: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def warnings(self, benchmark: str) -> tuple[str, ...]:
        """Warnings that qualify results obtained with this backbone."""
        warnings = []
        if self.weights is None:
            warnings.append("random weights: the backbone was not pre-trained")
        if self.weights is not None and benchmark in PRETRAINED_ON.get(self.tag, ()):
            warnings.append(f"contaminated: {self.tag} was pre-trained on the training images of {benchmark}")
        return tuple(warnings)


def resolve(tag: str, weights: str | None, roots: Sequence[Path]) -> Backbone:
    """Find the weights of `tag` and their normalisation.

    Args:
        tag: a full timm tag, or `MICRO_NAME`.
        weights: a file, "random", or None to search for them.
        roots: data roots; `<root>/weights/<tag>.safetensors` is searched for in each, then in the model hub.

    Raises:
        UsageError: for an unknown or ambiguous tag, or a file that does not hold weights.
        MissingError: if the weights are not found.
    """
    mean, std = _normalisation(tag)
    if weights == RANDOM:
        return Backbone(tag, None, RANDOM, mean, std)
    path = local_weights(tag, weights, roots) or _download(tag, roots)
    return Backbone(tag, path, sha256_of(path), mean, std)


def build(backbone: Backbone, image_size: int, gelu: str = "backbone") -> Any:
    """A timm VisionTransformer for square inputs of `image_size`, without a classifier.

    timm resamples the position embeddings if the size is not the native one.

    Args:
        gelu: see `Protocol.gelu`.

    Raises:
        UsageError: if the size or the activation does not suit the architecture, or the weights belong to
            another one.
    """
    model = _architecture(backbone.tag, image_size)
    _check_size(backbone.tag, model, image_size)
    if backbone.weights is not None:
        _load(model, backbone)
    if gelu == "tanh":
        approximate_gelu(backbone.tag, model)
    return model.eval()


def approximate_gelu(tag: str, model: Any) -> None:
    """Have every GELU of `model` computed by tanh, as `flax.linen.gelu` does by default, in place.

    Raises:
        UsageError: if it has no GELU.
    """
    from torch.nn import GELU

    activations = [module for module in model.modules() if isinstance(module, GELU)]
    if not activations:
        raise UsageError(f"protocol.gelu is tanh, but {tag} has no GELU; legal for it: backbone")
    for activation in activations:
        activation.approximate = "tanh"


def is_from_jax(tag: str) -> bool:
    """Whether the weights were trained in JAX, whose GELU is the approximation by tanh."""
    _, _, variant = tag.partition(".")
    return variant.startswith(FROM_JAX)


@cache
def sha256_of(path: Path) -> str:
    """sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def micro_card() -> dict[str, Any]:
    """The card of the packaged micro ViT: its training data, its recipe and its accuracies."""
    card: dict[str, Any] = json.loads(MICRO_WEIGHTS.with_suffix(".json").read_text())
    return card


def _normalisation(tag: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    if tag == MICRO_NAME:
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    config = _timm_config(tag)
    return config.mean, config.std


def _timm_config(tag: str) -> Any:
    import timm

    architecture, _, variant = tag.partition(".")
    tags = timm.list_pretrained(f"{architecture}.*") if timm.is_model(architecture) else []
    if not variant and tags:
        raise UsageError(
            f"backbone '{tag}' is ambiguous: timm has changed the weights behind this name; "
            f"give the full tag, one of: {', '.join(tags)}"
        )
    if tag not in tags:
        raise unknown("backbone", tag, [MICRO_NAME, *(tags or timm.list_pretrained("vit_*"))][:400])
    return timm.get_pretrained_cfg(tag)


def local_weights(tag: str, weights: str | None, roots: Sequence[Path]) -> Path | None:
    """The weights file on this machine: `weights`, the packaged one, in a data root or in the hub's cache.

    Raises:
        MissingError: if `weights` names a file that does not exist.
    """
    if weights is not None:
        path = expanded(Path(weights))
        if not path.is_file():
            raise MissingError(
                f"weights file '{path}' does not exist; check --weights, or say --weights random"
            )
        return path
    if tag == MICRO_NAME:
        return MICRO_WEIGHTS
    files = (path for path in _candidates(tag, roots) if path.is_file())
    return next(files, None) or _in_hub_cache(tag)


def _candidates(tag: str, roots: Sequence[Path]) -> list[Path]:
    return [root / "weights" / f"{tag}.safetensors" for root in roots]


def _in_hub_cache(tag: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(_timm_config(tag).hf_hub_id, HUB_FILE)
    return Path(path) if isinstance(path, str) else None


def _download(tag: str, roots: Sequence[Path]) -> Path:
    from huggingface_hub import constants, hf_hub_download

    repository = _timm_config(tag).hf_hub_id
    try:
        # Without a network the hub's client retries for half a minute; check the connection first.
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_SECONDS).close()
        return Path(hf_hub_download(repository, HUB_FILE))
    except Exception as error:  # the client raises many unrelated types
        raise MissingError(
            f"no weights for {tag}: not at {', '.join(map(str, _candidates(tag, roots)))}, and the download "
            f"from the model hub failed ({type(error).__name__}). Put timm's safetensors file there, or give "
            f"--weights FILE; where there is a network: hf download {repository} {HUB_FILE}"
        ) from None


def _architecture(tag: str, image_size: int) -> Any:
    import timm
    from timm.models.vision_transformer import VisionTransformer

    try:
        if tag == MICRO_NAME:
            return VisionTransformer(**{**MICRO_ARCHITECTURE, "img_size": image_size}, num_classes=0)
        model = timm.create_model(tag, pretrained=False, num_classes=0, img_size=image_size)
    except (AssertionError, TypeError) as error:
        raise UsageError(f"cannot build {tag} at image size {image_size}: {error}") from None
    if not isinstance(model, VisionTransformer):
        raise UsageError(f"backbone '{tag}' is a {type(model).__name__}; legal: timm's vit_* models")
    return model


def _check_size(tag: str, model: Any, image_size: int) -> None:
    patch = model.patch_embed.patch_size[0]
    if image_size < patch or image_size % patch:
        raise UsageError(
            f"image size {image_size} does not suit {tag}: legal are multiples of its patch size, {patch}"
        )


def _load(model: Any, backbone: Backbone) -> None:
    from timm.models.vision_transformer import checkpoint_filter_fn

    assert backbone.weights is not None
    tensors = _without_wrapper(_read_tensors(backbone.weights))
    state = {k: v.float() for k, v in tensors.items() if not k.startswith("head")}
    expected = {k: v.shape for k, v in model.state_dict().items()}
    flexible = {"pos_embed"}
    differing = sorted(state.keys() ^ expected.keys()) + sorted(
        k for k in state.keys() & expected.keys() - flexible if state[k].shape != expected[k]
    )
    if differing:
        raise UsageError(
            f"{backbone.weights} holds weights of another architecture than {backbone.tag}: "
            f"{len(differing)} tensors differ, first {', '.join(differing[:3])}; give the matching --backbone"
        )
    _check_finite(backbone.weights, state)
    model.load_state_dict(checkpoint_filter_fn(state, model))


def _read_tensors(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, by name.

    Raises:
        UsageError: if it is none; for a file of `torch.save`, with the command that converts it.
    """
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except Exception as error:  # safetensors' own error type is not public
        problem = (
            _conversion(path) if _is_torch_file(path) else f"is not a readable safetensors file: {error}"
        )
        raise UsageError(f"{path} {problem}") from None


def _is_torch_file(path: Path) -> bool:
    """Whether `torch.save` wrote it: an archive with a pickle in it or, before torch 1.6, a pickle."""
    with path.open("rb") as file:
        start = file.read(2)
    if not zipfile.is_zipfile(path):
        return start == b"\x80\x02"
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("data.pkl") for name in archive.namelist())


def _conversion(path: Path) -> str:
    target = path.with_suffix(".safetensors")
    return (
        "is a file of torch.save, and safetensors are needed; convert it with: "
        'python -c "import torch, safetensors.torch as s; '
        f"w = torch.load('{path}', map_location='cpu', weights_only=True); "
        "w = w.get('model', w.get('state_dict', w)); "
        f"s.save_file({{k: v.clone() for k, v in w.items()}}, '{target}')\""
    )


def _without_wrapper(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors by their names in the model itself.

    DataParallel puts "module." before each name, torch.compile "_orig_mod.", a training script perhaps
    "model."; a ViT has no part in which all its tensors are.
    """
    first = next(iter(tensors), "").partition(".")[0] + "."
    if not all(name.startswith(first) for name in tensors):
        return dict(tensors)
    inner = {name.removeprefix(first): tensor for name, tensor in tensors.items()}
    return _without_wrapper(inner) if inner else {}


def _check_finite(path: Path, state: Mapping[str, Any]) -> None:
    broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        raise UsageError(
            f"{path} holds numbers that are not finite, in {len(broken)} of {len(state)} tensors: "
            f"{abbreviate(sorted(broken), 3)}; get an intact file, whose checksum is its publisher's"
        )
