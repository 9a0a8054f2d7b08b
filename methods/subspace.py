"""Gradient-projection memory: the directions of a layer's input that earlier experiences have used.

An update dW of a weight changes the output for an input u by dW u, so an experience is protected as long as
the rows of later updates are orthogonal to the space that its inputs span (GPM, Saha et al., ICLR 2021, arXiv
2103.09762). The inputs enter only through their uncentred second moment C = E[u u^T], (D, D), whatever the
number of images. All functions here are pure functions of such matrices and of bases with orthonormal
columns, in float64.

Shapes: D width of the layer, k number of directions kept, r rank of an adapter.

Energy. There are two measures of how much of C a basis holds. They are not interchangeable: a threshold of
0.98 may keep hundreds of directions by one and a single direction by the other.

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

#: Norm of the rows of a designed down-projection: the average norm under kaiming_uniform(a=sqrt(5)).
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

    @classmethod
    def zeros(cls, width: int, device: torch.device | str = "cpu") -> Moment:
        """The moment of no inputs."""
        return cls(torch.zeros(width, width, dtype=torch.float64, device=device))

    def plus(self, inputs: Tensor) -> Moment:
        """With the inputs (n, ..., D) added. The products of a batch are in float32, sums in float64."""
        flat = inputs.detach().flatten(0, -2).float()
        with torch.autocast(flat.device.type, enabled=False):
            product = flat.T @ flat
        return Moment(self.total + product.double(), self.rows + len(flat))


def energy_threshold(low: float, high: float, done: int, total: int) -> float:
    """Share of the energy to protect after `done` of `total` experiences: low + (high - low) done / total.

    As in InfLoRA's code, `done` counts from 0, so `high` itself is never reached (the paper counts from 1).
    """
    return low + (high - low) * done / total


def energy_matrix(c: Tensor, energy: Energy) -> Tensor:
    """M (D, D), symmetric, float64: tr(M) is the energy of C, tr(F^T M F) what a basis F holds of it."""
    c = c.double()
    m = c if energy == "sigma2" else c @ c
    symmetric: Tensor = (m + m.T) / 2
    return symmetric


def captured(basis: Tensor, m: Tensor) -> float:
    """Share, in [0, 1], of the energy of M (D, D) that the basis (D, k) holds; 1 if M is zero."""
    total = m.trace()
    held = (m @ basis.double() * basis.double()).sum()
    return float((held / total).clamp(0, 1)) if total > 0 else 1.0


def complement(basis: Tensor) -> Tensor:
    """Orthonormal basis (D, D - k), float64, of the orthogonal complement of `basis` (D, k)."""
    q: Tensor = torch.linalg.qr(basis.double(), mode="complete").Q
    return q[:, basis.shape[1] :]


def principal(space: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """Energies (n,), descending, and directions (D, n) of M within the span of `space` (D, n)."""
    values, vectors = torch.linalg.eigh(space.T @ m @ space)
    return values.flip(0).clamp_min(0), space @ vectors.flip(1)


def rank_for_energy(held: Tensor, energies: Tensor, enough: Tensor) -> int:
    """Smallest k with held + energies[:k].sum() >= enough; len(energies) if there is none."""
    reached = held + torch.cat([energies.new_zeros(1), energies.cumsum(0)])
    return min(int((reached < enough).sum()), len(energies))


def new_directions(
    basis: Tensor,
    m: Tensor,
    threshold: float,
    *,
    at_least: int = 0,
    at_most: int | None = None,
    strict: bool = False,
) -> Tensor:
    """Directions (D, k) to append to `basis` (D, n) so that it holds the share `threshold` of M's energy.

    GPM (arXiv 2103.09762), equations 8 and 9. They are orthonormal and orthogonal to `basis`, in descending
    order of energy.

    Args:
        at_least, at_most: bounds on k; `at_most` has precedence, and k is at most the D - n that are left.
        strict: stop one direction before the threshold is reached, as the code of GPM and of InfLoRA does
            at the first experience (it counts cumulative shares below the threshold).
    """
    space = complement(basis)
    energies, directions = principal(space, m)
    k = rank_for_energy(m.trace() - energies.sum(), energies, threshold * m.trace()) - strict
    k = max(k, at_least)
    return directions[:, : min(k, len(energies) if at_most is None else at_most)]


def append_basis(basis: Tensor, more: Tensor) -> Tensor:
    """`basis` (D, n) followed by the columns `more` (D, k), orthonormalised against it and each other.

    The columns of `basis` are returned unchanged. Without the orthonormalisation rounding errors would grow
    with the number of experiences.
    """
    old, new = basis.double(), more.double()
    for _ in range(2):  # twice is enough (Kahan and Parlett)
        new = torch.linalg.qr(new - old @ (old.T @ new)).Q
    return torch.cat([old, new], 1)


@dataclass(frozen=True)
class DualGpm:
    """DualGPM's memory of one layer: a basis of the used space, or of its complement once that is smaller.

    Attributes:
        basis: (D, k), orthonormal columns.
        retained: False: the columns span the used space, which is removed from later updates. True: they span
            its complement, in which later updates are retained.
    """

    basis: Tensor
    retained: bool = False

    @classmethod
    def empty(cls, width: int, device: torch.device | str = "cpu") -> DualGpm:
        """The memory before the first experience."""
        return cls(torch.zeros(width, 0, dtype=torch.float64, device=device))

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


def remember(memory: DualGpm, m: Tensor, threshold: float) -> DualGpm:
    """DualGPM's update (Liang and Li, CVPR 2023; as in InfLoRA's code) by the energies M (D, D).

    Directions are added until the protected space holds the share `threshold`; in the retained mode they
    are removed from the complement, in descending order of energy, until it holds less than 1 - `threshold`.
    Once the protected space has more than D / 2 dimensions, its complement is kept instead.
    """
    if memory.retained:
        return replace(memory, basis=_shrunk(memory.basis, m, threshold))
    first = memory.basis.shape[1] == 0
    more = new_directions(memory.basis, m, threshold, at_least=int(first), strict=first)
    grown = append_basis(memory.basis, more)
    if grown.shape[1] > len(m) / 2:
        return DualGpm(complement(grown), retained=True)
    return DualGpm(grown)


def _shrunk(basis: Tensor, m: Tensor, threshold: float) -> Tensor:
    """`basis` (D, k) without as many strongest directions as needed to hold less than 1 - `threshold`."""
    energies, directions = principal(basis.double(), m)
    remaining = energies.sum() - torch.cat([energies.new_zeros(1), energies.cumsum(0)])
    removed = int((remaining[:-1] >= (1 - threshold) * m.trace()).sum())
    return directions[:, removed:]


def design(memory: DualGpm, c: Tensor, rank: int) -> Tensor:
    """InfLoRA's frozen down-projection D_t (r, D), float64, D D^T = I / 3 (arXiv 2404.00228, section 4.2).

    Its rows are the leading left singular vectors of (I - P) C, with P the projector on the protected space:
    within the span of the new experience's inputs, orthogonal to the space that earlier ones used. Where
    fewer than `rank` directions are left, the other rows are zero and have no effect (the official code takes
    the vectors that its decomposition returns there, which are not orthogonal to the protected space).
    """
    _, directions = principal(memory.allowed, energy_matrix(c, "sigma4"))
    rows = directions[:, :rank].T * ROW_NORM
    return torch.cat([rows, rows.new_zeros(rank - len(rows), rows.shape[1])])
