"""A method author's types: the attributes of a strategy, the callbacks, and hyper-parameters by class."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from bench.cell.strategy import Strategy
from methods import strategy as strategies
from methods.base import Method
from methods.errors import UsageError
from methods.hyper import STRICT, Hyper, hyper
from methods.strategy import ExperienceLike, Plugin, StrategyLike
from tests.conftest import tiny_vit
from tests.methods.conftest import copy_of, learner, stream

FILES = sorted(Path(strategies.__file__).parent.glob("*.py"))


def is_public(name: str) -> bool:
    return not name.startswith("_") or (name.startswith("__") and name.endswith("__"))


def annotations(scope: ast.Module | ast.ClassDef, owner: str) -> Iterator[tuple[str, ast.expr]]:
    """The annotations of the public functions, methods and attributes of a module, by their names."""
    for node in scope.body:
        match node:
            case ast.ClassDef() if is_public(node.name):
                yield from annotations(node, f"{owner}.{node.name}")
            case ast.FunctionDef() if is_public(node.name):
                yield from signature(node, f"{owner}.{node.name}")
            case ast.AnnAssign(target=ast.Name(id=name)) if is_public(name):
                yield f"{owner}.{name}", node.annotation


def signature(function: ast.FunctionDef, name: str) -> Iterator[tuple[str, ast.expr]]:
    """The annotations of parameters, of the result, and of the public attributes that the function sets."""
    args = function.args
    named = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
    yield from ((f"{name}({arg.arg})", arg.annotation) for arg in named if arg and arg.annotation)
    if function.returns:
        yield f"{name}()", function.returns
    for node in ast.walk(function):
        match node:
            case ast.AnnAssign(target=ast.Attribute(attr=attribute)) if is_public(attribute):
                yield f"{name}: {attribute}", node.annotation


def mentions_any(annotation: ast.expr) -> bool:
    return any(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(annotation))


def test_the_scan_finds_every_place_where_any_could_stand():
    source = """
x: Any
class A:
    y: list[Any]
    def f(self, a: Any, *b: Any, c: int, **d: Any) -> Any:
        self.z: dict[str, Any] = {}
    def _private(self, a: Any) -> None: ...
class _Hidden:
    y: Any
def g(a: str) -> str: ...
"""
    found = {name for name, annotation in annotations(ast.parse(source), "m") if mentions_any(annotation)}
    assert found == {"m.x", "m.A.y", "m.A.f(a)", "m.A.f(b)", "m.A.f(d)", "m.A.f()", "m.A.f: z"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_public_signature_leaves_a_type_open(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [name for name, annotation in annotations(tree, path.stem) if mentions_any(annotation)] == []


# ---- the strategy --------------------------------------------------------------------------------


def members(protocol: type) -> set[str]:
    declared = {*vars(protocol), *protocol.__annotations__}
    return {name for name in declared if not name.startswith("_")}


def attributes_of_strategies() -> set[str]:
    """What the methods read or write of `strategy`, in the source text."""
    nodes = [node for path in FILES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    reads = [node for node in nodes if isinstance(node, ast.Attribute)]
    return {node.attr for node in reads if isinstance(node.value, ast.Name) and node.value.id == "strategy"}


def test_the_protocol_declares_every_attribute_that_a_method_uses():
    used = attributes_of_strategies()
    assert {"model", "optimizer", "experience", "mb_output", "loss"} <= used
    assert used <= members(StrategyLike)


class Reader(Plugin):
    """Looks up every attribute of the protocols in every iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.missing: set[str] = set()
        self.iterations = {"train": 0, "eval": 0}

    def read(self, strategy: Any, phase: str) -> None:
        self.iterations[phase] += 1
        for owner, protocol in ((strategy, StrategyLike), (strategy.experience, ExperienceLike)):
            self.missing |= {name for name in members(protocol) if not hasattr(owner, name)}
        assert isinstance(strategy.device, torch.device)
        assert all(isinstance(t, Tensor) for t in (strategy.mb_x, strategy.mb_y, strategy.mb_output))
        assert len(strategy.adapted_dataset.eval()) == len(strategy.adapted_dataset) > 0

    def after_training_iteration(self, strategy, *args, **kwargs):
        self.read(strategy, "train")
        assert strategy.loss.numel() == 1

    def after_eval_iteration(self, strategy, *args, **kwargs):
        self.read(strategy, "eval")


def collate(items: Any) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, *_ in items]), torch.tensor([y for _, y, *_ in items])


def harness(model: Any, method: Method, plugins: list[Any]) -> Strategy:
    return Strategy(
        model=model,
        optimizer=method.make_optimizer(model.parameters()),
        train_collate=collate,
        eval_collate=collate,
        statistics_collate=collate,
        order=torch.Generator().manual_seed(0),
        precision="fp32",
        train_mb_size=12,
        eval_mb_size=32,
        plugins=[method, *plugins],
    )


@pytest.mark.parametrize("make", [learner, harness], ids=["Avalanche's own", "of the harness"])
def test_strategies_have_every_attribute_of_the_protocol(make):
    reader, benchmark = Reader(), stream()
    strategy = make(tiny_vit(), Method(), [reader])
    strategy.train(benchmark.train_stream[0])
    strategy.eval([benchmark.test_stream[0]])
    assert min(reader.iterations.values()) > 0
    assert reader.missing == set()


def test_the_plugin_declares_the_callbacks_that_avalanche_has():
    callbacks = {name for name in dir(SupervisedPlugin) if name.startswith(("before_", "after_"))}
    assert len(callbacks) > 20
    assert {name for name in vars(Plugin) if name.startswith(("before_", "after_"))} == callbacks


# ---- hyper-parameters ----------------------------------------------------------------------------


@dataclass(frozen=True, config=STRICT)
class PenaltyHyper(Hyper):
    """A learning rate, and the weight of a penalty."""

    strength: float = hyper(0.5, "weight of the penalty on the head", source="this test", ge=0)


class Plain(Method):
    """As an author without types writes it."""

    Hyper = PenaltyHyper

    def before_backward(self, strategy, **kwargs):
        strategy.loss += self.hyper.strength * penalty(strategy.model)


class Typed(Method[PenaltyHyper]):
    """As an author with types writes it."""

    Hyper = PenaltyHyper

    def before_backward(self, strategy: StrategyLike, **kwargs: object) -> None:
        strategy.loss = strategy.loss + self.hyper.strength * penalty(strategy.model)


def penalty(model: Any) -> Tensor:
    return (model.head.tasks[-1].weight - 1).square().sum()


def learnt(cls: type[Method], **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model: nn.Module = tiny_vit()
    learner(model, cls(**options), epochs=1).train(stream().train_stream[0])
    return copy_of(model)


def test_a_method_runs_the_same_with_and_without_the_class_of_its_hyper_parameters():
    plain, typed, without = learnt(Plain), learnt(Typed), learnt(Plain, strength=0.0)
    assert all(torch.equal(plain[name], typed[name]) for name in plain)
    assert not torch.equal(plain["head.tasks.0.weight"], without["head.tasks.0.weight"])


@pytest.mark.parametrize("cls", [Plain, Typed])
def test_hyper_parameters_are_of_the_class_that_the_method_names(cls):
    assert cls(strength=2).hyper == PenaltyHyper(strength=2.0)
    with pytest.raises(UsageError, match=r"strength .*, got -1"):
        cls(strength=-1)
    with pytest.raises(UsageError, match="did you mean 'strength'"):
        cls(strenght=1)
