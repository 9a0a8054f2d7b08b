"""Gradient-projection memory: which directions of a layer's input earlier experiences have used.

A weight W changes its answer to an input u by dW u, so an experience is protected as long as later
changes have their rows outside the space its inputs span (GPM, Saha et al., ICLR 2021, arXiv
2103.09762). All that is needed of the inputs is their uncentred second moment C = E[u u^T], (D, D),
whatever the number of images. Everything here is a pure function of such matrices and of bases with
orthonormal columns; computation is in float64.

Shapes: D width of the layer, k number of directions kept, r rank of an adapter.

Energy. How much of C a basis holds is measured in one of two ways, which are not interchangeable
(eps = 0.98 may keep hundreds of directions by one and a single one by the other):

- "sigma2": by the eigenvalues of C, the squared singular values of the inputs: GPM's rule;
- "sigma4": by their squares: what InfLoRA's code computes, since it takes the singular values of C.

Squared singular values of (I - P) C are eigenvalues of (I - P) C C (I - P), so the second rule is the
first one applied to C C. Below, M stands for the matrix whose trace is the energy: C or C C.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Energy = Literal["sigma2", "sigma4"]

#: Norm of the rows of a designed down-projection: what kaiming_uniform(a=sqrt(5)) gives on average.
ROW_NORM = 1 / math.sqrt(3)


@dataclass(frozen=True)
class Moment:
    """Sum of u u^T over `rows` inputs u: (D, D), float64."""

    total: Tensor
    rows: int = 0

    @property
    def mean(self) -> Tensor:
        """C = E[u u^T], (D, D), float64."""
        return self.total / max(self.rows, 1)

    def plus(self, inputs: Tensor) -> Moment:
        """With the inputs (n, ..., D) added. Products of a batch are in float32, their sum in float64."""
        flat = inputs.detach().flatten(0, -2).float()
        with torch.autocast(flat.device.type, enabled=False):
            product = flat.T @ flat
        return Moment(self.total + product.double(), self.rows + len(flat))


def no_inputs(width: int, device: torch.device | str = "cpu") -> Moment:
    """The moment of no inputs at all."""
    return Moment(torch.zeros(width, width, dtype=torch.float64, device=device))


def rising(low: float, high: float, done: int, of: int) -> float:
    """The share of the energy to be protected, after `done` of `of` experiences: low + (high - low) t / T.

    As in InfLoRA's code, t counts from 0, so `high` itself is never reached (the paper counts from 1).
    """
    return low + (high - low) * done / of


def energy_matrix(c: Tensor, energy: Energy) -> Tensor:
    """M, (D, D), symmetric float64: its trace is the energy of C and tr(F^T M F) what a basis F holds."""
    c = c.double()
    m = c if energy == "sigma2" else c @ c
    symmetric: Tensor = (m + m.T) / 2
    return symmetric


def captured(basis: Tensor, m: Tensor) -> float:
    """Share of the energy of M (D, D), float64, that the basis (D, k) holds, in [0, 1]; 1 if M is zero."""
    total = m.trace()
    held = (m @ basis.double() * basis.double()).sum()
    return float((held / total).clamp(0, 1)) if total > 0 else 1.0


def complement(basis: Tensor) -> Tensor:
    """Orthonormal basis (D, D - k), float64, of what is orthogonal to the columns of `basis` (D, k)."""
    q: Tensor = torch.linalg.qr(basis.double(), mode="complete").Q
    return q[:, basis.shape[1] :]


def principal(space: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """Within the span of `space` (D, n): energies (n,), descending, and their directions (D, n)."""
    values, vectors = torch.linalg.eigh(space.T @ m @ space)
    return values.flip(0).clamp_min(0), space @ vectors.flip(1)


def needed(held: Tensor, energies: Tensor, enough: Tensor) -> int:
    """Smallest k with held + energies[:k].sum() >= enough (all of them where that is never reached)."""
    reached = held + torch.cat([energies.new_zeros(1), energies.cumsum(0)])
    return min(int((reached < enough).sum()), len(energies))


def growth(
    basis: Tensor,
    m: Tensor,
    threshold: float,
    *,
    at_least: int = 0,
    at_most: int | None = None,
    strict: bool = False,
) -> Tensor:
    """Directions (D, k) to append to `basis` (D, n) until it holds the share `threshold` of M's energy.

    GPM, equations 8 and 9. They are orthonormal and orthogonal to `basis`, the strongest first.

    Args:
        at_least, at_most: bounds on k; the room that is left, D - n, comes before both.
        strict: stop one direction before the threshold is reached, as the code of GPM and of InfLoRA does
            at the first experience (it counts cumulative shares below the threshold).
    """
    space = complement(basis)
    energies, directions = principal(space, m)
    k = needed(m.trace() - energies.sum(), energies, threshold * m.trace()) - strict
    k = max(k, at_least)
    return directions[:, : min(k, len(energies) if at_most is None else at_most)]


def joined(basis: Tensor, more: Tensor) -> Tensor:
    """`basis` (D, n) and the columns `more` (D, k), re-orthonormalised against it and each other.

    The columns of `basis` come back unchanged; rounding is what keeps n + k steps of growth apart.
    """
    old, new = basis.double(), more.double()
    for _ in range(2):  # twice is enough (Kahan and Parlett)
        new = torch.linalg.qr(new - old @ (old.T @ new)).Q
    return torch.cat([old, new], 1)


@dataclass(frozen=True)
class Dual:
    """DualGPM's memory of one layer: a basis of the space used, or of its complement if that is smaller.

    `basis`: (D, k), orthonormal columns. `retained` says which: False, they span the used space, and
    later updates have it removed; True, they span the unused rest, which later updates are retained in.
    """

    basis: Tensor
    retained: bool = False

    @property
    def used(self) -> int:
        """Dimension of the space that is protected."""
        width, columns = self.basis.shape
        return width - columns if self.retained else columns

    @property
    def allowed(self) -> Tensor:
        """Basis (D, D - used), float64, of the space later updates may use."""
        return self.basis.double() if self.retained else complement(self.basis)

    def held(self, m: Tensor) -> float:
        """Share of M's energy that lies in the protected space."""
        share = captured(self.basis, m)
        return 1 - share if self.retained else share


