"""One whole update of DreamerV1: three gradients from one set of weights, options, numbers that are not finite, saving.
"""

from __future__ import annotations

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch

from tests.builders import BOTH, CONTINUOUS, DISCRETE, IMAGE, VECTOR, random_row, snapshot, unchanged
from tests.builders_v1 import MULTI, v1_learner
from xrl.common.errors import NumericalError
from xrl.common.row import Row

DISCOUNT = {"world_model.predict_discount": True}


def parts(learner):
    return {"world_model": learner.model, "actor": learner.actor, "critic": learner.critic}


def weights(learner):
    return {name: snapshot(part) for name, part in parts(learner).items()}


def moved(learner, before):
    return {name for name, part in parts(learner).items() if not unchanged(part, before[name])}


def row_of(action=DISCRETE, obs=VECTOR, seed=0) -> Row:
    row = random_row(obs=obs, action=CONTINUOUS if action is MULTI else action, seed=seed)
    if action is MULTI:
        rng = np.random.default_rng(seed)
        picks = [np.eye(count, dtype=np.float32)[rng.integers(0, count, (5, 3))] for count in MULTI.choices]
        row.action = np.concatenate(picks, -1)
    return row


@pytest.mark.parametrize("obs", [VECTOR, IMAGE, BOTH])
@pytest.mark.parametrize("action", [DISCRETE, CONTINUOUS, MULTI], ids=lambda spec: spec.kind)
@pytest.mark.parametrize("changes", [{}, DISCOUNT], ids=["dmc", "discount"])
def test_every_network_learns_and_every_metric_is_finite(obs, action, changes):
    learner = v1_learner(changes, obs, action)
    before = weights(learner)
    metrics = learner.step(learner.to_device(row_of(action, obs)))
    assert moved(learner, before) == {"world_model", "actor", "critic"}
    assert all(value.shape == () and value.isfinite() and not value.requires_grad for value in metrics.values())
    kinds = {name.removesuffix("_loss").removeprefix("model/") for name in metrics} & {"image", "vector"}
    assert kinds == {spec.kind for spec in obs.values()}
    learner.check()


@pytest.mark.parametrize("changes", [
    {"world_model.kl.scale": 0.0}, {"world_model.reward_transform": "tanh"}, {"world_model.obs_scale": [1.0, 2.0, 3.0]},
    {"imagination.starts": 2}, {"lambda_": 0.0}, {"lambda_": 1.0}, {"gamma": 1.0}, {"horizon": 3},
    {"precision": "bf16"}, {"precision": "bf16", **DISCOUNT},
], ids=str)
def test_every_option_gives_a_whole_update(changes):
    learner = v1_learner(changes, action=CONTINUOUS)
    before = weights(learner)
    metrics = [learner.step(learner.to_device(row_of(CONTINUOUS, seed=seed))) for seed in range(2)][-1]
    assert moved(learner, before) == {"world_model", "actor", "critic"}
    assert all(value.isfinite() for value in metrics.values())


