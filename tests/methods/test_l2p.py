"""L2P: the pool, whose key is pulled where, and what choosing by batch would leak."""

from __future__ import annotations

import pytest
import torch

from bench.cell.batches import AUGMENTATIONS
from bench.cell.strategy import SCHEDULES
from methods.errors import UsageError
from methods.l2p import L2P, L2PHyper
from methods.prompts import cosine_similarity
from tests.methods.conftest import Run
from tests.methods.prompted import images, randomised


def test_images_are_given_the_prompts_of_the_nearest_keys():
    model, method = randomised("l2p", top_k=3)
    model(images())
    pool = method.prompter
    similar = cosine_similarity(pool.query, pool.keys)
    for line, selected, chosen in zip(similar, pool.selected, pool.prompt_weights(), strict=True):
        nearest = set(line.argsort(descending=True)[:3].tolist())
        assert set(selected.tolist()) == nearest
        assert chosen.tolist() == [float(m in nearest) for m in range(10)]
    assert len(pool.selected.unique(dim=0)) > 1


def test_a_step_on_the_keys_alone_brings_the_chosen_ones_nearer_and_leaves_the_others():
    model, method = randomised("l2p", top_k=2)
    model(images()[:3])
    pool = method.prompter
    before = cosine_similarity(pool.query, pool.keys).detach()
    old, loss = pool.keys.detach().clone(), pool.penalty()
    loss.backward()
    with torch.no_grad():
        pool.keys -= 0.01 * pool.keys.grad
    after = cosine_similarity(pool.query, pool.keys).detach()
    assert after.gather(1, pool.selected).sum() > before.gather(1, pool.selected).sum()
    assert pool.penalty() < loss
    unused = sorted(set(range(10)) - set(pool.selected.flatten().tolist()))
    assert unused
    assert torch.equal(pool.keys[unused], old[unused])
    assert pool.prompts.grad is None
    assert all(p.grad is None for p in model.blocks.parameters())


def test_the_pull_is_the_mean_over_images_of_sums_over_their_own_keys():
    """A batch's loss is the mean of its images': no image pulls a key that another one chose."""
    model, method = randomised("l2p", pull=0.7)
    x, pool = images(), method.prompter
    model(x)
    together = pool.penalty().item()
    alone = []
    for image in x:
        model(image[None])
        alone.append(pool.penalty().item())
        similar = cosine_similarity(pool.query, pool.keys)[0, pool.selected[0]]
        assert alone[-1] == pytest.approx(-0.7 * similar.sum().item(), rel=1e-5)
    assert together == pytest.approx(sum(alone) / len(alone), rel=1e-5)


@pytest.mark.parametrize("pull", [0.0, 0.5])
def test_without_the_pull_the_keys_never_learn(pull):
    run = Run("l2p", epochs=1, pull=pull)
    assert torch.equal(run.after[0]["prompts.keys"], run.after[1]["prompts.keys"]) == (pull == 0)


def test_the_pool_is_shared_by_all_experiences():
    run = Run("l2p", epochs=1)
    assert run.method.prompter.prompts.shape[0] == 10
    for earlier, later in zip(run.after[:-1], run.after[1:], strict=True):
        assert not torch.equal(earlier["prompts.prompts"], later["prompts.prompts"])
    assert set(run.method.frozen_after(0)) == {"head.tasks.0.weight", "head.tasks.0.bias"}


def test_prompts_and_keys_start_small_and_positive():
    run = Run("l2p", epochs=1, experiences=0, start=0.02)
    run.method.attach(run.model)
    for parameter in run.model.prompts.parameters():
        assert parameter.min() >= 0
        assert 0.018 < parameter.max() <= 0.02


def test_chosen_by_batch_the_logits_depend_on_the_mates():
    """The control of the contract: why `selection=batch` is marked."""
    model, _ = randomised("l2p", selection="batch", top_k=2)
    x = images()
    with torch.no_grad():
        together, alone = model(x), torch.cat([model(image[None]) for image in x])
    assert (together - alone).abs().max() > 1e-2


def test_a_device_of_the_official_code_votes_for_its_images():
    """Keys are pulled by the images of the group that chose them, and the prompts differ between groups."""
    model, method = randomised("l2p", selection="batch", vote_size=4, top_k=2)
    x, pool = images(per_class=2)[:10], method.prompter
    model(x)
    together, penalty = pool.selected.clone(), pool.penalty().item()
    groups, penalties = [], []
    for group in x.split(4):
        model(group)
        own = cosine_similarity(pool.query, pool.keys).topk(2).indices.flatten().bincount(minlength=10)
        winners = sorted(range(10), key=lambda prompt: (-own[prompt].item(), prompt))[:2]
        assert pool.selected.tolist() == [winners] * len(group)
        groups.append(pool.selected.clone())
        penalties.append(pool.penalty().item() * len(group))
    assert torch.equal(together, torch.cat(groups))
    assert len(together.unique(dim=0)) > 1
    assert penalty == pytest.approx(sum(penalties) / len(x), rel=1e-5)


def test_choosing_by_batch_is_marked_and_is_not_the_default():
    assert L2P().hyper.selection == "sample"
    assert L2P.caveats(L2PHyper()) == ()
    (caveat,) = L2P.caveats(L2PHyper(selection="batch"))
    assert "task identity leaks" in caveat


def test_the_papers_values_are_the_defaults():
    hyper = L2PHyper()
    assert (hyper.pool_size, hyper.length, hyper.top_k, hyper.pull) == (10, 5, 5, 0.5)


def test_more_prompts_than_the_pool_has_are_refused():
    with pytest.raises(UsageError, match=r"l2p.top_k is 11; legal: at most l2p.pool_size, which is 10"):
        L2P.check(L2PHyper(top_k=11), 5)


@pytest.mark.parametrize(("benchmark", "epochs"), [("cifar100", 5), ("imagenet-r", None)])
def test_the_recipe_is_that_of_the_official_code(benchmark, epochs):
    recipe = L2P.paper(benchmark)
    assert recipe["backbone"] == "vit_base_patch16_224.orig_in21k"
    assert recipe["normalisation"] == "unit"
    assert recipe["augmentation"] in AUGMENTATIONS[recipe["geometry"]]
    assert recipe["schedule"] in SCHEDULES
    assert (recipe["schedule"], recipe["head_init"], recipe.get("epochs")) == ("constant", "zero", epochs)
    assert recipe["test_batches"] == "task"  # evaluate_tasks_till_now: a data set per task
    options = L2P.paper_options(benchmark)
    assert options.pop("lr") == pytest.approx(0.03 * recipe["batch_size"] / 256)
    hyper = L2P(**options).hyper
    assert (hyper.pool_size, hyper.length, hyper.top_k, hyper.pull) == (10, 10, 4, 1.0)
    assert (hyper.selection, hyper.vote_size, hyper.clip_over) == ("batch", 16, "all")
