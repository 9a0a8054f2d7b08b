"""The base class of all methods: how a plugin adapts the ViT, the optimiser and the loss.

A method is a complete Avalanche plugin. At the first experience it freezes the model, opens the seams of
its attention and replaces the classifier (`attach`). At every experience it adds a head for new classes, if
there are any, and its own parts (`start_experience`), fills the optimiser with exactly the trainable
parameters, without state from earlier experiences, and restricts the loss to the current classes. Afterwards
`model(x)` in eval mode is the whole inference: over all classes seen, without a task id.

A new method subclasses `Method[MyHyper]`, sets `Hyper = MyHyper`, and overrides what it needs of `adapt`,
`grow`, `begin` and `end`. A further loss term is added in Avalanche's `before_backward`.

Shapes: B images of S x S pixels, D width of the features, C = 1 + the largest class id seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from typing_extensions import TypeVar

from methods.errors import UsageError
from methods.head import ClassHead, HeadInit, mask_logits
from methods.hyper import Hyper, make_hyper
from methods.strategy import Plugin, StrategyLike
from methods.vit import open_seams

#: Prefix, in a state, of the names of tensors that inference does not need.
MEMORY = "memory."

#: A number; None where it is undefined; one number per block; or a table with a row for each experience whose
#: test images were just evaluated, and a column for each prompt or component.
DiagnosticValue = float | list[float] | list[list[float]] | None

#: The hyper-parameters of a method: a frozen pydantic dataclass, usually a subclass of `methods.hyper.Hyper`.
H = TypeVar("H", default=Any)


class Method(Plugin, Generic[H]):
    """Base of all methods, generic in the class of its hyper-parameters.

    Args:
        head_init: initial weights of new heads; "zero" for all methods, unless the protocol says otherwise.
        **options: hyper-parameters by name; those left out have the defaults of `Hyper`.

    Raises:
        UsageError: for a hyper-parameter that does not exist or a value that is not legal.
    """

    #: Set by `@register`.
    name: ClassVar[str]
    #: Class of `self.hyper`; the type argument once more, for use at run time.
    Hyper: type[H] = cast("type[H]", Hyper)
    #: Whether nothing is learnt, and so nothing evaluated, before the last experience.
    trains_jointly: ClassVar[bool] = False
    #: Whether the backbone's features never change, so that only the classifier is run where they are kept.
    frozen_backbone: ClassVar[bool] = False
    #: Features of the frozen backbone that the method asks for (`methods.passes.frozen_features`): none,
    #: those of images as in an evaluation, or those of augmented training images, too.
    asks_for: ClassVar[Literal["none", "clean", "augmented"]] = "none"
    #: Meaning of every value that `diagnostics` can return, by name.
    diagnostic_help: ClassVar[Mapping[str, str]] = {}

    def __init__(self, *, head_init: HeadInit = "zero", **options: object) -> None:
        super().__init__()
        self.hyper: H = make_hyper(getattr(self, "name", type(self).__name__), self.Hyper, options)
        self.head_init = head_init
        self.model: VisionTransformer | None = None
        #: Class ids of the experience that is being learnt.
        self.current: tuple[int, ...] = ()
        #: Tensors that later experiences need and inference does not; part of the state.
        self.memory: dict[str, Tensor] = {}
        #: What `diagnostics` returns; `end` sets it.
        self._diagnostics: dict[str, DiagnosticValue] = {}

    # ---- what a method overrides -------------------------------------------------------------

    def adapt(self, model: VisionTransformer) -> None:
        """Plug into the frozen model; called once, before the first experience.

        Parameters that it adds, or makes trainable, are trained from the first experience on.
        """

    def grow(self, model: VisionTransformer, classes: Sequence[int]) -> None:
        """Add the parts for an experience with these class ids.

        Structure only, because `restore` calls it, too: values may come from no image.
        """

    def begin(self, strategy: StrategyLike) -> None:
        """Prepare for an experience; its head and parts exist, the optimiser is not filled yet."""

    def end(self, strategy: StrategyLike) -> None:
        """Consolidate after an experience."""

    def frozen_after(self, task: int) -> Iterable[str]:
        """Names, in the model's state, of tensors that never change after experience `task` (from 0).

        The parameters among them are frozen at its end, and when a state is restored. The head of classes
        that come again is an exception: it is trained again then (`ClassHead.grow`).
        """
        return (f"head.tasks.{task}.weight", f"head.tasks.{task}.bias")

    @classmethod
    def check(cls, hyper: H, experiences: int) -> None:
        """Refuse hyper-parameters that contradict each other or do not suit a stream of `experiences`.

        Raises:
            UsageError: saying what to change.
        """

    @classmethod
    def caveats(cls, hyper: H) -> tuple[str, ...]:
        """Warnings that qualify results obtained with `hyper`, a sentence each."""
        return ()

    @classmethod
    def batch_group(cls, hyper: H) -> int | None:
        """How many consecutive images of a batch decide together on their logits.

        None, as it should be: an image's logits depend on no other image. Where it is a number, `caveats` has
        to say so, and evaluation batches are whole multiples of it.
        """
        return None

    @classmethod
    def learns_from_one_class(cls, hyper: H) -> bool:
        """Whether the classifier learns from an experience of a single class; if not, the record warns of it.

        By default it does not: the cross-entropy over the classes of the experience (`after_forward`) is zero
        if there is only one. A method that overrides `after_forward`, or trains on all classes together, has
        another loss.
        """
        return cls.trains_jointly or cls.after_forward is not Method.after_forward

    @classmethod
    def least_images(cls, hyper: H) -> int:
        """The training images that every experience needs, at least; planning refuses a stream with fewer."""
        return 1

    @classmethod
    def paper(cls, benchmark: str) -> Mapping[str, object]:
        """The published recipe on `benchmark`: the fields of the protocol that `--protocol paper` sets."""
        return {}

    @classmethod
    def paper_options(cls, benchmark: str) -> Mapping[str, object]:
        """The published hyper-parameters on `benchmark` that differ from the defaults."""
        return {}

    def merge(self, model: VisionTransformer) -> bool:
        """Merge every adapter of `model` into its weights where that is possible, as for deployment.

        Args:
            model: a copy of the trained model; it cannot be trained further.

        Returns:
            Whether no adapter is left, so that inference costs what the plain ViT costs.
        """
        return False

    def make_head(self, model: VisionTransformer) -> ClassHead:
        """The classifier, (B, D) -> (B, C), that replaces the model's."""
        return ClassHead(model.num_features, self.head_init)

    def diagnostics(self) -> Mapping[str, DiagnosticValue]:
        """Values about the experience just learnt and, if it was, evaluated; see `diagnostic_help`."""
        return self._diagnostics

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser: Adam with the learning rate `hyper.lr`.

        To be overridden where hyper-parameters have no `lr`. A strategy may use any other optimiser.
        """
        return adam(parameters, cast("Hyper", self.hyper).lr)

    # ---- Avalanche's callbacks ---------------------------------------------------------------

    def before_training(self, strategy: StrategyLike, **kwargs: object) -> None:
        if self.model is not strategy.model:
            self.attach(strategy.model)

    def before_training_exp(self, strategy: StrategyLike, **kwargs: object) -> None:
        assert self.model is not None
        self.check(self.hyper, len(strategy.experience.origin_stream))
        self.current = tuple(sorted(strategy.experience.classes_in_this_experience))
        self.start_experience(self.model, self.current)
        self.model.to(strategy.device)
        self.begin(strategy)
        reset_optimizer(strategy.optimizer, trainable(self.model))

    def after_forward(self, strategy: StrategyLike, **kwargs: object) -> None:
        strategy.mb_output = mask_logits(strategy.mb_output, self.current)

    def after_training_exp(self, strategy: StrategyLike, **kwargs: object) -> None:
        assert self.model is not None
        self.end(strategy)
        self._freeze(len(self.model.head.tasks) - 1)

    # ---- structure and state -----------------------------------------------------------------

    def attach(self, model: VisionTransformer) -> None:
        """Freeze `model`, open its seams, replace its classifier and plug in.

        Raises:
            UsageError: if the model is no timm ViT, or carries a method already.
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

    def start_experience(self, model: VisionTransformer, classes: Sequence[int]) -> None:
        """Prepare the classifier for the class ids `classes`, and add the method's own parts."""
        model.head.grow(classes)
        self.grow(model, classes)

    def _freeze(self, task: int) -> None:
        assert self.model is not None
        frozen = set(self.frozen_after(task))
        for name, parameter in self.model.named_parameters():
            if name in frozen:
                parameter.requires_grad_(False)

    def owns(self, name: str) -> bool:
        """Whether the method may change the tensor `name` of the model's state; it is then in `state`.

        By default: the tensors that the backbone did not have.
        """
        return name not in self.backbone_names

    def state(self) -> dict[str, Tensor]:
        """Copies of all tensors that the method owns, by their names in the model, and of its `memory`.

        Names in `memory` are given the prefix "memory.".
        """
        assert self.model is not None
        learnt = {n: t.detach().clone() for n, t in self.model.state_dict().items() if self.owns(n)}
        return learnt | {MEMORY + name: tensor.clone() for name, tensor in self.memory.items()}

    def restore(self, model: VisionTransformer, state: Mapping[str, Tensor]) -> None:
        """Attach to a fresh `model` and load `state`; its logits then equal the saved model's, bit for bit.

        Raises:
            UsageError: if the state is of another method or another backbone.
        """
        self.attach(model)
        task = 0
        while f"head.tasks.{task}.classes" in state:
            self.start_experience(model, state[f"head.tasks.{task}.classes"].tolist())
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
    """Give tensors whose size only training determines the shape they have in `state`.

    Those are buffers (a basis has as many columns as the images needed), and parameters without elements.
    """
    for name, buffer in list(model.named_buffers()):
        if name in state and state[name].shape != buffer.shape:
            _replace(model, name, buffer.new_empty(state[name].shape))
    for name, parameter in list(model.named_parameters()):
        if name in state and parameter.numel() == 0:
            _replace(model, name, nn.Parameter(parameter.new_empty(state[name].shape)))


def _replace(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, tensor)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen."""
    return [p for p in model.parameters() if p.requires_grad]


def adam(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Adam with one kernel for all parameters: a method has dozens of small ones."""
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def reset_optimizer(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Make `parameters` the whole content of `optimizer`, with its initial learning rate and no state.

    In place: a scheduler made for this optimiser keeps its reference. The state is dropped because momentum
    from an earlier experience would move parameters that no longer receive a gradient.
    """
    settings = {**optimizer.param_groups[0], **optimizer.defaults}
    optimizer.state.clear()
    optimizer.param_groups[:] = [{**settings, "params": list(parameters)}]
