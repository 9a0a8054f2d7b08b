"""A method in Avalanche's own strategy, on three experiences: of two classes each, or of a domain each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from avalanche.benchmarks import (
    benchmark_from_datasets,
    class_incremental_benchmark,
    with_classes_timeline,
)
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.supervised import Naive
from torch.utils.data import TensorDataset

from methods.base import Method
from methods.registry import METHODS
from tests.conftest import CLASSES, deep_vit, synthetic

ORDER = [4, 1, 0, 5, 3, 2]

#: Full fine-tuning, at a rate at which a ViT with random weights learns in a few steps.
FULL = "finetune:adapter=full+full_lr=0.001"

#: What may stand in place of LoRA's maps; a dose at which the few steps of the stream leave some gates.
SORA, CLORA = ADAPTERS = (
    "finetune:adapter=sora+gate_init=normal+dose=0.3+lr=0.002",
    "finetune:adapter=clora",
)

#: As the official code of L2P and DualPrompt: the norm for clipping is over all gradients, and images vote.
OFFICIAL = (
    "l2p:clip_over=all+selection=batch+vote_size=4",
    "dualprompt:clip_over=all+selection=batch+vote_size=4",
)

#: The readings of "the old path gives no gradient" beside the default.
ROUTED = ("c-lora:old_path=live", "c-lora:old_path=full")


class Spy(SupervisedPlugin):
    """Records, for every experience, what the contract tests compare."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[list[float]] = []
        self.in_optimizer: list[set[int]] = []
        self.require_grad: list[set[int]] = []
        self.fresh: list[bool] = []
        self.evaluated: list[torch.Tensor] = []

    def before_training_exp(self, strategy, *args, **kwargs):
        self.losses.append([])
        self.in_optimizer.append({id(p) for g in strategy.optimizer.param_groups for p in g["params"]})
        self.require_grad.append({id(p) for p in strategy.model.parameters() if p.requires_grad})
        self.fresh.append(not strategy.optimizer.state)

    def after_training_iteration(self, strategy, *args, **kwargs):
        self.losses[-1].append(strategy.loss.item())

    def after_eval_iteration(self, strategy, *args, **kwargs):
        self.evaluated.append(strategy.mb_output.clone())


def make(case: str, **options: Any) -> Method:
    """The method of a case, as on the command line: its name, or name:option=value+option=value."""
    name, _, variant = case.partition(":")
    return METHODS[name].load()(**dict(part.split("=") for part in variant.split("+") if part), **options)


class Run:
    """One method trained on the synthetic stream; `after` holds the model's tensors after each experience."""

    def __init__(
        self,
        name: str,
        *,
        epochs: int = 8,
        seed: int = 0,
        plugins: Sequence[Any] = (),
        experiences: int = CLASSES // 2,
        vit: Callable[[], Any] = deep_vit,
        make_stream: Callable[[], Any] | None = None,
        **options: Any,
    ) -> None:
        self.benchmark, self.epochs = (make_stream or stream)(), epochs
        self.model = vit()
        self.before = copy_of(self.model)
        torch.manual_seed(seed)
        self.case = name
        self.method, self.spy = make(name, **options), Spy()
        self.strategy = learner(self.model, self.method, [*plugins, self.spy], epochs=epochs)
        self.after: list[dict[str, torch.Tensor]] = []
        for i in range(experiences):
            self.learn(i)

    def learn(self, i: int) -> None:
        """Train on experience i."""
        self.strategy.train(self.benchmark.train_stream[i])
        self.after.append(copy_of(self.model))
        self.model.eval()

    def resume(self) -> None:
        """Go on with a fresh method and a fresh model that have the state of the old ones."""
        state, self.model = self.method.state(), deep_vit()
        self.method = make(self.case)
        self.method.restore(self.model, state)
        self.strategy = learner(self.model, self.method, [self.spy], epochs=self.epochs)


def stream(augment: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Any:
    """The synthetic stream, as an Avalanche benchmark; `augment` is applied to images that are trained on."""
    images, labels = synthetic()
    data = TensorDataset(images, labels)
    data.targets = labels.tolist()
    groups = {"train": (augment, None), "eval": (None, None)}
    train = as_classification_dataset(data, transform_groups=groups)
    sets = {"train": train, "test": as_classification_dataset(data)}
    return class_incremental_benchmark(sets, num_experiences=CLASSES // 2, class_order=ORDER)


#: What is done to the images of each domain.
DOMAINS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    lambda x: x,
    lambda x: -x,
    lambda x: x.transpose(-1, -2),
)


def domains() -> Any:
    """A stream of three domains with all six classes each; test images of a domain are those it is taught."""
    images, labels = synthetic()
    sets = []
    for change in DOMAINS:
        data = TensorDataset(change(images), labels)
        data.targets = labels.tolist()
        sets.append(as_classification_dataset(data))
    return with_classes_timeline(benchmark_from_datasets(train=sets, test=sets))


#: The streams that every method is held to, by scenario.
STREAMS: dict[str, Callable[[], Any]] = {"class-incremental": stream, "domain-incremental": domains}


def learner(model: Any, method: Any, plugins: Sequence[Any] = (), *, epochs: int = 8) -> Naive:
    """Avalanche's own strategy with the method plugged in, before the other plugins."""
    return Naive(
        model=model,
        optimizer=method.make_optimizer(model.parameters()),
        train_mb_size=12,
        train_epochs=epochs,
        eval_mb_size=32,
        plugins=[method, *plugins],
        evaluator=None,
    )


def copy_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="session")
def trained() -> Callable[..., Run]:
    """Each method is trained once on each stream for all contract tests, which only look."""
    runs: dict[tuple[str, str], Run] = {}

    def run(name: str, scenario: str = "class-incremental") -> Run:
        if (name, scenario) not in runs:
            with torch.enable_grad():  # whatever the test that asks first is in
                runs[name, scenario] = Run(name, make_stream=STREAMS[scenario])
        return runs[name, scenario]

    return run


@pytest.fixture
def images() -> torch.Tensor:
    return synthetic(per_class=3, seed=1)[0]


@pytest.fixture
def labelled() -> tuple[Any, Any]:
    return synthetic(per_class=10, seed=1)
