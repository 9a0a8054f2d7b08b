"""DualPrompt: an expert an experience, forced in training, matched at test; keys are kept from values."""

from __future__ import annotations

import pytest
import torch

from methods.dualprompt import DualPrompt, DualPromptHyper
from methods.errors import UsageError
from methods.prompts import cosine_similarity
from tests.methods.conftest import Run
from tests.methods.prompted import images, randomised


def handed_out(model, method, x):
    """The (keys, values) of every prompted block, as the blocks get them."""
    seen = []
    for seam in method.prompter.seams:
        model.blocks[0].register_forward_hook(lambda *_, seam=seam: seen.append(seam.prompt))
    model(x)
    for block in model.blocks:
        block._forward_hooks.clear()
    return seen[len(method.prompter.seams) :]


@pytest.mark.parametrize("n", [1, 2, 4])
def test_keys_are_given_as_keys_and_values_as_values_to_every_image(n):
    """A reshape in place of a transposition gives half of the images two keys, the others two values."""
    model, method = randomised("dualprompt")
    parts = method.prompter
    prompts = handed_out(model, method, images()[:n])
    for block, (keys, values) in enumerate(prompts[:2]):
        assert torch.equal(keys.expand(n, -1, -1), parts.general[block, 0].expand(n, -1, -1))
        assert torch.equal(values.expand(n, -1, -1), parts.general[block, 1].expand(n, -1, -1))
    for block, (keys, values) in enumerate(prompts[2:]):
        for i, t in enumerate(parts.selected.tolist()):
            assert torch.equal(keys[i], parts.experts[t][block, 0])
            assert torch.equal(values[i], parts.experts[t][block, 1])


def test_an_image_is_given_the_expert_of_the_nearest_key():
    model, method = randomised("dualprompt")
    model(images())
    parts = method.prompter
    similar = torch.stack([cosine_similarity(parts.query, key[None])[:, 0] for key in parts.keys], 1)
    assert torch.equal(parts.selected, similar.argmax(1))
    assert len(set(parts.selected.tolist())) == 3


def test_images_of_a_device_vote_on_their_expert_at_test_and_not_in_training():
    model, method = randomised("dualprompt", selection="batch", vote_size=3)
    x, parts = images()[:10], method.prompter
    prompts = handed_out(model, method, x)
    own = cosine_similarity(parts.query, torch.stack(list(parts.keys))).argmax(1)
    for start in range(0, 10, 3):
        votes = own[start : start + 3].bincount(minlength=3).tolist()
        winner = votes.index(max(votes))  # of equals, the earlier one
        assert set(parts.selected[start : start + 3].tolist()) == {winner}
        assert torch.equal(prompts[2][0][start], parts.experts[winner][0, 0])
    assert not torch.equal(parts.selected, own)
    model.train()
    model(x)
    assert set(parts.selected.tolist()) == {2}


def test_in_training_all_images_are_given_the_current_expert():
    model, method = randomised("dualprompt")
    model.train()
    prompts = handed_out(model, method, images())
    for block, (keys, values) in enumerate(prompts[2:]):
        assert torch.equal(keys[0], method.prompter.experts[2][block, 0])
        assert torch.equal(values[0], method.prompter.experts[2][block, 1])
    assert set(method.prompter.selected.tolist()) == {2}


@pytest.mark.parametrize(("general", "expert"), [(5, 5), (3, 20)])
def test_as_many_keys_are_attended_to_as_the_length_says(general, expert):
    """Each of keys and values has the whole length, not half of it."""
    model, method = randomised("dualprompt", general_length=general, expert_length=expert)
    prompts = handed_out(model, method, images())
    assert [(k.shape[1], v.shape[1]) for k, v in prompts] == [(general, general)] * 2 + [(expert, expert)] * 3


