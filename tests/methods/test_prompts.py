"""What the prompt methods have in common: two passes, one frozen network, prompts of an image's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from avalanche.training.plugins import SupervisedPlugin

from methods.base import trainable
from methods.errors import UsageError
from methods.prompts import cosine_similarity, effective_number, vote
from methods.registry import METHODS
from methods.vit import Prefix, embed, open_seams
from tests.conftest import deep_vit, tiny_vit
from tests.methods import by_hand
from tests.methods.conftest import Run, learner, stream
from tests.methods.prompted import NAMES, grown, images, randomised, stream_of

every = pytest.mark.parametrize("name", NAMES)


class Counter:
    """Counts the passes that reach a block."""

    def __init__(self, model: Any) -> None:
        self.passes = 0
        model.blocks[0].register_forward_hook(self._count)

    def _count(self, *args: Any) -> None:
        self.passes += 1


@every
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_every_call_is_two_passes_at_any_batch_size(name, training):
    model, _ = randomised(name)
    model.train(training)
    counter = Counter(model)
    for n in (1, 5):
        counter.passes = 0
        model(images()[:n])
        assert counter.passes == 2


@every
def test_the_query_is_the_frozen_networks_feature_before_and_after_learning(name):
    plain, seen = deep_vit(), Queries()
    run = Run(name, epochs=2, plugins=[seen])
    seen.x = images()
    with torch.no_grad():
        run.model(seen.x)
        assert torch.equal(run.method.prompter.query, embed(plain, seen.x))
    for x, query in seen.queries:
        with torch.no_grad():
            torch.testing.assert_close(query, embed(plain, x), atol=1e-6, rtol=1e-5)
        assert not query.requires_grad


class Queries(SupervisedPlugin):
    """Keeps the first batch of each epoch and its queries."""

    def __init__(self) -> None:
        super().__init__()
        self.queries: list[tuple[torch.Tensor, torch.Tensor]] = []

    def before_training_epoch(self, strategy, *args, **kwargs):
        self.first = True

    def after_forward(self, strategy, *args, **kwargs):
        if self.first:
            self.queries.append((strategy.mb_x.clone(), strategy.model.prompts.query))
        self.first = False


@every
def test_dropout_of_the_network_does_not_reach_the_query(name):
    model = tiny_vit(depth=5, proj_drop_rate=0.5, attn_drop_rate=0.5)
    model, method = randomised(name, model)
    x, plain = images(), deep_vit()
    model.train()
    model(x)
    assert torch.equal(method.prompter.query, embed(plain, x))
    assert model.training


@every
def test_there_is_no_second_network(name):
    model, _ = randomised(name)
    own = sum(p.numel() for p in model.prompts.parameters()) + sum(p.numel() for p in model.head.parameters())
    network = sum(p.numel() for p in deep_vit().parameters()) - 5 * 33
    assert sum(p.numel() for p in model.parameters()) == network + own


@every
def test_prompts_are_withdrawn_after_the_pass_even_if_it_fails(name):
    model, method = randomised(name)
    x, plain = images(), deep_vit()
    model(x)
    assert all(seam.prompt is None for seam in method.prompter.seams)
    breaks = model.blocks[-1].register_forward_hook(failing_on_second())
    with pytest.raises(RuntimeError, match="out of memory"):
        model(x)
    breaks.remove()
    assert all(seam.prompt is None for seam in method.prompter.seams)
    with torch.no_grad():
        assert torch.equal(embed(model, x), embed(plain, x))


def failing_on_second() -> Callable[..., None]:
    calls = []

    def hook(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")

    return hook


@every
def test_prompts_change_the_logits(name):
    model, _ = randomised(name)
    x = images()
    with torch.no_grad():
        prompted = model(x)
        plain = model.head(embed(deep_vit(), x))
    assert (prompted - plain).abs().max() > 0.1


@every
def test_an_images_logits_are_its_own_with_prompts_that_all_differ(name):
    model, method = randomised(name)
    x = images(3)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together, weights = model(x), method.prompter.prompt_weights()
        assert len(weights.unique(dim=0)) > 1  # else images could not be mixed up
        permuted = model(x[order])
        alone = torch.cat([model(image[None]) for image in x])
        pairs = torch.cat([model(x[[i, (i + 5) % len(x)]])[:1] for i in range(len(x))])
    torch.testing.assert_close(permuted, together[order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pairs, together, atol=1e-5, rtol=1e-5)


@every
def test_no_gradient_of_a_frozen_weight_is_computed(name):
    model, method = randomised(name)
    model.head.grow([6, 7])
    method.grow(model, [6, 7])
    method.begin(stream_of(4))
    model.train()
    passed: list[bool] = []
    embedded = model.patch_embed.register_forward_hook(lambda _, i, out: passed.append(out.requires_grad))
    (model(images())[:, 6:].square().sum() + method.prompter.penalty()).backward()
    embedded.remove()
    assert passed == [False, False]
    learning = {id(p) for p in trainable(model)}
    assert {id(p) for p in model.parameters() if p.grad is not None} <= learning


@every
def test_gradients_arrive_at_everything_that_learns_in_mixed_precision_too(name):
    for context in (
        torch.autocast("cpu", torch.bfloat16, enabled=False),
        torch.autocast("cpu", torch.bfloat16),
    ):
        model, method = randomised(name)
        model.head.grow([6, 7])
        method.grow(model, [6, 7])
        method.begin(stream_of(4))
        torch.nn.init.normal_(model.head.tasks[-1].weight)
        model.train()
        with context:
            logits = model(images())
        (logits[:, 6:].float().square().sum() + method.prompter.penalty()).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trainable(model))


@every
def test_the_number_of_tokens_that_leave_a_block(name):
    """17 for prefixes; for L2P five prompts of five tokens more."""
    model, _ = randomised(name)
    counts: list[int] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, i, out: counts.append(out.shape[1]))
    model(images())
    prompted = 17 + (25 if name == "l2p" else 0)
    assert counts == [17] * 5 + [prompted] * 5


SHAPES: dict[str, dict[str, Any]] = {
    "5 blocks of 32, 4 heads": {},
    "5 blocks of 32, 1 head": {"num_heads": 1},
    "6 blocks of 48, 3 heads": {"embed_dim": 48, "num_heads": 3, "depth": 6},
    "7 blocks of 64, 8 heads": {"embed_dim": 64, "num_heads": 8, "depth": 7},
}

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "l2p": [{}, {"length": 10, "top_k": 4}, {"length": 1, "top_k": 1, "pool_size": 3}],
    "dualprompt": [
        {},
        {"general_length": 3, "expert_length": 20},
        {"general_blocks": [4], "expert_blocks": [0, 2], "expert_length": 1},
        {"general_blocks": []},
    ],
    "coda-prompt": [{}, {"length": 2, "pool_size": 7}, {"length": 12, "blocks": [3, 1]}],
}

CASES = [(name, options, shape) for name in NAMES for options in OPTIONS[name] for shape in SHAPES]


@pytest.mark.parametrize(("name", "options", "shape"), CASES)
def test_logits_by_hand(name, options, shape):
    """The whole prompted pass in float64, from the parameters and the plain network."""
    settings = {"depth": 5, **SHAPES[shape]}
    model, method = randomised(name, tiny_vit(**settings), **options)
    plain, x = tiny_vit(**settings).double(), images(1)
    with torch.no_grad():
        logits = model(x)
        query = embed(plain, x.double())
        read = by_hand.features(plain, x, **BY_HAND[name](method, query))
        expected = by_hand.logits(model.head, read)
    torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)


def l2p_by_hand(method: Any, query: torch.Tensor) -> dict[str, Any]:
    pool, rows = method.prompter, []
    for q in query:
        similar = by_hand.cosines(q, pool.keys)
        best = sorted(range(len(similar)), key=lambda m: -similar[m])[: method.hyper.top_k]
        rows.append(torch.cat([pool.prompts[m] for m in best]))
    return {"prefixes": {}, "tokens": torch.stack(rows)}


def dualprompt_by_hand(method: Any, query: torch.Tensor) -> dict[str, Any]:
    parts, hyper, prefixes = method.prompter, method.hyper, {}
    similar = [by_hand.cosines(q, parts.keys) for q in query]
    matched = [line.index(max(line)) for line in similar]
    assert len(set(matched)) > 1
    for i, block in enumerate(hyper.general_blocks):
        prefixes[block] = tuple(torch.stack([parts.general[i, part]] * len(query)) for part in (0, 1))
    for i, block in enumerate(hyper.expert_blocks):
        prefixes[block] = tuple(torch.stack([parts.experts[t][i, part] for t in matched]) for part in (0, 1))
    return {"prefixes": prefixes}


def coda_by_hand(method: Any, query: torch.Tensor) -> dict[str, Any]:
    parts, prefixes = method.prompter.experiences, {}
    for i, block in enumerate(method.hyper.blocks):
        rows = []
        for q in query:
            prompt = 0
            for share in parts:
                for m in range(share.keys.shape[1]):
                    (weight,) = by_hand.cosines(q * share.attention[i, m].double(), [share.keys[i, m]])
                    prompt = prompt + weight * share.prompts[i, m].double()
            rows.append(prompt)
        keys, values = torch.stack(rows).split(method.hyper.length // 2, 1)
        prefixes[block] = keys, values
    return {"prefixes": prefixes}


BY_HAND = {"l2p": l2p_by_hand, "dualprompt": dualprompt_by_hand, "coda-prompt": coda_by_hand}


@every
def test_the_classifier_reads_what_it_should_after_another_pooling(name):
    """A ViT without class token: the query is its mean feature, and prefixes leave that to be read."""
    model, method = randomised(name, tiny_vit(depth=5, global_pool="avg", class_token=False))
    plain, x = tiny_vit(depth=5, global_pool="avg", class_token=False), images()
    logits = model(x)
    assert torch.isfinite(logits).all()
    assert torch.equal(method.prompter.query, embed(plain, x))


#: After ten experiences of ten classes, heads included, and what the last of them trained.
SIZES = {
    "l2p": (122_980, 38_400 + 7_680 + 7_690),
    "dualprompt": (330_340, 15_360 + 23_040 + 768 + 7_690),
    "coda-prompt": (3_840_000 + 76_900, 384_000 + 7_690),
}


@every
def test_a_vit_b_has_as_many_parameters_as_published(name):
    model = timm.create_model("vit_base_patch16_224", num_classes=0)
    method, trained = METHODS[name].load()(), 0
    method.attach(model)
    for t in range(10):
        method.start_experience(model, range(10 * t, 10 * t + 10))
        method.begin(stream_of(10))
        trained = sum(p.numel() for p in trainable(model))
        method.after_training_exp(stream_of(10))
    stored = sum(tensor.numel() for tensor in method.state().values() if tensor.is_floating_point())
    assert (stored, trained) == SIZES[name]


@every
def test_what_was_chosen_is_told_by_experience_of_the_test_images(name):
    run = Run(name, epochs=1)
    assert set(run.method.diagnostics()) <= set(run.method.diagnostic_help)
    assert run.method.weights_diagnostic not in run.method.diagnostics()  # nothing was evaluated yet
    run.strategy.eval(run.benchmark.test_stream)
    diagnostics = run.method.diagnostics()
    assert set(diagnostics) == set(run.method.diagnostic_help)
    lines, everything = [], []
    for experience in run.benchmark.test_stream:
        with torch.no_grad():
            run.model(torch.stack([x for x, *_ in experience.dataset]))
        everything.append(run.method.prompter.prompt_weights())
        lines.append(everything[-1].mean(0))
    torch.testing.assert_close(
        torch.tensor(diagnostics[run.method.weights_diagnostic]), torch.stack(lines), atol=1e-5, rtol=1e-4
    )
    shares = torch.cat(everything).mean(0)
    assert diagnostics["prompts_in_use"] == pytest.approx(effective_number(shares), rel=1e-4)
    run.strategy.eval(run.benchmark.test_stream[:1])
    assert len(run.method.diagnostics()[run.method.weights_diagnostic]) == 1


@every
def test_what_was_chosen_before_training_is_not_told_after_it(name):
    run = Run(name, epochs=1, experiences=1)
    run.strategy.eval(run.benchmark.test_stream[:1])
    assert run.method.weights_diagnostic in run.method.diagnostics()
    run.learn(1)
    assert run.method.weights_diagnostic not in run.method.diagnostics()


def test_the_effective_number_counts_what_is_used_evenly():
    assert effective_number(torch.tensor([3.0, 3.0, 0.0, 3.0])) == pytest.approx(3)
    assert effective_number(torch.tensor([5.0, 0.0])) == pytest.approx(1)
    assert 1 < effective_number(torch.tensor([9.0, 1.0])) < 2


def test_similarities_do_not_depend_on_lengths():
    query, keys = torch.randn(4, 8), torch.randn(3, 8)
    torch.testing.assert_close(cosine_similarity(3 * query, 7 * keys), cosine_similarity(query, keys))
    assert cosine_similarity(keys, keys).diagonal().tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(("name", "norm"), [("l2p", 1.0), ("l2p", 0.1), ("dualprompt", 0.2)])
def test_gradients_are_clipped_to_one_common_norm(name, norm):
    seen = Norms()
    Run(name, epochs=1, plugins=[seen], clip=norm, pull=100.0)
    assert len(seen.norms) > 3
    assert max(seen.norms) == pytest.approx(norm, rel=1e-3)


class Norms(SupervisedPlugin):
    """The norm of all gradients together, as the optimiser gets them."""

    def __init__(self) -> None:
        super().__init__()
        self.norms: list[float] = []

    def before_update(self, strategy, *args, **kwargs):
        gradients = [
            p.grad for g in strategy.optimizer.param_groups for p in g["params"] if p.grad is not None
        ]
        self.norms.append(torch.cat([g.flatten() for g in gradients]).norm().item())


def test_a_vote_is_held_within_each_group():
    choices = torch.tensor([[0, 3], [3, 1], [1, 3], [2, 1]])
    assert vote(choices, 4).tolist() == [[1, 3]] * 4  # both three times: the smaller one first
    assert vote(choices, 128).tolist() == vote(choices, 4).tolist()
    assert vote(choices, 3).tolist() == [[3, 1]] * 3 + [[1, 2]]
    assert vote(torch.tensor([[4, 2]]), 16).tolist() == [[2, 4]]


@pytest.mark.parametrize(("name", "size"), [("l2p", 16), ("dualprompt", 24)])
def test_as_many_images_vote_as_a_device_of_the_official_code_has(name, size):
    method = METHODS[name].load()
    assert method.batch_group(method().hyper) is None
    assert method.batch_group(method(selection="batch").hyper) == size
    assert method.batch_group(method(selection="batch", vote_size=5).hyper) == 5


@pytest.mark.parametrize("name", ["l2p", "dualprompt"])
def test_a_size_of_a_vote_that_is_not_held_is_refused(name):
    method = METHODS[name].load()
    method.check(method(selection="batch", vote_size=8).hyper, 3)
    with pytest.raises(UsageError, match=f"{name}.vote_size is 8, but {name}.selection=sample does not use"):
        method.check(method(vote_size=8).hyper, 3)


@every
def test_a_plain_avalanche_run_says_what_does_not_fit_before_it_trains(name):
    options = {"l2p": {"top_k": 11}, "dualprompt": {"pool_size": 2}, "coda-prompt": {"pool_size": 2}}[name]
    with pytest.raises(Exception, match=r"legal: at (most|least)"):
        Run(name, epochs=1, **options)


def test_a_network_that_is_too_shallow_is_refused():
    for name in ("dualprompt", "coda-prompt"):
        with pytest.raises(Exception, match="this backbone has 2 blocks"):
            grown(name, tiny_vit())


def test_prefixes_are_where_they_should_be_and_nowhere_else():
    model, _ = randomised("dualprompt", tiny_vit(depth=7), general_blocks=[6], expert_blocks=[2])
    prefixed = [isinstance(attention.plug, Prefix) for attention in open_seams(model)]
    assert prefixed == [False, False, True, False, False, False, True]


@every
def test_learning_is_the_same_whether_or_not_it_is_evaluated_in_between(name):
    runs = [Run(name, epochs=1, experiences=1) for _ in range(2)]
    runs[1].strategy.eval(stream().test_stream[:1])
    for run in runs:
        torch.manual_seed(3)
        run.strategy = learner(run.model, run.method, epochs=1)
        run.learn(1)
    assert all(torch.equal(runs[0].after[-1][key], runs[1].after[-1][key]) for key in runs[0].after[-1])


@every
def test_prompts_are_chosen_in_full_precision(name, monkeypatch):
    """Eight bits do not tell the nearest of keys that are alike."""
    model, method = randomised(name)
    mixed: list[bool] = []
    prompt = method.prompter.prompt
    monkeypatch.setattr(
        method.prompter, "prompt", lambda q: (mixed.append(torch.is_autocast_enabled("cpu")), prompt(q))
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(images())
    assert mixed == [False]
    assert method.prompter.query.dtype == torch.float32
