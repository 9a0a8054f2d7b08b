"""A linear classifier on the frozen backbone, trained experience by experience.

The reference no adaptation of the features may fall below: nothing but the heads is learnt.
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
class LinearProbe(Method):
    """Local cross-entropy on one linear head an experience; the features never change."""

    Hyper = ProbeHyper