def test_a_step_on_the_key_alone_brings_it_nearer_to_the_queries():
    model, method = randomised("dualprompt")
    model.train()
    model(images())
    parts = method.prompter
    parts.keys.requires_grad_(True)
    loss, before = parts.penalty(), cosine_similarity(parts.query, parts.keys[2][None]).mean().item()
    assert loss.item() == pytest.approx(-before, rel=1e-5)
    loss.backward()
    with torch.no_grad():
        parts.keys[2] -= 0.01 * parts.keys[2].grad
    assert cosine_similarity(parts.query, parts.keys[2][None]).mean() > before
    assert parts.penalty() < loss
    assert parts.keys[0].grad is None
    assert parts.general.grad is None
    assert all(p.grad is None for p in model.blocks.parameters())


def test_an_experience_moves_its_own_expert_and_key_and_the_general_prompt():
    run = Run("dualprompt", epochs=1)
    for t in (1, 2):
        before, after = run.after[t - 1], run.after[t]
        same = {key for key in before if torch.equal(before[key], after[key])}
        experts = {f"prompts.{part}.{j}" for part in ("experts", "keys") for j in range(t)}
        assert experts <= same
        assert "prompts.general" not in same


def test_an_expert_starts_from_the_one_before_and_its_key_does_not():
    starts = Run("dualprompt", epochs=1, experiences=1)
    trained = starts.method.prompter
    starts.method.start_experience(starts.model, [0, 5])
    assert torch.equal(trained.experts[1], trained.experts[0])
    assert not torch.equal(trained.keys[1], trained.keys[0])
    assert 0 <= trained.keys[1].min() <= trained.keys[1].max() <= 0.01


def test_matching_finds_most_experiences_and_says_how_many():
    run = Run("dualprompt", epochs=4)
    run.strategy.eval(run.benchmark.test_stream)
    diagnostics = run.method.diagnostics()
    table = torch.tensor(diagnostics["prompt_choices"])
    torch.testing.assert_close(table.sum(1), torch.ones(3))
    sizes = torch.tensor([len(e.dataset) for e in run.benchmark.test_stream])
    own = (table.diagonal() * sizes).sum() / sizes.sum()
    assert diagnostics["task_identity_accuracy"] == pytest.approx(own.item(), rel=1e-5)
    assert diagnostics["task_identity_accuracy"] > 0.5


@pytest.mark.parametrize(("experiences", "legal"), [(10, True), (11, False)])
def test_more_experiences_than_the_pool_holds_are_refused(experiences, legal):
    if legal:
        DualPrompt.check(DualPromptHyper(), experiences)
        return
    with pytest.raises(UsageError, match=r"pool_size is 10.*legal: at least 11; set dualprompt.pool_size=11"):
        DualPrompt.check(DualPromptHyper(), experiences)


def test_a_block_holds_the_general_prompt_or_an_expert():
    with pytest.raises(UsageError, match="distinct numbers"):
        randomised("dualprompt", general_blocks=[0, 1], expert_blocks=[1, 2])


@pytest.mark.parametrize(
    ("benchmark", "epochs", "rate", "length"), [("cifar100", 5, 0.03, 5), ("imagenet-r", 50, 0.005, 20)]
)
def test_the_recipe_is_that_of_the_official_code(benchmark, epochs, rate, length):
    recipe, options = DualPrompt.paper(benchmark), DualPrompt.paper_options(benchmark)
    assert recipe["backbone"] == "vit_base_patch16_224.orig_in21k"
    assert (recipe["epochs"], recipe["batch_size"], recipe["schedule"]) == (epochs, 192, "constant")
    hyper = DualPrompt(**options).hyper
    assert (hyper.lr, hyper.expert_length) == (pytest.approx(rate * 192 / 256), length)
    assert (hyper.general_length, hyper.pull, hyper.clip, hyper.clip_over) == (5, 1.0, 1.0, "all")
    votes = benchmark == "cifar100"  # batchwise_prompt is False in configs/imr_dualprompt.py
    assert (hyper.selection, recipe["test_batches"]) == (("batch", "task") if votes else ("sample", "mixed"))
    assert DualPrompt.batch_group(hyper) == (24 if votes else None)
