"""CODA-Prompt: components weighted by attention, a share an experience, orthogonal at their start."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from methods.coda_prompt import CodaPrompt, CodaPromptHyper, attend, orthogonal, skewness
from methods.errors import UsageError
from tests.conftest import deep_vit
from tests.methods.conftest import Run
from tests.methods.prompted import grown, images, randomised

PARTS = ("prompts", "keys", "attention")


def test_weights_are_the_cosines_of_attended_queries_and_keys():
    query, attention, keys = torch.randn(4, 8), torch.randn(3, 6, 8), torch.randn(3, 6, 8)
    expected = F.cosine_similarity(query[None, :, None] * attention[:, None], keys[:, None], dim=3)
    torch.testing.assert_close(attend(query, attention, keys), expected, atol=1e-6, rtol=1e-5)


def test_weights_are_of_either_sign_at_most_one_and_not_a_distribution():
    model, method = randomised("coda-prompt")
    model(images())
    weights = method.prompter.weights
    assert weights.abs().max() <= 1 + 1e-6
    assert weights.min() < -0.1
    assert weights.max() > 0.1
    assert (weights.sum(2) - 1).abs().max() > 0.1


def test_a_weight_of_either_sign_counts_by_its_size():
    _, method = randomised("coda-prompt")
    method.prompter.weights = torch.tensor([[[0.5, -0.5]], [[0.1, -0.3]]])
    torch.testing.assert_close(method.prompter.prompt_weights(), torch.tensor([[0.3, 0.4]]))


def test_gradients_of_the_weights_are_those_of_the_formula():
    query = torch.randn(4, 8, dtype=torch.float64)
    shapes = [torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    torch.autograd.gradcheck(lambda a, k: attend(query, a, k), shapes)


@pytest.mark.parametrize("length", [2, 8, 12])
def test_half_of_the_length_are_keys_and_half_values(length):
    model, method = randomised("coda-prompt", length=length)
    seen = []
    for seam in method.prompter.seams:
        model.blocks[0].register_forward_hook(lambda *_, seam=seam: seen.append(seam.prompt))
    model(images())
    assert [(k.shape[1], v.shape[1]) for k, v in seen[5:]] == [(length // 2, length // 2)] * 5


@pytest.mark.parametrize("length", [0, 1, 7])
def test_an_odd_length_is_refused(length):
    with pytest.raises(UsageError, match=r"coda-prompt.length .*got"):
        CodaPrompt(length=length)


@pytest.mark.parametrize(("pool_size", "share"), [(100, 33), (3, 1), (8, 2)])
def test_every_experience_adds_its_share_and_no_more(pool_size, share):
    method = grown("coda-prompt", deep_vit(), pool_size=pool_size)
    for components in method.prompter.experiences:
        assert [getattr(components, name).shape[:2] for name in PARTS] == [(5, share)] * 3
    assert method.prompter.all("keys").shape[1] == 3 * share


def test_the_first_components_are_orthonormal_and_later_ones_are_nearly_orthogonal_to_them():
    method = grown("coda-prompt", deep_vit(), pool_size=15)
    first = method.prompter.experiences[0]
    for name in PARTS:
        for block in getattr(first, name):
            rows = block.flatten(1)
            torch.testing.assert_close(rows @ rows.T, torch.eye(5), atol=1e-5, rtol=0)
    everything = method.prompter.all("keys")[0]  # nothing was trained in between: all are orthonormal
    torch.testing.assert_close(everything @ everything.T, torch.eye(15), atol=1e-5, rtol=0)


def test_against_rows_that_are_not_orthogonal_each_is_taken_out_on_its_own():
    torch.manual_seed(0)
    earlier = torch.randn(3, 8, dtype=torch.float64)
    torch.manual_seed(1)
    row = orthogonal(earlier, 1)[0]
    torch.manual_seed(1)
    drawn = torch.randn(8, dtype=torch.float64)
    expected = drawn - sum((drawn @ u) / (u @ u) * u for u in earlier)
    torch.testing.assert_close(row, expected / expected.norm())


def test_more_rows_than_dimensions_are_unit_rows_still():
    rows = orthogonal(torch.zeros(0, 4), 6)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(6, dtype=torch.float64))


def test_earlier_components_stay_and_take_part():
    run = Run("coda-prompt", epochs=2, pool_size=6)
    for t in (1, 2):
        for j in range(t):
            for name in PARTS:
                key = f"prompts.experiences.{j}.{name}"
                assert torch.equal(run.after[t - 1][key], run.after[t][key])
    model, x = run.model, images()
    with torch.no_grad():
        whole = model(x)
        model.prompts.experiences[0].prompts.zero_()
        assert not torch.allclose(model(x), whole, atol=1e-4)


@pytest.mark.parametrize("ortho", [0.0, 1e-7, 0.1])
def test_the_orthogonality_term_by_hand(ortho):
    model, method = randomised("coda-prompt", pool_size=6, ortho=ortho)
    model(images())
    expected = 0.0
    for name in PARTS:
        for block in method.prompter.all(name).detach().double():
            rows = block.flatten(1)
            expected += ((rows @ rows.T - torch.eye(6)) ** 2).mean().item()
    assert method.prompter.penalty().item() == pytest.approx(ortho * expected, rel=1e-5)


def test_the_orthogonality_term_falls_when_it_is_followed():
    rows = torch.randn(2, 4, 8, requires_grad=True)
    start = skewness(rows)
    start.backward()
    assert skewness(rows.detach() - 1e-3 * rows.grad) < start
    assert skewness(torch.eye(8)[None, :4]) == 0


def test_the_orthogonality_term_is_off_as_in_the_official_code():
    assert CodaPromptHyper().ortho == 0.0


@pytest.mark.parametrize(("experiences", "legal"), [(100, True), (101, False)])
def test_more_experiences_than_components_are_refused(experiences, legal):
    if legal:
        CodaPrompt.check(CodaPromptHyper(), experiences)
        return
    with pytest.raises(UsageError, match=r"pool_size is 100.*legal: at least 101"):
        CodaPrompt.check(CodaPromptHyper(), experiences)


def test_the_recipe_is_that_of_the_official_code():
    recipe = CodaPrompt.paper("cifar100")
    assert recipe["backbone"] == "vit_base_patch16_224.augreg_in21k_ft_in1k"
    assert (recipe["batch_size"], recipe["schedule"], recipe["normalisation"]) == (128, "coda", "unit")
    assert "epochs" not in recipe  # those of the benchmarks' full scale
    hyper = CodaPrompt(**CodaPrompt.paper_options("cifar100")).hyper
    assert (hyper.lr, hyper.pool_size, hyper.length, hyper.blocks) == (1e-3, 100, 8, (0, 1, 2, 3, 4))
