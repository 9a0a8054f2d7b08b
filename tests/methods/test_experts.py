"""Routing to experts: which centroid is nearest, what k-means finds, and that one expert alone answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from methods.experts import ExpertHead, Router, class_means, k_means
from methods.vit import embed
from tests.conftest import deep_vit
from tests.methods.conftest import Run, domains, make

ROUTED = ("color", "s-prompts")


def router_of(distance, *centroids) -> Router:
    """A router with the given centroids, a list of rows for each experience."""
    router = Router(2, [], distance)
    for rows in centroids:
        router.grow(torch.zeros(1))
        router.experiences[-1].centroids = torch.tensor(rows, dtype=torch.float32).reshape(-1, 2)
    return router


def test_the_distances_differ_on_a_case_by_hand():
    """The query (3, 4) becomes (0.6, 0.8): at L2 0.6 and 0.57 of the centroids, at L1 0.6 and 0.8."""
    far, near = [0.0, 0.8], [1.0, 1.2]
    query = torch.tensor([[3.0, 4.0]])
    assert router_of("euclidean", [far], [near]).nearest(query).tolist() == [1]
    assert router_of("manhattan", [far], [near]).nearest(query).tolist() == [0]


def test_the_query_is_normalised_and_the_centroids_are_as_they_are():
    """Without normalising, (30, 40) is nearer to the centroid that is farther from the origin."""
    own, other = [0.6, 0.8], [3.0, 4.0]
    query = torch.tensor([[30.0, 40.0]])
    assert router_of("euclidean", [other], [own]).nearest(query).tolist() == [1]
    assert router_of("manhattan", [other], [own]).nearest(query).tolist() == [1]


def test_the_experience_is_that_of_the_nearest_of_all_its_centroids():
    router = router_of("euclidean", [[1.0, 0.0], [-1.0, 0.0]], [[0.0, 1.0]])
    queries = torch.tensor([[-5.0, 0.1], [0.1, 9.0], [2.0, 0.0]])
    assert router.nearest(queries).tolist() == [0, 1, 0]


def test_an_experience_without_centroids_is_never_chosen():
    router = router_of("manhattan", [[1.0, 0.0]], [])
    assert router.nearest(torch.tensor([[-1.0, 0.0], [0.0, 1.0]])).tolist() == [0, 0]


def test_more_experiences_than_a_byte_can_count():
    angles = torch.linspace(0, 3, 300)
    points = torch.stack([angles.cos(), angles.sin()], 1)
    router = router_of("euclidean", *points[:, None].tolist())
    assert router.nearest(points).tolist() == list(range(300))


# ---- centroids ---------------------------------------------------------------------------------


def test_k_means_finds_separate_clusters_and_no_more_than_there_are_rows():
    rows = torch.tensor([[0.0, 0.0], [0.0, 0.2], [5.0, 5.0], [5.0, 5.2]])
    centres = k_means(rows, 2)
    torch.testing.assert_close(centres[centres[:, 0].argsort()], torch.tensor([[0.0, 0.1], [5.0, 5.1]]))
    assert len(k_means(rows[:1], 5)) == 1
    assert len(k_means(rows[[0, 0, 0, 2, 2]], 5)) == 2
    assert k_means(rows, 5).isfinite().all()


def test_k_means_is_the_same_every_time_and_draws_no_global_random_number():
    rows = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    np.random.seed(1)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert torch.equal(k_means(rows, 5), k_means(rows, 5))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_class_means_are_a_row_for_each_class():
    rows, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([7, 2, 7])
    assert class_means(rows, labels).tolist() == [[0.0, 1.0], [2.0, 0.0]]


@pytest.mark.parametrize("name", ROUTED)
def test_the_centroids_are_those_of_the_normalised_frozen_features(name):
    run = Run(f"{name}:centroids=class-means", epochs=1, experiences=1)
    items = list(run.benchmark.train_stream[0].dataset)
    with torch.no_grad():
        features = embed(deep_vit(), torch.stack([x for x, *_ in items]))
    expected = class_means(torch.nn.functional.normalize(features), torch.tensor([y for _, y, *_ in items]))
    torch.testing.assert_close(run.method.router.experiences[0].centroids, expected)
    assert run.method.diagnostics()["clusters"] == 2


@pytest.mark.parametrize("name", ROUTED)
@pytest.mark.parametrize(("clusters", "expected"), [(3, 3), (0, 4), (1000, 48)])
def test_the_number_of_clusters(name, clusters, expected):
    """At 0 two for each of two classes; never more than the 48 images."""
    run = Run(f"{name}:clusters={clusters}", epochs=1, experiences=1)
    assert len(run.method.router.experiences[0].centroids) == expected


@pytest.mark.parametrize("name", ROUTED)
def test_clustering_changes_nothing_of_the_training(name):
    few, many = (Run(f"{name}:clusters={n}", epochs=2, experiences=2) for n in (1, 7))
    assert few.spy.losses == many.spy.losses


def test_planning_is_told_how_many_images_the_clusters_need():
    method = make("color:clusters=9")
    assert method.least_images(method.hyper) == 9


# ---- experts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROUTED)
def test_the_query_is_that_of_the_frozen_backbone_before_and_after_every_experience(name, images):
    run = Run(name, epochs=1, experiences=0)
    with torch.no_grad():
        expected = embed(deep_vit(), images)
    for i in range(3):
        run.learn(i)
        assert torch.equal(run.method.router.query(run.model, images), expected)


@pytest.mark.parametrize("name", ROUTED)
@pytest.mark.parametrize("make_stream", [None, domains])
def test_with_its_own_expert_given_an_image_keeps_its_logits_bit_for_bit(name, make_stream, images):
    run, then = Run(name, epochs=2, experiences=0, make_stream=make_stream), []

    def answer(expert):
        run.model.router.given = torch.full((len(images),), expert)
        with torch.no_grad():
            logits = run.model(images)
        return logits[:, run.model.head.tasks[expert].classes]

    for i in range(3):
        run.learn(i)
        then.append(answer(i))
    assert all(torch.equal(answer(i), logits) for i, logits in enumerate(then))
    assert not torch.equal(then[0], then[1])


@pytest.mark.parametrize("name", ROUTED)
def test_what_is_forgotten_was_sent_to_another_expert(name):
    run, before = Run(name, experiences=1), {}
    images = torch.stack([x for x, *_ in run.benchmark.train_stream[0].dataset])

    def answers():
        with torch.no_grad():
            return run.model(images).argmax(1), run.model.router.chosen.clone()

    before["predicted"], before["chosen"] = answers()
    for i in (1, 2):
        run.learn(i)
    predicted, chosen = answers()
    changed = predicted != before["predicted"]
    assert (chosen[changed] != before["chosen"][changed]).all()


@pytest.mark.parametrize("name", ROUTED)
def test_images_of_one_batch_have_different_experts(name, trained, images):
    run = trained(name)
    with torch.no_grad():
        run.model(images)
    assert len(run.model.router.chosen.unique()) > 1


@pytest.mark.parametrize("name", ROUTED)
def test_another_experts_classifier_is_never_compared_with(name, trained, images):
    run = trained(name, "domain-incremental")
    head: ExpertHead = run.model.head
    run.model.router.given = torch.zeros(len(images), dtype=torch.long)
    with torch.no_grad():
        expected = run.model(images)
    head.heads[2].bias.data += 1000
    run.model.router.given = torch.zeros(len(images), dtype=torch.long)
    with torch.no_grad():
        assert torch.equal(run.model(images), expected)
    head.heads[2].bias.data -= 1000


def passes_of(model, function) -> int:
    passes = []
    hook = model.patch_embed.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        function()
    hook.remove()
    return len(passes)


@pytest.mark.parametrize("name", ROUTED)
def test_a_prediction_takes_two_passes_and_one_where_the_query_is_known(name, trained, images):
    model = trained(name).model
    assert passes_of(model, lambda: model(images)) == 2
    model.router.known_query = torch.randn(len(images), 32)
    assert passes_of(model, lambda: model(images)) == 1
    assert passes_of(model, lambda: model(images)) == 2


@pytest.mark.parametrize("name", ROUTED)
def test_a_training_step_takes_one_pass(name):
    run = Run(name, epochs=1, experiences=1)
    counted = passes_of(run.model, lambda: None)
    assert counted == 0
    passes = []
    hook = run.model.patch_embed.register_forward_hook(lambda *_: passes.append(run.model.training))
    run.learn(1)
    hook.remove()
    assert passes.count(True) == len(run.spy.losses[1])


@pytest.mark.parametrize("name", ROUTED)
def test_the_oracle_is_told_in_a_caveat_and_uses_the_true_experience(name):
    method = make(f"{name}:routing=oracle")
    assert any(caveat.startswith("upper bound") for caveat in method.caveats(method.hyper))
    run = Run(f"{name}:routing=oracle", epochs=1, make_stream=domains)
    for i in range(3):
        run.strategy.eval([run.benchmark.test_stream[i]])
        assert set(run.model.router.chosen.tolist()) == {i}
    assert run.method.diagnostics()["routing_accuracy"] == 1.0


@pytest.mark.parametrize("name", ROUTED)
def test_the_routing_is_reported(name):
    run = Run(name, epochs=1, experiences=2, make_stream=domains)
    run.strategy.eval(run.benchmark.test_stream)  # the third domain is not learnt
    found = run.method.diagnostics()
    assert [len(row) for row in found["expert_choices"]] == [2, 2]
    assert found["routing_accuracy"] == pytest.approx(
        (found["expert_choices"][0][0] + found["expert_choices"][1][1]) / 2
    )
    assert set(found) == set(run.method.diagnostic_help)