def nothing_used(width: int, device: torch.device | str = "cpu") -> Dual:
    """The memory before the first experience."""
    return Dual(torch.zeros(width, 0, dtype=torch.float64, device=device))


def remember(memory: Dual, m: Tensor, threshold: float) -> Dual:
    """DualGPM's update (Liang and Li, CVPR 2023; as in InfLoRA's code) by the energies M (D, D).

    Directions are added until the protected space holds the share `threshold`; in the retained mode they
    are taken out of the rest, strongest first, until it holds less than 1 - `threshold`. Once the
    protected space has more than D / 2 dimensions, its complement is kept instead.
    """
    if memory.retained:
        return replace(memory, basis=_shrunk(memory.basis, m, threshold))
    first = memory.basis.shape[1] == 0
    more = growth(memory.basis, m, threshold, at_least=int(first), strict=first)
    grown = joined(memory.basis, more)
    if grown.shape[1] > len(m) / 2:
        return Dual(complement(grown), retained=True)
    return Dual(grown)


def _shrunk(basis: Tensor, m: Tensor, threshold: float) -> Tensor:
    """What is left of `basis` (D, k) once its strongest directions are taken out."""
    energies, directions = principal(basis.double(), m)
    remaining = energies.sum() - torch.cat([energies.new_zeros(1), energies.cumsum(0)])
    taken = int((remaining[:-1] >= (1 - threshold) * m.trace()).sum())
    return directions[:, taken:]


def design(memory: Dual, c: Tensor, rank: int) -> Tensor:
    """InfLoRA's frozen down-projection D_t (r, D), float64, D D^T = I / 3 (arXiv 2404.00228, section 4.2).

    Its rows are the leading left singular vectors of (I - P) C, with P on the protected space: inside
    what the new experience's inputs span, outside what earlier ones used. Where fewer than `rank`
    directions are left, the other rows are zero and stay without effect (the official code takes whatever
    vectors its decomposition returns there, which are not orthogonal to the protected space).
    """
    _, directions = principal(memory.allowed, energy_matrix(c, "sigma4"))
    rows = directions[:, :rank].T * ROW_NORM
    return torch.cat([rows, rows.new_zeros(rank - len(rows), rows.shape[1])])
