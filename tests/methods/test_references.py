"""What makes each reference the reference it is."""

from __future__ import annotations

import pytest
import torch

from methods.ncm import linear_form
from methods.vit import embed
from tests.conftest import CLASSES, deep_vit, synthetic
from tests.methods.conftest import DOMAINS, Run, domains


def test_joint_trains_once_on_the_images_of_all_experiences():
    epochs = 3
    losses = Run("joint", epochs=epochs).spy.losses
    images, batch = len(synthetic()[0]), 12
    assert [len(seen) for seen in losses] == [0, 0, epochs * images // batch]


def test_joint_beats_finetune_on_the_same_stream(trained, labelled):
    x, y = labelled
    models = {name: trained(name).model for name in ("joint", "finetune")}
    with torch.no_grad():
        accuracy = {name: (model(x).argmax(1) == y).float().mean() for name, model in models.items()}
    assert accuracy["joint"] > accuracy["finetune"] + 0.2


def test_ncm_holds_the_class_means_of_the_frozen_features(trained):
    run = trained("ncm")
    images, labels = synthetic()
    bare = Run("ncm", epochs=1).model
    with torch.no_grad():
        features = bare.forward_head(bare.forward_features(images), pre_logits=True)
    for head in run.model.head.tasks:
        means = torch.stack([features[labels == c].mean(0) for c in head.classes])
        torch.testing.assert_close(head.weight, 2 * means, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_linear_form_picks_the_nearest_mean(metric):
    torch.manual_seed(0)
    means, features = torch.randn(CLASSES, 8) * torch.arange(1, CLASSES + 1)[:, None], torch.randn(200, 8) * 3
    weight, bias = linear_form(means, metric)
    picked = (features @ weight.T + bias).argmax(1)
    if metric == "euclidean":
        expected = torch.cdist(features, means).argmin(1)
    else:
        expected = torch.cosine_similarity(features[:, None], means[None], dim=-1).argmax(1)
    assert torch.equal(picked, expected)
    assert len(picked.unique()) > 2


def features_of_domains():
    """The frozen features of the images of each domain, and the labels, which are the same in all."""
    images, labels = synthetic()
    with torch.no_grad():
        return [embed(deep_vit(), change(images)) for change in DOMAINS], labels


def test_ncm_pools_the_images_of_all_domains():
    run = Run("ncm", make_stream=domains)
    features, labels = features_of_domains()
    means = torch.stack([torch.cat([f[labels == c] for f in features]).mean(0) for c in range(CLASSES)])
    (head,) = run.model.head.heads
    torch.testing.assert_close(head.weight, 2 * means, atol=1e-4, rtol=1e-4)
    assert run.method.memory["counts"].flatten().tolist() == [72.0] * CLASSES


def test_ncm_may_keep_a_mean_of_each_domain_of_which_the_nearest_counts():
    run = Run("ncm:prototypes=domain", make_stream=domains)
    features, labels = features_of_domains()
    means = torch.stack([torch.stack([f[labels == c].mean(0) for f in features]) for c in range(CLASSES)])
    queries = torch.cat(features)[::7]
    distances = torch.cdist(queries.double(), means.flatten(0, 1).double()).view(len(queries), CLASSES, -1)
    with torch.no_grad():
        predicted = run.model.head(queries).argmax(1)
    assert torch.equal(predicted, distances.amin(2).argmin(1))
    assert run.method.memory == {}


def test_ncm_keeps_no_sums_where_no_class_comes_again(trained):
    assert trained("ncm").method.memory == {}
