"""What every method shares: how a plugin takes hold of a ViT, of the optimiser and of the loss.

A method is an Avalanche `SupervisedPlugin` that is complete in itself. At the first experience it
freezes the model, opens the seams and replaces the classifier (`attach`). At every experience it adds
a head for the new classes and its own parts (`grow`), makes the trainable parameters the whole content
of the optimiser, with fresh state, and restricts the loss to the current classes. Afterwards
`model(x)` in eval mode is the whole inference, over all classes seen, without a task id.

A new method subclasses `Method`, sets `Hyper`, and overrides what it needs of `adapt`, `grow`,
`begin`, `end`; its extra loss goes into Avalanche's `before_backward`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from avalanche.training.plugins import SupervisedPlugin
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from methods.errors import UsageError
from methods.head import ClassHead, HeadInit, mask_logits
from methods.hyper import Hyper, make_hyper
from methods.vit import open_seams

MEMORY = "memory."

#: A number, None where it is not defined, a list with a number for each block, or a table: a line for each
#: experience whose test images were just evaluated, a column for each prompt or what else they were given.
Finding = float | list[float] | list[list[float]] | None


class Method(SupervisedPlugin):  # type: ignore[misc]
    """Base of all methods.

    Args:
        head_init: how new heads start; "zero" is this project's choice for all methods alike.
        **hyper: hyper-parameters by name; what is left out has the default of `Hyper`.

    Raises:
        UsageError: for a hyper-parameter that does not exist or has no legal value.
    """

    name: ClassVar[str]
    Hyper: ClassVar[type[Hyper]] = Hyper
    #: True where nothing is learnt before the last experience, so nothing is evaluated before.
    trains_jointly: ClassVar[bool] = False
    #: What `diagnostics` returns: name -> meaning.
    diagnostic_help: ClassVar[Mapping[str, str]] = {}

    def __init__(self, *, head_init: HeadInit = "zero", **hyper: Any) -> None:
        super().__init__()
        self.hyper: Any = make_hyper(getattr(self, "name", type(self).__name__), self.Hyper, hyper)
        self.head_init = head_init
        self.model: VisionTransformer | None = None
        self.current: tuple[int, ...] = ()
        #: Kept for later experiences and not needed for inference; part of the state.
        self.memory: dict[str, Tensor] = {}
        #: What a method found out in `end`; `diagnostics` tells it.
        self.found: dict[str, Any] = {}

    # ---- what a method overrides -------------------------------------------------------------

    def adapt(self, model: VisionTransformer) -> None:
        """Plug into the frozen model; called once, before the first experience."""

    def grow(self, model: VisionTransformer, classes: Sequence[int]) -> None:
        """Add the parts an experience needs, structure only: also called when a state is restored."""

    def begin(self, strategy: Any) -> None:
        """Prepare for the experience; the head and the parts exist, the optimiser is not set yet."""

    def end(self, strategy: Any) -> None:
        """Consolidate after the experience."""

    def frozen_after(self, task: int) -> Iterable[str]:
        """Names in the model's state that never change once experience `task` (from 0) is over.

        The parameters among them are frozen then, and when a state is restored.
        """
        return (f"head.tasks.{task}.weight", f"head.tasks.{task}.bias")

    @classmethod
    def check(cls, hyper: Any, experiences: int) -> None:
        """Refuse a stream of so many experiences that the hyper-parameters do not suit.

        Raises:
            UsageError: saying what to change.
        """

    @classmethod
    def caveats(cls, hyper: Any) -> tuple[str, ...]:  # noqa: ARG003
        """Sentences a reader must know before believing what was obtained with `hyper`."""
        return ()

    @classmethod
    def paper(cls, benchmark: str) -> Mapping[str, Any]:  # noqa: ARG003
        """The published recipe on `benchmark`: fields of the protocol that `--protocol paper` sets."""
        return {}

    @classmethod
    def paper_options(cls, benchmark: str) -> Mapping[str, Any]:  # noqa: ARG003
        """The published hyper-parameters on `benchmark`, where they are not the defaults."""
        return {}

    def merge(self, model: VisionTransformer) -> bool:
        """Merge into the weights of `model` every adapter that can be, as one would to deploy it.

        Args:
            model: a copy of the trained one; learning cannot go on with it.

        Returns:
            Whether all adapters are in the weights, so that inference is the plain ViT's.
        """
        return False

    def make_head(self, model: VisionTransformer) -> ClassHead:
        """The classifier that replaces the model's own."""
        return ClassHead(model.num_features, self.head_init)

    def diagnostics(self) -> Mapping[str, Finding]:
        """What users of the method ask about the experience just learnt, and evaluated, if it was.

        Names and their meanings are in `diagnostic_help`.
        """
        return self.found

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The method's own optimiser, with its learning rate; any other keeps the rate it was given."""
        return torch.optim.Adam(parameters, lr=self.hyper.lr)

    # ---- Avalanche's callbacks ---------------------------------------------------------------

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if self.model is not strategy.model:
            self.attach(strategy.model)

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        assert self.model is not None
        self.check(self.hyper, len(strategy.experience.origin_stream))
        self.current = tuple(sorted(strategy.experience.classes_in_this_experience))
        self._grow(self.model, self.current)
        self.model.to(strategy.device)
        self.begin(strategy)
        reset_optimizer(strategy.optimizer, trainable(self.model))

    def after_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        strategy.mb_output = mask_logits(strategy.mb_output, self.current)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        assert self.model is not None
        self.end(strategy)
        self._freeze(len(self.model.head.tasks) - 1)

    # ---- structure and state -----------------------------------------------------------------

    def attach(self, model: VisionTransformer) -> None:
        """Freeze `model`, open its seams, replace its classifier and plug in.

        Raises:
            UsageError: if the model is no timm ViT, or was already adapted by another method.
        """
        if isinstance(getattr(model, "head", None), ClassHead):
            raise UsageError("the model already carries a method's classifier; start from a fresh one")
        open_seams(model)
        model.requires_grad_(False)
        self.backbone_names = {n for n in model.state_dict() if not n.startswith("head.")}
        model.head = self.make_head(model)
        self.adapt(model)
        model.train(model.training)  # new modules start in training mode, whatever the model's is
        self.model = model

    def _grow(self, model: VisionTransformer, classes: Sequence[int]) -> None:
        model.head.grow(classes)
        self.grow(model, classes)

    def _freeze(self, task: int) -> None:
        assert self.model is not None
        kept = set(self.frozen_after(task))
        for name, parameter in self.model.named_parameters():
            if name in kept:
                parameter.requires_grad_(False)

    def owns(self, name: str) -> bool:
        """Whether the tensor `name` of the model's state belongs to the method, not to the backbone."""
        return name not in self.backbone_names

    def state(self) -> dict[str, Tensor]:
        """Everything learnt so far, by its name in the model; the backbone is not in it.

        What is needed to learn further, but not for inference, has names that start with "memory.".
        """
        assert self.model is not None
        learnt = {n: t.detach().clone() for n, t in self.model.state_dict().items() if self.owns(n)}
        return learnt | {MEMORY + name: tensor.clone() for name, tensor in self.memory.items()}

    def restore(self, model: VisionTransformer, state: Mapping[str, Tensor]) -> None:
        """Make a fresh `model` what `state` was taken from: the same logits, bit for bit.

        Raises:
            UsageError: if the state was taken from another method or another backbone.
        """
        self.attach(model)
        task = 0
        while f"head.tasks.{task}.classes" in state:
            self._grow(model, state[f"head.tasks.{task}.classes"].tolist())
            task += 1
        learnt = {n: t for n, t in state.items() if not n.startswith(MEMORY)}
        expected = {n for n in model.state_dict() if self.owns(n)}
        if expected != set(learnt):
            odd = sorted(expected ^ set(learnt))[:3]
            raise UsageError(f"the state does not fit {self.name} on this backbone; they differ in {odd}")
        shape_tensors(model, learnt)
        model.load_state_dict(learnt, strict=False)
        self.memory = {n.removeprefix(MEMORY): t.clone() for n, t in state.items() if n.startswith(MEMORY)}
        for done in range(task):
            self._freeze(done)