@pytest.mark.parametrize("action", [DISCRETE, CONTINUOUS], ids=lambda spec: spec.kind)
def test_three_gradients_from_the_weights_before_the_update(action, monkeypatch):
    """Nothing has moved when the last loss is computed; the steps are plain Adam's with these gradients."""
    learner = v1_learner(DISCOUNT, action=action)
    batch, before, state = learner.to_device(row_of(action)), weights(learner), learner.generator.get_state()
    model_loss, post, _ = learner.model_loss(batch)
    dream = learner.imagine(*learner.start_states(post, batch.is_terminal))
    losses = {"world_model": model_loss, "actor": learner.actor_loss(dream)[0], "critic": learner.critic_loss(dream)[0]}
    expected = {}
    for name, part in parts(learner).items():
        options = {"world_model": learner.config.model_opt, "actor": learner.config.actor_opt,
                   "critic": learner.config.critic_opt}[name]
        grads = torch.autograd.grad(losses[name], list(part.parameters()), retain_graph=True)
        norm = math.sqrt(sum(grad.double().square().sum().item() for grad in grads))
        scale = min(1.0, options.clip / norm)
        # The first step of Adam with TensorFlow's epsilon: lr sqrt(1 - b2) / (1 - b1) (1 - b1) g / (sqrt((1 - b2)) |g|)
        expected[name] = [then - options.lr * math.sqrt(0.001) * scale * grad / (
            math.sqrt(0.001) * (scale * grad).abs() + options.eps)
            for then, grad in zip(before[name], grads, strict=True)]
    critic_loss = learner.critic_loss

    def watched(dream):
        assert not moved(learner, before), "no step before the last loss"
        return critic_loss(dream)

    monkeypatch.setattr(learner, "critic_loss", watched)
    learner.generator.set_state(state)
    learner.step(batch)
    for name, part in parts(learner).items():
        for found, wanted in zip(part.parameters(), expected[name], strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_steps_are_applied_model_actor_critic(monkeypatch):
    learner, order = v1_learner(), []
    for name, optimizer in learner.optimizers.items():
        apply = optimizer.apply
        monkeypatch.setattr(optimizer, "apply", lambda good, name=name, apply=apply: order.append(name) or apply(good))
    learner.step(learner.to_device(row_of()))
    assert order == ["model_opt", "actor_opt", "critic_opt"]


def test_no_gradient_is_accumulated_anywhere():
    learner = v1_learner(DISCOUNT, action=CONTINUOUS)
    learner.step(learner.to_device(row_of(CONTINUOUS)))
    assert all(parameter.grad is None for parameter in learner.policy.parameters())


def test_each_optimiser_has_its_own_section_and_none_decays():
    learner = v1_learner({"model_opt": {"lr": 1e-3, "eps": 1e-4, "clip": 7.0}, "actor_opt.lr": 2e-3})
    model = learner.model_opt
    assert (model.lr, model.eps, model.clip) == (1e-3, 1e-4, 7.0)
    assert (learner.actor_opt.lr, learner.critic_opt.lr) == (2e-3, 8e-5)
    assert (learner.critic_opt.eps, learner.critic_opt.clip, v1_learner().model_opt.lr) == (1e-7, 100.0, 6e-4)
    assert {optimizer.weight_decay for optimizer in learner.optimizers.values()} == {0.0}
    prefixes = {name.split(".")[0] for optimizer in learner.optimizers.values() for name in optimizer.names}
    assert prefixes == {"world_model", "actor", "critic"}


# NaN and infinity --------------------------------------------------------------------------------------------------


def poison(learner, name):
    """Infinite, which equals itself, and makes NaN of whatever follows."""
    with torch.no_grad():
        dict(learner.policy.named_parameters())[name][:2] = torch.tensor([math.inf, -math.inf])


def state_of(learner):
    tensors = {name: tensor.clone() for name, tensor in learner.policy.state_dict().items()}
    for name, optimizer in learner.optimizers.items():
        tensors |= {f"{name}/{key}": value.clone() for key, value in optimizer.state_dict().items()}
    return tensors


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(("name", "loss", "optimizer"), [
    ("world_model.reward.mlp.0.bias", "model/reward_loss", "model_opt"),
    ("actor.mlp.0.bias", "actor/loss", "actor_opt"), ("critic.mlp.0.bias", "critic/loss", "critic_opt")])
def test_what_is_bad_for_one_network_changes_none(name, loss, optimizer):
    learner = v1_learner(action=CONTINUOUS)
    poison(learner, name)
    before = state_of(learner)
    metrics = learner.update(row_of(CONTINUOUS))
    assert not metrics[loss].isfinite() and same(state_of(learner), before)
    with pytest.raises(NumericalError) as error:
        learner.check()
    for part in ("update 1", loss, f"first bad parameter: {name} ({optimizer})", "all weights were left as they were"):
        assert part in str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_bad_data_changes_nothing_and_is_named(value):
    learner = v1_learner()
    learner.update(row_of())
    before, row = state_of(learner), row_of()
    row.reward[2, 1] = value
    learner.update(row)
    assert same(state_of(learner), before)
    with pytest.raises(NumericalError, match="model/reward_loss"):
        learner.check()
    assert learner.postmortem.update == 2 and learner.postmortem.stage == "model"
    assert learner.postmortem.data == (() if math.isfinite(value) else ("reward",))
    with pytest.raises(NumericalError):
        learner.update(row_of())


def test_a_few_in_a_row_are_left_out_and_counted():
    learner, bad = v1_learner({"skip_nonfinite": 2}), row_of()
    bad.reward[0, 0] = math.nan
    for kind in "--+--":
        metrics = learner.update(bad if kind == "-" else row_of())
        learner.check()
    assert metrics["update/skipped"] == 4
    learner.update(bad)
    with pytest.raises(NumericalError, match=r"update 6 \(the last of 3 in a row\)"):
        learner.check()


@pytest.mark.parametrize("where", ["model", "actor"])
def test_a_bad_update_runs_again_to_the_last_bit(where):
    learner, row = v1_learner(action=CONTINUOUS), row_of(CONTINUOUS)
    learner.update(row_of(CONTINUOUS, seed=1))
    if where == "model":
        row.reward[2, 1] = math.inf
    else:
        poison(learner, "actor.mlp.0.bias")
    learner.update(row)
    with pytest.raises(NumericalError):
        learner.check()
    found, state = learner.postmortem, copy.deepcopy(learner.state_dict())
    assert found.stage == where
    fresh = v1_learner(action=CONTINUOUS, seed=8)
    fresh.policy.load_state_dict(learner.policy.state_dict())
    fresh.load_state_dict(state)
    again = fresh.rerun(found.update, found.stage, found.tensors)
    assert (again.stage, again.parameter, again.data) == (found.stage, found.parameter, found.data)
    ours, theirs = ({**one.metrics, "update/skipped": 0.0} for one in (again, found))  # it is counted again
    assert ours.keys() == theirs.keys()
    assert np.array_equal([*ours.values()], [*theirs.values()], equal_nan=True)


# Reproducibility and saving ----------------------------------------------------------------------------------------


def test_restored_learner_continues_bit_for_bit():
    first = v1_learner(action=CONTINUOUS)
    for seed in range(2):
        first.update(row_of(CONTINUOUS, seed=seed))
    second = v1_learner(action=CONTINUOUS, seed=9)
    second.policy.load_state_dict(first.policy.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.updates == 2
    for seed in range(2, 5):
        ours, theirs = first.update(row_of(CONTINUOUS, seed=seed)), second.update(row_of(CONTINUOUS, seed=seed))
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert not moved(second, weights(first))


def test_global_generator_is_not_touched():
    learner, before = v1_learner(), torch.get_rng_state()
    learner.update(row_of())
    assert torch.equal(torch.get_rng_state(), before)


def test_compiled_is_the_same_update(monkeypatch):
    """Traced and split into graphs as for a real compilation, which would take half a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    compiled, plain = (v1_learner({"compile": mode}, action=CONTINUOUS) for mode in ("on", "off"))
    for seed in range(2):
        row = row_of(CONTINUOUS, seed=seed)
        torch.testing.assert_close(compiled.update(row), plain.update(row))
    for name, value in compiled.policy.named_parameters():
        torch.testing.assert_close(value, dict(plain.policy.named_parameters())[name])


def test_everything_that_is_profiled_exists():
    learner = v1_learner()
    for path in sum(learner.profile_parts.values(), ()):
        target = learner
        for name in path.split("."):
            target = getattr(target, name)
        assert callable(target)
