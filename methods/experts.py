"""Parts of methods with an expert for each experience: who answers for an image, and with which classifier.

An image's expert is that of the experience whose training images look most like it: k-means finds centroids
among the frozen backbone's features of each experience, and the nearest one decides. So every call of the ViT
becomes two passes: one through the frozen backbone, and one with the expert that it chose. Images of a batch
may have different experts, and one pass serves them all. In training there is one pass, with the expert of
the current experience.

An expert never changes after its experience. What is forgotten afterwards is forgotten by the routing, which
may choose a newer expert for an old image.

Shapes: B images, D width of the features, M centroids of all experiences.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from sklearn.cluster import KMeans
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.base import DiagnosticValue, Method
from methods.head import HeadInit, HeadPerExperience
from methods.hyper import STRICT, Hyper, hyper
from methods.passes import clean_features, eval_no_grad, frozen_features, in_full_precision
from methods.strategy import StrategyLike, means_by_experience, of_learnt, true_experience
from methods.vit import embed

Distance = Literal["euclidean", "manhattan"]
#: The p of the norm that `torch.cdist` computes.
NORMS: dict[Distance, float] = {"euclidean": 2.0, "manhattan": 1.0}
#: Clusters for each class of an experience, where their number follows from the classes.
PER_CLASS = 2


class ExpertSeam(Protocol):
    """Where experts enter the ViT.

    Attributes:
        expert: (B,) the expert of each image of the pass; None: none, the frozen backbone alone.
    """

    expert: Tensor | None


class Router(nn.Module):
    """Chooses the expert of each image; the submodule `router` of the ViT.

    Args:
        width: D.
        seams: where the experts enter.
        distance: between a normalised query and a centroid.

    Attributes:
        experiences: a module for each experience, whose buffer `centroids` (K, D) is empty until it is over.
        query_expert: the expert that the query is computed with; None: the frozen backbone alone.
        known_query: (B, D), of the next pass, where it is known without computing it.
        given: (B,) the experts of the next pass, where they are not to be chosen; where it is negative, or of
            an experience still to come, they are.
        chosen: (B,) the experts of the last pass.
    """

    def __init__(self, width: int, seams: Sequence[ExpertSeam], distance: Distance) -> None:
        super().__init__()
        self.width, self.seams, self.distance = width, seams, distance
        self.experiences = nn.ModuleList()
        self.query_expert: int | None = None
        self.known_query: Tensor | None = None
        self.given: Tensor | None = None
        self.chosen = torch.empty(0, dtype=torch.long)

    def grow(self, like: Tensor) -> None:
        """Add an experience, which no image is sent to before it has centroids."""
        module = nn.Module()
        module.register_buffer("centroids", like.new_empty(0, self.width))
        self.experiences.append(module)

    @property
    def centroids(self) -> tuple[Tensor, Tensor]:
        """(M, D), and (M,) the experience of each."""
        each: list[Tensor] = [module.centroids for module in self.experiences]  # type: ignore[misc]
        owners = [torch.full((len(c),), i, device=c.device) for i, c in enumerate(each)]
        return torch.cat(each), torch.cat(owners)

    def nearest(self, query: Tensor) -> Tensor:
        """(B,) the experience of the nearest centroid of each of the queries (B, D)."""
        centroids, owner = self.centroids
        if len(centroids) == 0:  # in the first experience there is one expert only
            return torch.zeros(len(query), dtype=torch.long, device=query.device)
        with in_full_precision(query.device.type):
            # Without a matrix product, whose last digits depend on the other images of the batch.
            distances = torch.cdist(
                F.normalize(query.float(), dim=1),
                centroids,
                p=NORMS[self.distance],
                compute_mode="donot_use_mm_for_euclid_dist",
            )
        return owner[distances.argmin(1)]

    def query(self, vit: VisionTransformer, images: Tensor) -> Tensor:
        """(B, D): the features that the routing compares."""
        self.set_expert(None if self.query_expert is None else self._all(images, self.query_expert))
        with eval_no_grad(vit):
            features = embed(vit, images).float()
        self.set_expert(None)
        return features

    def set_expert(self, expert: Tensor | None) -> None:
        """Set the expert (B,) of each image of the next pass in all seams."""
        for seam in self.seams:
            seam.expert = expert

    def attach_to(self, vit: VisionTransformer) -> None:
        """Become the submodule `router` of `vit`, and choose experts before each of its calls."""
        vit.router = self
        vit.register_forward_pre_hook(self._before)
        vit.register_forward_hook(self._after, always_call=True)

    def _before(self, vit: VisionTransformer, inputs: tuple[Tensor, ...]) -> None:
        images = inputs[0]
        if self.training:
            self.chosen = self._all(images, len(self.experiences) - 1)
        else:
            query = self.query(vit, images) if self.known_query is None else self.known_query
            self.chosen = self._unless_given(self.nearest(query))
        self.set_expert(self.chosen)

    def _after(self, vit: VisionTransformer, inputs: object, output: object) -> None:
        self.known_query = self.given = None
        self.set_expert(None)

    def _unless_given(self, chosen: Tensor) -> Tensor:
        if self.given is None:
            return chosen
        known = (self.given >= 0) & (self.given < len(self.experiences))
        return torch.where(known, self.given, chosen)

    @staticmethod
    def _all(images: Tensor, expert: int) -> Tensor:
        return torch.full((len(images),), expert, device=images.device)


class ExpertHead(HeadPerExperience):
    """A classifier for each experience, over its classes; the one of the image's expert alone answers."""

    def __init__(self, features: int, init: HeadInit, router: Router) -> None:
        super().__init__(features, init)
        self._router = [router]  # in a list, so that it is no submodule here as well

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, C); minus infinity for the classes that the expert does not know."""
        chosen = self._router[0].chosen
        # One product for each head: its last digits depend on the shape, which later heads must not change.
        logits = [
            F.linear(x, head.weight, head.bias).masked_fill((chosen != i)[:, None], -torch.inf)
            for i, head in enumerate(self.heads)
        ]
        return self.spread(torch.cat(logits, 1))


@dataclass(frozen=True, config=STRICT)
class RoutedHyper(Hyper):
    """Hyper-parameters of the routing."""

    clusters: int = hyper(
        5,
        f"clusters of the features of an experience; 0: {PER_CLASS} for each of its classes",
        source="the code of S-Prompts, methods/sprompt.py, and of Renate",
        ge=0,
    )
    centroids: Literal["k-means", "class-means"] = hyper(
        "k-means",
        "what represents an experience: the centres of its clusters, or the mean of each of its classes",
        source="k-means: the code of S-Prompts and of Renate; class-means: ours, to compare with",
    )
    routing: Literal["nearest", "oracle"] = hyper(
        "nearest",
        "who chooses an image's expert: the nearest centroid, or the experience it is known to belong to",
        source="oracle: ours, an upper bound that no deployed model reaches",
    )


H = TypeVar("H", bound=RoutedHyper)


class RoutedMethod(Method[H]):
    """Base of methods with an expert and a classifier for each experience; a subclass makes the seams."""

    router: Router
    asks_for = "clean"
    distance: ClassVar[Distance] = "euclidean"
    diagnostic_help: ClassVar = {
        "routing_accuracy": "share of the test images that were sent to the expert of their own experience",
        "expert_choices": "share of the experience's test images that were sent to each expert",
        "clusters": "centroids that represent the experience just learnt",
    }

    def __init__(self, *, head_init: HeadInit = "zero", **options: object) -> None:
        super().__init__(head_init=head_init, **options)
        #: Of each batch of the last evaluation: experience of the images (B,), their experts (B,).
        self.evaluated: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def caveats(cls, hyper: H) -> tuple[str, ...]:
        if hyper.routing == "nearest":
            return ()
        return (
            "upper bound: the task of every test image was given (routing=oracle); this is no "
            "class-incremental and no domain-incremental result",
        )

    @classmethod
    def least_images(cls, hyper: H) -> int:
        return max(hyper.clusters, 1)

    # ---- what a subclass makes ---------------------------------------------------------------

    def make_seams(self, model: VisionTransformer) -> Sequence[ExpertSeam]:
        """Put the seams into the model; they have no expert yet."""
        raise NotImplementedError

    def add_expert(self) -> None:
        """Add an expert to every seam; structure only, as `Method.grow`."""
        raise NotImplementedError

    def names_of_expert(self, expert: int) -> Iterable[str]:
        """The names of its tensors in the model's state."""
        raise NotImplementedError

    # ---- structure ---------------------------------------------------------------------------

    def make_head(self, model: VisionTransformer) -> ExpertHead:
        self.router = Router(model.num_features, self.make_seams(model), self.distance)
        return ExpertHead(model.num_features, self.head_init, self.router)

    def adapt(self, model: VisionTransformer) -> None:
        self.router.attach_to(model)

    def grow(self, model: VisionTransformer, classes: Sequence[int]) -> None:
        self.add_expert()
        self.router.grow(model.head.heads[0].weight.detach())

    def frozen_after(self, task: int) -> Iterable[str]:
        centroids = f"router.experiences.{task}.centroids"
        return (*super().frozen_after(task), *self.names_of_expert(task), centroids)

    # ---- an experience -----------------------------------------------------------------------

    def before_training_exp(self, strategy: StrategyLike, **kwargs: object) -> None:
        self.evaluated = []
        super().before_training_exp(strategy, **kwargs)

    def end(self, strategy: StrategyLike) -> None:
        features, labels = self.queries(strategy)
        number = self.hyper.clusters or PER_CLASS * len(self.current)
        found = (
            k_means(features, number) if self.hyper.centroids == "k-means" else class_means(features, labels)
        )
        self.router.experiences[-1].centroids = found.to(strategy.device)
        self._diagnostics = {"clusters": float(len(found))}

    def queries(self, strategy: StrategyLike) -> tuple[Tensor, Tensor]:
        """The normalised queries (n, D) of the experience's training images, and their labels (n,)."""
        parts = list(clean_features(strategy))
        features, labels = (torch.cat(each) for each in zip(*parts, strict=True))
        return F.normalize(features.float(), dim=1), labels

    # ---- an evaluation -----------------------------------------------------------------------

    def before_eval(self, strategy: StrategyLike, **kwargs: object) -> None:
        self.evaluated = []

    def before_eval_forward(self, strategy: StrategyLike, **kwargs: object) -> None:
        if self.router.query_expert is None:
            self.router.known_query = frozen_features(strategy)
        if self.hyper.routing == "oracle":
            self.router.given = true_experience(strategy)

    def after_eval_iteration(self, strategy: StrategyLike, **kwargs: object) -> None:
        # Read for these statistics only; the logits exist already.
        self.evaluated.append((true_experience(strategy), self.router.chosen))

    def diagnostics(self) -> dict[str, DiagnosticValue]:
        if not self.evaluated:
            return self._diagnostics
        experts = len(self.router.experiences)
        experience, chosen = of_learnt(self.evaluated, experts)
        if not len(experience):
            return self._diagnostics
        rows = means_by_experience(experience, F.one_hot(chosen, experts).float())
        accuracy = (chosen == experience).float().mean().item()
        return self._diagnostics | {"routing_accuracy": accuracy, "expert_choices": rows}


def k_means(rows: Tensor, number: int) -> Tensor:
    """At most `number` centres (K, D) of the rows (n, D); fewer if there are fewer different rows.

    Always the same for the same rows; no random number of torch's or numpy's generators is drawn.
    """
    points = rows.double().cpu().numpy()
    number = min(number, len(np.unique(points, axis=0)))
    found: Any = KMeans(number, random_state=0, n_init="auto").fit(points)
    return torch.from_numpy(found.cluster_centers_).float()


def class_means(rows: Tensor, labels: Tensor) -> Tensor:
    """The mean (C, D) of the rows (n, D) of each label that occurs."""
    return torch.stack([rows[labels == label].double().mean(0) for label in torch.unique(labels)]).float()
