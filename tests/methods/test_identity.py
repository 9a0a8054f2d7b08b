"""Task identity: scores, posteriors, confidence and logit weights, by hand and by their properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from methods.duallora import relevance
from methods.identity import (
    LEAST,
    TINY,
    Score,
    confidence,
    evidence,
    log_weights,
    posterior,
    remaining_share,
    scores,
    softmax_posterior,
    stick_posterior,
)
from methods.subspace import append_basis, new_directions

few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)
counts = st.integers(1, 8)
CALIBRATIONS = ["softmax", "stick", "hard"]


def random_scores(seed: int, t: int, samples: int = 5) -> Tensor:
    return 3 * torch.randn(samples, t, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# ---- evidence and scores -------------------------------------------------------------------------


def test_the_remaining_share_is_what_later_bases_hold_of_what_earlier_ones_leave():
    e = torch.tensor([[0.5, 0.25, 0.125], [0.8, 0.1, 0.1]], dtype=torch.float64)
    expected = torch.tensor([[0.5, 0.5, 0.5], [0.8, 0.5, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(remaining_share(e), expected)


def test_where_nothing_is_left_over_the_remaining_share_stays_finite():
    e = torch.tensor([1.0, 0.0, 1e-9])
    torch.testing.assert_close(remaining_share(e), torch.tensor([1.0, 0.0, 1e-9 / TINY]))


@given(seeds, counts)
@few
def test_the_remaining_share_is_a_share_and_does_not_see_later_experiences(seed, t):
    rng = torch.Generator().manual_seed(seed)
    parts = torch.rand(4, t + 1, generator=rng, dtype=torch.float64) + 1e-3
    e = (parts / parts.sum(-1, keepdim=True))[:, :t]
    rho = remaining_share(e)
    assert (rho >= 0).all()
    assert (rho <= 1 + 1e-9).all()
    for k in range(1, t + 1):
        torch.testing.assert_close(remaining_share(e[:, :k]), rho[:, :k])


def test_scores_are_evidence_over_what_is_usual():
    e, means = torch.tensor([[0.5, 0.25], [0.2, 0.4]]), torch.tensor([0.4, 0.5])
    torch.testing.assert_close(scores(e, means, "share"), torch.tensor([[1.25, 0.5], [0.5, 0.8]]))
    torch.testing.assert_close(scores(e, means, "remaining"), torch.tensor([[1.25, 1.0], [0.5, 1.0]]))


# ---- posteriors ----------------------------------------------------------------------------------


def test_the_softmax_posterior_by_hand():
    s = torch.tensor([[1.0, 0.7, 1.3]], dtype=torch.float64)
    weights = [math.exp(value / 0.3) for value in (1.0, 0.7, 1.3)]
    expected = torch.tensor([[w / sum(weights) for w in weights]], dtype=torch.float64)
    torch.testing.assert_close(softmax_posterior(s, 0.3), expected)


def test_the_stick_posterior_by_hand():
    s = torch.tensor([[-5.0, 1.2, 0.9]], dtype=torch.float64)
    p2, p3 = sigmoid((1.2 - 1.0) / 0.5), sigmoid((0.9 - 1.0) / 0.5)
    expected = torch.tensor([[(1 - p2) * (1 - p3), p2 * (1 - p3), p3]], dtype=torch.float64)
    torch.testing.assert_close(stick_posterior(s, tau=0.5, theta=1.0), expected)


def test_the_stick_posterior_takes_the_newest_experience_that_is_active():
    s = torch.tensor([[9.0, 9.0, 0.0], [9.0, 0.0, 0.0], [0.0, 9.0, 9.0]])
    assert stick_posterior(s, tau=0.1, theta=1.0).argmax(1).tolist() == [1, 0, 2]


@given(seeds, counts, st.sampled_from(CALIBRATIONS), st.floats(0.05, 5), st.floats(-2, 2))
@few
def test_a_posterior_is_a_distribution(seed, t, calibration, tau, theta):
    pi = posterior(random_scores(seed, t), calibration, tau, theta)
    assert (pi >= 0).all()
    torch.testing.assert_close(pi.sum(1), torch.ones(5, dtype=torch.float64))


@given(seeds, counts, st.floats(-10, 10))
@few
def test_the_softmax_posterior_does_not_see_what_all_scores_of_a_sample_have_in_common(seed, t, common):
    s = random_scores(seed, t)
    torch.testing.assert_close(softmax_posterior(s + common, 0.3), softmax_posterior(s, 0.3))


@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_one_experience_leaves_nothing_to_decide(calibration):
    pi = posterior(random_scores(0, 1), calibration, 0.3, 1.0)
    assert torch.equal(pi, torch.ones_like(pi))
    assert torch.equal(confidence(pi), torch.zeros(5, dtype=torch.float64))
    assert torch.equal(log_weights(pi, calibration, 1.0, 0.5), torch.zeros_like(pi))


# ---- confidence ----------------------------------------------------------------------------------


def test_confidence_by_hand():
    pi = torch.tensor([[0.5, 0.25, 0.25, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(confidence(pi), torch.tensor([1 - 1.5 / 2], dtype=torch.float64))


@given(st.integers(2, 9))
@few
def test_confidence_is_one_for_certainty_and_zero_for_none(t):
    torch.testing.assert_close(confidence(torch.eye(t)), torch.ones(t))
    torch.testing.assert_close(confidence(torch.full((1, t), 1 / t)), torch.zeros(1), atol=1e-6, rtol=0)


@given(seeds, st.integers(2, 8), st.floats(0.05, 5))
@few
def test_confidence_lies_in_the_unit_interval_and_does_not_see_the_order(seed, t, tau):
    pi = softmax_posterior(random_scores(seed, t), tau)
    kappa = confidence(pi)
    assert ((kappa >= 0) & (kappa <= 1)).all()
    torch.testing.assert_close(confidence(pi.flip(1)), kappa)


# ---- what is added to the logits -----------------------------------------------------------------


def test_softmax_weights_by_hand():
    pi = torch.tensor([[0.75, 0.25, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[math.log(0.75), math.log(0.25), math.log(LEAST)]], dtype=torch.float64)
    torch.testing.assert_close(log_weights(pi, "softmax", beta=2.0, certain=0.5), 2 * expected)


def test_stick_weights_are_scaled_by_the_confidence():
    pi = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    weights = log_weights(pi, "stick", beta=2.0, certain=0.5)
    expected = [2 * 0.25 * math.log(p) for p in (0.5, 0.25, 0.25, LEAST)]
    torch.testing.assert_close(weights[0], torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(weights[1], torch.zeros(4, dtype=torch.float64))


def test_hard_weights_mask_the_other_experiences_only_where_certain():
    pi = torch.tensor([[0.98, 0.01, 0.01], [0.4, 0.3, 0.3], [0.01, 0.01, 0.98]])
    sure = confidence(pi)
    assert sure[0] > 0.8
    assert sure[1] < 0.2
    out = -math.inf
    expected = torch.tensor([[0.0, out, out], [0.0, 0.0, 0.0], [out, out, 0.0]])
    assert torch.equal(log_weights(pi, "hard", beta=1.0, certain=0.5), expected)
    assert torch.equal(log_weights(pi, "hard", beta=1.0, certain=1.0), torch.zeros(3, 3))


@given(seeds, counts, st.sampled_from(["softmax", "stick"]))
@few
def test_beta_zero_changes_nothing(seed, t, calibration):
    pi = posterior(random_scores(seed, t), calibration, 0.3, 1.0)
    weights = log_weights(pi, calibration, beta=0.0, certain=0.5)
    assert torch.equal(weights.abs(), torch.zeros_like(pi))


@given(seeds, counts)
@few
def test_softmax_weights_multiply_the_class_probabilities(seed, t):
    """exp(z + beta log pi) is proportional to exp(z) pi^beta, wherever pi is not tiny."""
    pi = softmax_posterior(random_scores(seed, t), 3.0)
    logits = random_scores(seed + 1, t)
    changed = torch.softmax(logits + log_weights(pi, "softmax", 0.5, 0.5), 1)
    product = torch.softmax(logits, 1) * pi.clamp_min(LEAST).sqrt()
    torch.testing.assert_close(changed, product / product.sum(1, keepdim=True))


@given(seeds, st.integers(2, 6), st.sampled_from(CALIBRATIONS))
@few
def test_knowing_the_experience_leaves_only_its_classes(seed, t, calibration):
    """With a certain posterior the arg-max over all classes is the one within the true experience."""
    rng = torch.Generator().manual_seed(seed)
    logits = (8 * torch.rand(20, t, 3, generator=rng) - 4).double()  # 3 classes an experience
    truth = torch.randint(t, (20,), generator=rng)
    oracle = torch.nn.functional.one_hot(truth, t).double()
    weights = log_weights(oracle, calibration, beta=1.0, certain=0.5)
    predicted = (logits + weights[:, :, None]).flatten(1).argmax(1)
    assert torch.equal(predicted, 3 * truth + logits[torch.arange(20), truth].argmax(1))


# ---- images with a strong common mean ------------------------------------------------------------

WIDTH, EXPERIENCES, SAMPLES = 48, 6, 120


def common_mean_features(seed: int) -> Tensor:
    """Features (t, n, D): every experience has directions of its own beside a large common mean."""
    rng = torch.Generator().manual_seed(seed)
    mean = torch.randn(WIDTH, generator=rng, dtype=torch.float64)
    own = torch.randn(EXPERIENCES, 4, WIDTH, generator=rng, dtype=torch.float64)
    noise = 0.3 * torch.randn(EXPERIENCES, SAMPLES, WIDTH, generator=rng, dtype=torch.float64)
    return 3 * mean + torch.randn(EXPERIENCES, SAMPLES, 4, generator=rng, dtype=torch.float64) @ own + noise


def bases_of(features: Tensor) -> tuple[Tensor, Tensor]:
    """The bases (D, m) that grow with the experiences, and whose each column is (m, t)."""
    basis, owners = torch.zeros(WIDTH, 0, dtype=torch.float64), []
    for i, seen in enumerate(features):
        more = new_directions(basis, seen.T @ seen / len(seen), 0.98, at_least=1)
        basis = append_basis(basis, more)
        owners += [i] * more.shape[1]
    return basis, torch.nn.functional.one_hot(torch.tensor(owners), EXPERIENCES).float()


def relevances(features: Tensor, basis: Tensor, member: Tensor) -> Tensor:
    """e (t, n, t): the relevance of every experience's samples."""
    return torch.stack([relevance(seen[:, None], basis, member) for seen in features])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("score", ["share", "remaining"])
def test_normalised_scores_tell_the_experience_where_the_raw_relevance_cannot(score: Score, seed: int):
    features = common_mean_features(seed)
    learnt, new = features[:, : SAMPLES // 2], features[:, SAMPLES // 2 :]
    basis, member = bases_of(learnt)
    own = relevances(learnt, basis, member)
    means = torch.stack([evidence(own[i], score)[:, i].mean() for i in range(EXPERIENCES)])
    truth = torch.arange(EXPERIENCES).repeat_interleave(SAMPLES // 2)
    e = relevances(new, basis, member).flatten(0, 1)

    raw = (e.argmax(1) == truth).float().mean().item()
    assert raw < 1.2 / EXPERIENCES  # the common mean lies in the first experience's bases
    s = scores(e, means, score)
    for calibration in CALIBRATIONS:
        pi = posterior(s, calibration, 0.3, 1.0)
        accuracy = (pi.argmax(1) == truth).float().mean().item()
        assert accuracy > 3 / EXPERIENCES, calibration
