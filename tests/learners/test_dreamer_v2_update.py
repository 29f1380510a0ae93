"""One whole update: its order, what it may change, the slow critic's turns, NaN, options, saving."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch

from tests.builders import (
    BOTH,
    CONTINUOUS,
    DISCRETE,
    IMAGE,
    VECTOR,
    generator,
    random_row,
    snapshot,
    tiny_config,
    tiny_learner,
    tiny_policy,
    unchanged,
)
from xrl.common.errors import ConfigError, NumericalError
from xrl.learners.dreamer_v2 import DreamerV2Learner

NORM = {"world_model.norm": "layer", "actor.norm": "layer", "critic.norm": "layer"}
GAUSSIAN = {"world_model.rssm.latent": "gaussian"}
PAPER = {"actor.advantage": "centered", "actor.baseline": "fast", "imagination.drop_last": True, "gamma": 0.999}


def parts(learner):
    policy = learner.policy
    return {"world_model": policy.world_model, "actor": policy.actor, "critic": policy.critic,
            "slow_critic": policy.slow_critic}


def weights(learner):
    return {name: snapshot(part) for name, part in parts(learner).items()}


def moved(learner, before):
    return {name for name, part in parts(learner).items() if not unchanged(part, before[name])}


@pytest.mark.parametrize("obs", [VECTOR, IMAGE, BOTH])
@pytest.mark.parametrize("action", [DISCRETE, CONTINUOUS])
@pytest.mark.parametrize("changes", [{}, NORM, GAUSSIAN, PAPER], ids=["official", "norm", "gaussian", "paper"])
def test_every_network_learns_and_every_metric_is_finite(obs, action, changes):
    learner = tiny_learner(changes, obs, action)
    before = weights(learner)
    metrics = learner.step(learner.to_device(random_row(obs=obs, action=action)))
    assert moved(learner, before) == {"world_model", "actor", "critic"}
    assert all(value.shape == () and value.isfinite() and not value.requires_grad for value in metrics.values())
    kinds = {name.removesuffix("_loss").removeprefix("model/") for name in metrics} & {"image", "vector"}
    assert kinds == {spec.kind for spec in obs.values()}
    learner.check()


@pytest.mark.parametrize("changes", [
    {"world_model.kl.free_avg": False, "world_model.kl.free_nats": 0.1, "world_model.kl.balance": 0.5},
    {"world_model.kl.scale": 0.0}, {"world_model.grad_heads": []}, {"world_model.predict_discount": False},
    {"world_model.reward_transform": "sign"}, {"world_model.obs_scale": [1.0, 2.0, 3.0]}, {"imagination.starts": 2},
    {"actor.grad": "dynamics"}, {"actor.grad": "mix", "actor.mix": 1.0}, {"actor.grad": "mix", "actor.mix": 0.0},
    {"actor.entropy": 0.0}, {"lambda_": 0.0}, {"lambda_": 1.0}, {"gamma": 1.0}, {"horizon": 2},
    {"world_model.predict_discount": False, **GAUSSIAN, "actor.grad": "dynamics"},
    {"horizon": 2, "imagination.starts": 1},
], ids=str)
def test_every_option_gives_a_whole_update(changes):
    learner = tiny_learner(changes)
    before = weights(learner)
    metrics = [learner.step(learner.to_device(random_row(seed=seed))) for seed in range(2)][-1]
    assert moved(learner, before) == {"world_model", "actor", "critic"}
    assert all(value.isfinite() for value in metrics.values())


def test_order_of_one_update(monkeypatch):
    """Model step, then imagination with the new model from the old posteriors; both losses before either step."""
    learner = tiny_learner({"actor.grad": "dynamics"}, VECTOR, CONTINUOUS)
    batch = learner.to_device(random_row(action=CONTINUOUS))
    before, state, seen = weights(learner), learner.generator.get_state(), {}
    posterior = learner.model_loss(batch)[1]
    learner.generator.set_state(state)

    def watch(name, method):
        def spy(*args):
            seen[name] = (moved(learner, before), args[0])
            return method(*args)
        monkeypatch.setattr(learner, name, spy)

    for name in ("imagine", "actor_loss", "critic_loss"):
        watch(name, getattr(learner, name))
    learner.step(batch)
    assert {name: changed for name, (changed, _) in seen.items()} == {
        "imagine": {"world_model"}, "actor_loss": {"world_model"}, "critic_loss": {"world_model"}}
    assert torch.equal(seen["imagine"][1].feat, posterior.feat.flatten(0, 1))
    assert seen["actor_loss"][1] is seen["critic_loss"][1]


@pytest.mark.parametrize("action", [DISCRETE, CONTINUOUS])
def test_behaviour_is_learned_without_touching_the_world_model(action):
    learner = tiny_learner({"actor.grad": "dynamics"}, VECTOR, action)
    after = {}
    model_step = learner.model_step

    def noted(batch):
        result = model_step(batch)
        after.update(weights(learner))
        return result

    learner.model_step = noted
    learner.step(learner.to_device(random_row(action=action)))
    assert moved(learner, after) == {"actor", "critic"}
    assert all(parameter.grad is None for parameter in learner.policy.parameters())


def test_gradient_norms_are_those_of_the_losses():
    learner, row = tiny_learner(), random_row()
    batch, state = learner.to_device(row), learner.generator.get_state()
    loss = learner.model_loss(batch)[0]
    grads = torch.autograd.grad(loss, list(learner.model.parameters()))
    learner.generator.set_state(state)
    metrics = learner.step(batch)
    expected = math.sqrt(sum(grad.double().square().sum().item() for grad in grads))
    assert metrics["model/grad_norm"].item() == pytest.approx(expected, rel=1e-4)
    assert metrics["actor/grad_norm"] > 0 and metrics["critic/grad_norm"] > 0


def test_each_optimiser_has_its_own_section():
    changes = {"model_opt": {"lr": 1e-3, "eps": 1e-4, "clip": 7.0, "weight_decay": 1e-2}, "actor_opt.lr": 2e-3,
               "critic_opt.lr": 3e-3}
    learner = tiny_learner(changes)
    model = learner.model_opt
    assert (model.lr, model.eps, model.clip, model.weight_decay) == (1e-3, 1e-4, 7.0, 1e-2)
    assert (learner.actor_opt.lr, learner.critic_opt.lr) == (2e-3, 3e-3)
    assert (learner.actor_opt.eps, learner.actor_opt.clip, learner.actor_opt.weight_decay) == (1e-5, 100.0, 1e-6)
    prefixes = {name.split(".")[0] for optimizer in learner.optimizers.values() for name in optimizer.names}
    assert prefixes == {"world_model", "actor", "critic"}


# Slow critic -----------------------------------------------------------------------------------------------------


def copies(learner, calls):
    """The numbers, from 1, of the calls after which critic and slow critic are equal."""
    equal = []
    for call in range(1, calls + 1):
        before = snapshot(learner.policy.slow_critic)
        learner.update(random_row())
        if unchanged(learner.critic, snapshot(learner.policy.slow_critic)):
            equal.append(call)
        else:
            assert unchanged(learner.policy.slow_critic, before), "frozen in between"
    return equal


def test_slow_critic_is_copied_after_the_first_call_and_every_so_many():
    assert copies(tiny_learner({"critic.slow_every": 3}), 8) == [1, 4, 7]
    assert copies(tiny_learner({"critic.slow_every": 1}), 3) == [1, 2, 3]


def test_slow_critic_is_copied_every_hundred_calls_by_default(monkeypatch):
    learner = tiny_learner()

    def step(batch):
        with torch.no_grad():
            learner.critic.out.bias.add_(1.0)
        return {}, None, torch.tensor(True), torch.tensor(False)

    monkeypatch.setattr(learner, "_step", step)
    assert copies(learner, 202) == [1, 101, 201]
    assert learner.updates == 202


# NaN and infinity ------------------------------------------------------------------------------------------------


def poisoned(name, value):
    learner = tiny_learner()
    with torch.no_grad():
        weight = dict(learner.policy.named_parameters())[name]
        weight[(0,) * (weight.dim() - 1) + (1,)] = value
    return learner


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("name", "loss"), [
    ("world_model.reward.mlp.0.weight", "model/reward_loss"), ("world_model.encoder.mlp.2.bias", "model/vector_loss"),
    ("actor.mlp.0.bias", "actor/loss"), ("critic.mlp.2.bias", "critic/loss"),
])
def test_a_bad_parameter_stops_the_run_and_is_named(name, loss, value):
    learner = poisoned(name, value)
    learner.update(random_row())
    with pytest.raises(NumericalError) as error:
        learner.check()
    assert loss in str(error.value) and "update 1" in str(error.value)
    assert f"first bad parameter: {name}" in str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_bad_data_leaves_all_weights_and_moments_as_they_were(value):
    learner = tiny_learner({"world_model.reward_transform": "identity"})
    learner.update(random_row())
    before = weights(learner)
    moments = [tensor.clone() for tensor in learner.model_opt.state_dict().values()]
    row = random_row()
    row.reward[2, 1] = value
    learner.update(row)
    assert not moved(learner, before)
    after = learner.model_opt.state_dict().values()
    assert all(torch.equal(now, then) for now, then in zip(after, moments, strict=True))
    with pytest.raises(NumericalError, match=r"model/reward_loss.*is not finite; first bad parameter: world_model"):
        learner.check()


def test_a_fault_is_remembered_until_it_is_looked_for():
    learner = tiny_learner({"world_model.reward_transform": "identity"})
    row = random_row()
    row.reward[0, 0] = math.inf
    learner.update(row)
    before = weights(learner)
    for look in (learner.check, partial(learner.update, random_row()), learner.check):
        with pytest.raises(NumericalError, match=r"update 1: .*model/reward_loss.*bad parameter: world_model\."):
            look()
    assert learner.updates == 1 and not moved(learner, before)


# Reproducibility and saving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [DISCRETE, CONTINUOUS])
def test_same_seed_same_update(action):
    runs = []
    for seed in (0, 0, 1):
        learner = DreamerV2Learner(tiny_policy(None, VECTOR, action), tiny_config(), generator(seed))
        metrics = [learner.update(random_row(action=action, seed=i)) for i in range(2)][-1]
        runs.append((metrics, weights(learner)))
    assert all(torch.equal(value, runs[1][0][name]) for name, value in runs[0][0].items())
    for ours, theirs in zip(runs[0][1].values(), runs[1][1].values(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert runs[0][0]["model/loss"] != runs[2][0]["model/loss"]


def test_global_generator_is_not_touched():
    learner, before = tiny_learner(), torch.get_rng_state()
    learner.update(random_row())
    assert torch.equal(torch.get_rng_state(), before)


def test_restored_learner_continues_bit_for_bit():
    first = tiny_learner({"critic.slow_every": 3})
    for seed in range(2):
        first.update(random_row(seed=seed))
    second = tiny_learner({"critic.slow_every": 3}, seed=9)
    second.policy.load_state_dict(first.policy.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.updates == 2
    for seed in range(2, 5):
        ours, theirs = first.update(random_row(seed=seed)), second.update(random_row(seed=seed))
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert not moved(second, weights(first))


@pytest.mark.parametrize("action", [DISCRETE, CONTINUOUS])
def test_compiled_is_the_same_update(action, monkeypatch):
    """Traced and split into graphs as for a real compilation, which would take half a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    compiled, plain = (tiny_learner({"compile": mode}, action=action) for mode in ("on", "off"))
    copied = copy.deepcopy(compiled.policy)
    for seed in range(2):
        row = random_row(action=action, seed=seed)
        ours, theirs = compiled.update(row), plain.update(row)
        torch.testing.assert_close(ours, theirs)
    for name, value in compiled.policy.named_parameters():
        torch.testing.assert_close(value, dict(plain.policy.named_parameters())[name])
    cell = copied.world_model.rssm.cell
    assert cell.gated.__self__ is cell, "a copy's compiled methods read the copy's weights"


def test_bfloat16_with_the_fast_baseline_differentiates_the_critic():
    """The critic runs with and without gradients then."""
    learner = tiny_learner({"precision": "bf16", "actor.baseline": "fast"})
    before = snapshot(learner.critic)
    learner.update(random_row())
    assert not unchanged(learner.critic, before)


def test_compilation_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match="compile: on needs a C\\+\\+ compiler"):
        tiny_learner({"compile": "on"})
