"""Estimation of the experience a sample comes from, by the energy that each experience's bases hold of it.

Used by DualLoRA (arXiv 2411.00623), whose abstract says that the bases estimate the task identity and that
the logits are calibrated by its confidence. The formulas are this project's: those of the paper were not
available to us.

Shapes: B samples, t experiences learnt so far. The relevance e (B, t) in a block is the share of the energy
of a sample's features that each experience's bases hold: each is at least 0, their sum is at most 1.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Score = Literal["share", "remaining"]
Calibration = Literal["none", "softmax", "hard", "stick"]

#: Lower bound of a posterior whose logarithm is taken: no experience is ruled out altogether.
LEAST = 1e-4
TINY = 1e-6


def remaining_share(e: Tensor) -> Tensor:
    """rho_i = e_i / (1 - sum_{k<i} e_k), (..., t): the share of the energy that earlier bases do not hold.

    The bases of the first experience hold what all images have in common, so e itself is largest for the
    first experience with any sample.
    """
    before = e.cumsum(-1) - e
    return e / (1 - before).clamp_min(TINY)


def evidence(e: Tensor, score: Score) -> Tensor:
    """The evidence (..., t) in the relevance e (..., t): e itself, or its `remaining_share`."""
    return remaining_share(e) if score == "remaining" else e


def scores(e: Tensor, mean_evidence: Tensor, score: Score) -> Tensor:
    """s (B, t): the evidence in the relevance e (B, t), divided by its mean over the experience's images.

    Args:
        mean_evidence: (t,), mean over the training images of each experience. Where it and the evidence are
            zero, as in a block whose class token is the same for all images, all scores are 1.
    """
    return (evidence(e, score) + TINY) / (mean_evidence + TINY)


def softmax_posterior(s: Tensor, tau: float) -> Tensor:
    """pi = softmax(s / tau), (B, t): a term that all scores of a sample share has no effect."""
    return torch.softmax(s / tau, -1)


def stick_posterior(s: Tensor, tau: float, theta: float) -> Tensor:
    """pi_i = p_i prod_{k>i} (1 - p_k), with p = sigmoid((s - theta) / tau) and p_1 = 1, (B, t).

    The experience is the newest one whose bases are active, because later bases are orthogonal to the
    directions that earlier images need.
    """
    p = torch.sigmoid((s - theta) / tau)
    p = torch.cat([torch.ones_like(p[:, :1]), p[:, 1:]], 1)
    newer_silent = (1 - p).flip(1).cumprod(1).flip(1)
    return p * torch.cat([newer_silent[:, 1:], torch.ones_like(p[:, :1])], 1)


def posterior(s: Tensor, calibration: Calibration, tau: float, theta: float) -> Tensor:
    """The posterior pi (B, t), whose rows sum to 1, of the scores s (B, t)."""
    return stick_posterior(s, tau, theta) if calibration == "stick" else softmax_posterior(s, tau)


def confidence(pi: Tensor) -> Tensor:
    """kappa = 1 - H(pi) / log t, (B,), in [0, 1], with H the entropy; 0 if there is one experience only."""
    if pi.shape[-1] == 1:
        return pi.new_zeros(pi.shape[:-1])
    entropy = -torch.xlogy(pi, pi).sum(-1)
    return (1 - entropy / math.log(pi.shape[-1])).clamp(0, 1)


def log_weights(pi: Tensor, calibration: Calibration, beta: float, certain: float) -> Tensor:
    """The term (B, t) that is added to the logits of each experience's classes.

    - softmax: beta log pi, which multiplies class probabilities by pi^beta;
    - stick: beta kappa log pi, so that an undecided posterior changes nothing;
    - hard: minus infinity outside the most likely experience where kappa > `certain`, else 0.
    """
    if calibration == "hard":
        other = torch.ones_like(pi, dtype=torch.bool).scatter_(-1, pi.argmax(-1, keepdim=True), False)
        decided = confidence(pi) > certain
        return torch.zeros_like(pi).masked_fill_(other & decided[:, None], -torch.inf)
    weights = beta * pi.clamp_min(LEAST).log()
    return weights * confidence(pi)[:, None] if calibration == "stick" else weights
