"""Which experience a sample comes from, told by how strongly it excites each experience's bases.

Used by DualLoRA (arXiv 2411.00623), whose abstract says that the bases estimate the task identity and
that the logits are calibrated by its confidence. The formulas are this project's: the paper's were not
available to us.

Shapes: B samples, t experiences learnt so far. The relevance e (B, t) in a block is the share of a
sample's feature energy that each experience's bases hold: at least 0, at most 1 together.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Score = Literal["share", "remaining"]
Calibration = Literal["none", "softmax", "hard", "stick"]

#: No experience is ruled out altogether: the least posterior that a logit is weighted with.
LEAST = 1e-4
TINY = 1e-6


def remaining_share(e: Tensor) -> Tensor:
    """rho_i = e_i / (1 - sum_{k<i} e_k), (..., t): the share of what earlier bases leave over.

    The bases of the first experience hold what all images have in common, so e itself is largest for
    the first experience whatever the sample.
    """
    before = e.cumsum(-1) - e
    return e / (1 - before).clamp_min(TINY)


def evidence(e: Tensor, score: Score) -> Tensor:
    """What of the relevance e (..., t) counts: itself ("share") or `remaining_share`."""
    return remaining_share(e) if score == "remaining" else e


def scores(e: Tensor, usual: Tensor, score: Score) -> Tensor:
    """s (B, t): evidence of the relevance e (B, t) over what is usual for the experience's own images.

    `usual` (t,): mean evidence of each experience's own training images. Where there is none to see, as in a
    block whose class token is the same for all images, the score is 1 for all.
    """
    return (evidence(e, score) + TINY) / (usual + TINY)


def softmax_posterior(s: Tensor, tau: float) -> Tensor:
    """pi = softmax(s / tau), (B, t): cancels what all scores of a sample have in common."""
    return torch.softmax(s / tau, -1)


def stick_posterior(s: Tensor, tau: float, theta: float) -> Tensor:
    """pi_i = p_i prod_{k>i} (1 - p_k), with p = sigmoid((s - theta) / tau) and p_1 = 1, (B, t).

    The experience is the newest one whose bases are active: later bases were chosen outside what earlier
    images need.
    """
    p = torch.sigmoid((s - theta) / tau)
    p = torch.cat([torch.ones_like(p[:, :1]), p[:, 1:]], 1)
    newer_silent = (1 - p).flip(1).cumprod(1).flip(1)
    return p * torch.cat([newer_silent[:, 1:], torch.ones_like(p[:, :1])], 1)


def posterior(s: Tensor, calibration: Calibration, tau: float, theta: float) -> Tensor:
    """pi (B, t) of scores s (B, t), rows summing to 1."""
    return stick_posterior(s, tau, theta) if calibration == "stick" else softmax_posterior(s, tau)


def confidence(pi: Tensor) -> Tensor:
    """kappa = 1 - H(pi) / log t, (B,), in [0, 1]; 0 where there is one experience only."""
    if pi.shape[-1] == 1:
        return pi.new_zeros(pi.shape[:-1])
    entropy = -torch.xlogy(pi, pi).sum(-1)
    return (1 - entropy / math.log(pi.shape[-1])).clamp(0, 1)


def log_weights(pi: Tensor, calibration: Calibration, beta: float, certain: float) -> Tensor:
    """What is added to the logits of each experience's classes, (B, t).

    - softmax: beta log pi: class probabilities times pi^beta;
    - stick: beta kappa log pi: an undecided posterior changes nothing;
    - hard: minus infinity outside the most likely experience where kappa > `certain`, else nothing.
    """
    if calibration == "hard":
        other = torch.ones_like(pi, dtype=torch.bool).scatter_(-1, pi.argmax(-1, keepdim=True), False)
        decided = confidence(pi) > certain
        return torch.zeros_like(pi).masked_fill_(other & decided[:, None], -torch.inf)
    weights = beta * pi.clamp_min(LEAST).log()
    return weights * confidence(pi)[:, None] if calibration == "stick" else weights
