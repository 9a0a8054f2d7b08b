"""The requirements on every registered method. A new method is tested by being registered."""

from __future__ import annotations

import copy

import pytest
import torch

from methods.errors import UsageError
from methods.experts import ExpertHead
from methods.head import HeadPerExperience
from methods.registry import METHODS
from methods.vit import open_seams
from tests.conftest import deep_vit
from tests.methods.conftest import (
    ADAPTERS,
    DOMAINS,
    FULL,
    OFFICIAL,
    ORDER,
    ROUTED,
    STREAMS,
    Run,
    copy_of,
    domains,
    make,
)

#: Cases that train the whole backbone; every other case leaves most of it frozen.
UNFROZEN = [FULL]

pytestmark = pytest.mark.parametrize("name", [*METHODS, *UNFROZEN, *ADAPTERS, *OFFICIAL, *ROUTED])


#: Tests that hold in both scenarios.
BOTH = pytest.mark.parametrize("scenario", STREAMS)


def promised(run, task):
    """What never changes after a task; the head of classes that come again is trained again."""
    shared = run.model.head.shares_classes and not isinstance(run.model.head, HeadPerExperience)
    frozen = run.method.frozen_after(task)
    return [key for key in frozen if not (shared and key.startswith("head."))]


def class_of(name):
    return type(make(name))


@BOTH
def test_a_seed_decides_everything(name, scenario, trained):
    first, second = trained(name, scenario).after[-1], Run(name, make_stream=STREAMS[scenario]).after[-1]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@BOTH
def test_the_backbone_is_bit_identical_afterwards(name, scenario, trained):
    run = trained(name, scenario)
    frozen = [key for key in run.before if not key.startswith("head.") and not run.method.owns(key)]
    assert [key for key in frozen if not torch.equal(run.before[key], run.after[-1][key])] == []
    assert bool(frozen) == (name not in UNFROZEN)


@BOTH
def test_what_an_experience_leaves_behind_stays_as_promised(name, scenario, trained):
    run = trained(name, scenario)
    for task, then in enumerate(run.after):
        for later in run.after[task:]:
            assert all(torch.equal(then[key], later[key]) for key in promised(run, task))


def test_what_stays_as_promised_is_out_of_the_optimisers_reach(name, trained):
    run = trained(name)
    parameters = dict(run.model.named_parameters())
    frozen_after = [key for task in range(3) for key in run.method.frozen_after(task)]
    assert not any(parameters[key].requires_grad for key in frozen_after if key in parameters)


@BOTH
def test_the_loss_falls_in_every_experience_that_is_trained(name, scenario, trained):
    losses = [seen for seen in trained(name, scenario).spy.losses if seen]
    for seen in losses:
        quarter = len(seen) // 4
        assert sum(seen[-quarter:]) < 0.97 * sum(seen[:quarter])
    assert bool(losses) == any(trained(name, scenario).spy.in_optimizer)


@BOTH
def test_the_optimiser_holds_exactly_what_is_trainable_and_no_memory(name, scenario, trained):
    spy = trained(name, scenario).spy
    assert spy.in_optimizer == spy.require_grad
    assert all(spy.fresh)


def test_it_learns_more_than_chance_on_new_images(name, trained, labelled):
    x, y = labelled
    with torch.no_grad():
        accuracy = (trained(name).model(x).argmax(1) == y).float().mean()
    assert accuracy > 1.5 / 6


def group_of(name):
    """How many images of a batch decide together; one, unless the method declares otherwise."""
    method = make(name)
    return method.batch_group(method.hyper) or 1


def test_an_exception_to_the_independence_of_images_is_declared_and_told(name):
    method = make(name)
    told = "depends on which images are tested together"
    declared = method.batch_group(method.hyper) is not None
    assert declared == (name in OFFICIAL)
    assert any(told in caveat for caveat in method.caveats(method.hyper)) == declared
    default = method.Hyper()
    assert method.batch_group(default) is None
    assert not any(told in caveat for caveat in method.caveats(default))


@BOTH
def test_logits_depend_on_no_batch_mate_and_no_order(name, scenario, trained, images):
    """Or on those alone that the method declares: on the others of a group."""
    model, group = trained(name, scenario).model, group_of(name)
    if group > 1:
        with torch.no_grad():
            together = model(images)
            alone = torch.cat([model(part) for part in images.split(group)])
        torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
        return
    with torch.no_grad():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        permuted = model(images[order])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(permuted, together[order], atol=1e-5, rtol=1e-5)


@BOTH
def test_the_task_id_is_not_read_at_test_time(name, scenario, trained):
    run, outputs = trained(name, scenario), []
    for claimed in (0, 2):
        experience = run.benchmark.test_stream[1]
        experience.current_experience = claimed
        run.spy.evaluated.clear()
        run.strategy.eval([experience])
        outputs.append(torch.cat(run.spy.evaluated))
    images = torch.stack([x for x, *_ in run.benchmark.test_stream[1].dataset])
    assert torch.equal(outputs[0], outputs[1])
    with torch.no_grad():
        torch.testing.assert_close(run.model(images), outputs[0], atol=1e-5, rtol=1e-5)