def shape_tensors(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give what `grow` cannot know the size of the shape it has in `state`.

    Those are buffers (how many directions a basis has, only training tells), and parameters that were made
    without a single element.
    """
    for name, buffer in list(model.named_buffers()):
        if name in state and state[name].shape != buffer.shape:
            _put(model, name, buffer.new_empty(state[name].shape))
    for name, parameter in list(model.named_parameters()):
        if name in state and parameter.numel() == 0:
            _put(model, name, nn.Parameter(parameter.new_empty(state[name].shape)))


def _put(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, tensor)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that learn in the current experience."""
    return [p for p in model.parameters() if p.requires_grad]


def reset_optimizer(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Make `parameters` the whole content of `optimizer`, with its first learning rate and no memory.

    In place, because a scheduler made for this optimiser must keep its handle, and because momentum
    left from an earlier experience moves parameters that get no gradient any more.
    """
    settings = {**optimizer.param_groups[0], **optimizer.defaults}
    optimizer.state.clear()
    optimizer.param_groups[:] = [{**settings, "params": list(parameters)}]


def autocast_of(strategy: Any) -> AbstractContextManager[Any]:
    """The strategy's mixed-precision context where it has one (Avalanche's own have none)."""
    make = getattr(strategy, "autocast", nullcontext)
    context: AbstractContextManager[Any] = make()
    return context


@contextmanager
def eval_no_grad(model: nn.Module) -> Iterator[None]:
    """Passes through the model for statistics: in eval mode and without gradients, then as it was.

    A model in eval mode is left alone: going through its modules takes as long as a small block.
    """
    training = model.training
    if training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if training:
            model.train()


def feature_pass(strategy: Any, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """A pass of the batches' images through the blocks, for whoever watches them."""
    with eval_no_grad(strategy.model):
        for x, _ in batches:
            with autocast_of(strategy):
                strategy.model.forward_features(x)


def clean_batches(strategy: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """The experience's training images as an evaluation sees them: in order, not augmented.

    Yields (images, labels) batches on the strategy's device. Neither the strategy's own loader nor any
    random stream is touched: a pass for statistics leaves training as it would have been.
    """
    images = strategy.adapted_dataset.eval()
    yield from _batches(strategy, images, getattr(strategy, "eval_collate", None))


def augmented_batches(strategy: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """As `clean_batches`, with the augmentation of training.

    The harness has a random stream for this purpose; under another strategy torch's global generators
    are put back afterwards.
    """
    with torch.random.fork_rng(devices=[strategy.device] if strategy.device.type == "cuda" else []):
        yield from _batches(strategy, strategy.adapted_dataset, getattr(strategy, "look_collate", None))


def _batches(strategy: Any, images: Any, collate: Any) -> Iterator[tuple[Tensor, Tensor]]:
    loader = DataLoader(
        images,
        batch_size=strategy.eval_mb_size,
        collate_fn=collate or getattr(images, "collate_fn", None),
        generator=torch.Generator(),  # without one, a loader draws from the global generator
    )
    for x, y, *_ in loader:
        yield x.to(strategy.device), y.to(strategy.device)
