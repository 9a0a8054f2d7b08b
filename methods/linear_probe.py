"""Linear probe: a linear classifier per task on the frozen backbone.

A reference for methods that adapt the features: with an accuracy below it, their adaptation does harm.
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from methods.base import Method
from methods.hyper import STRICT, Hyper, hyper
from methods.registry import register


@dataclass(frozen=True, config=STRICT)
class ProbeHyper(Hyper):
    """Hyper-parameters of the linear probe."""

    lr: float = hyper(1e-3, "learning rate of Adam", source="chosen on validation, docs/defaults.md", gt=0)


@register("linear-probe")
class LinearProbe(Method[ProbeHyper]):
    """Trains one linear head per experience with the local cross-entropy; the features never change."""

    Hyper = ProbeHyper
    frozen_backbone = True
    asks_for = "augmented"