def test_it_learns_more_than_chance_in_a_stream_of_domains(name, trained, labelled):
    x, y = labelled
    slow = name.startswith("l2p")  # its prompts learn little in a few steps on random weights
    run = Run(name, epochs=30, make_stream=domains) if slow else trained(name, "domain-incremental")
    model = run.model
    with torch.no_grad():
        hits = [(model(change(x)).argmax(1) == y).float().mean() for change in DOMAINS]
    assert sum(hits) / len(hits) > 1.5 / 6


def test_every_class_is_known_from_the_first_domain_on(name, images):
    model = Run(name, epochs=1, experiences=2, make_stream=domains).model
    with torch.no_grad():
        assert torch.isfinite(model(images)).all()


@pytest.mark.parametrize("experiences", [2, 3])
def test_only_classes_seen_can_be_predicted(name, experiences, images):
    model = Run(name, epochs=1, experiences=experiences).model
    with torch.no_grad():
        finite = torch.isfinite(model(images))
    seen = sorted(ORDER[: 2 * experiences])
    assert set(finite.any(0).nonzero().flatten().tolist()) <= set(seen)
    if not isinstance(model.head, ExpertHead):  # where one expert answers, others' classes are ruled out
        assert finite.all(0).nonzero().flatten().tolist() == seen


@BOTH
def test_learning_goes_on_from_a_state_as_if_it_had_not_stopped(name, scenario):
    if class_of(name).trains_jointly:
        pytest.skip("keeps all images; there is no state to go on from")
    whole, parted = (Run(name, epochs=2, experiences=2, make_stream=STREAMS[scenario]) for _ in range(2))
    parted.resume()
    for run in (whole, parted):
        torch.manual_seed(7)
        run.learn(2)
    assert all(torch.equal(whole.after[-1][key], parted.after[-1][key]) for key in whole.after[-1])


@BOTH
def test_state_round_trips_to_the_same_logits(name, scenario, trained, images):
    run = trained(name, scenario)
    model = deep_vit()
    make(name).restore(model, run.method.state())
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(images), run.model(images))


@BOTH
def test_merging_changes_no_logit_and_leaves_what_was_trained_alone(name, scenario, trained, images):
    run = trained(name, scenario)
    deployed = copy.deepcopy(run.model)
    merged = run.method.merge(deployed)
    with torch.no_grad():
        torch.testing.assert_close(deployed(images), run.model(images), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(tensor, run.after[-1][key]) for key, tensor in copy_of(run.model).items())
    plugs = [attention.plug for attention in open_seams(deployed)]
    assert not merged or all(plug is None or plug.idle for plug in plugs)


@BOTH
def test_merging_draws_no_random_number(name, scenario, trained):
    """A copy is merged after every experience, to measure it; the training that goes on is to be the same."""
    run = trained(name, scenario)
    deployed, before = copy.deepcopy(run.model), torch.get_rng_state()
    run.method.merge(deployed)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_state_that_does_not_fit_is_refused(name, trained):
    state = {**trained(name).method.state(), "stranger": torch.zeros(1)}
    with pytest.raises(UsageError, match="does not fit"):
        make(name).restore(deep_vit(), state)


@BOTH
def test_the_state_holds_nothing_of_the_backbone_that_did_not_change(name, scenario, trained):
    run = trained(name, scenario)
    unchanged = {k for k in run.before if k in run.after[-1] and not k.startswith("head.")}
    unchanged = {k for k in unchanged if torch.equal(run.before[k], run.after[-1][k])}
    assert unchanged.isdisjoint(run.method.state())


def test_a_model_carries_one_method(name):
    model = deep_vit()
    make(name).attach(model)
    with pytest.raises(UsageError, match="fresh"):
        make(name).attach(model)


def test_attaching_draws_the_same_weights_whatever_the_model_holds(name):
    """Initialisation comes from the seed alone, so that two runs of one seed start alike."""
    states = []
    for _ in range(2):
        model = deep_vit()
        torch.manual_seed(3)
        make(name).attach(model)
        states.append(copy_of(model))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_every_hyper_parameter_says_what_it_is_and_where_its_value_comes_from(name):
    fields = class_of(name).Hyper.__pydantic_fields__
    assert fields
    for field in fields.values():
        assert field.description
        assert field.json_schema_extra["source"]


def test_an_unknown_hyper_parameter_is_answered_with_the_legal_ones(name):
    cls = class_of(name)
    option = next(iter(cls.Hyper.__pydantic_fields__))
    with pytest.raises(UsageError, match=f"did you mean '{option}'"):
        cls(**{option + "x": 1})


def test_a_value_of_the_wrong_type_is_answered_with_what_was_got(name):
    cls = class_of(name)
    option = next(iter(cls.Hyper.__pydantic_fields__))
    with pytest.raises(UsageError, match=r"got \['nonsense'\]"):
        cls(**{option: ["nonsense"]})


def test_the_class_has_a_summary_and_a_name(name):
    entry = METHODS[class_of(name).name]
    assert entry.summary
    assert name in (entry.name, *UNFROZEN, *ADAPTERS, *OFFICIAL, *ROUTED)
