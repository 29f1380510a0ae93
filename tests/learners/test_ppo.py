"""PPO's update against equations written again in float64 loops, and who receives which gradient."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Normal

from tests.builders import CONTINUOUS, DISCRETE, IMAGE, VECTOR, generator, parameter_count, random_row
from tests.ops.test_advantages import advantages_by_definition, life
from xrl.common.row import ActionSpec, Row
from xrl.configs.schemas.ppo import PPOConfig
from xrl.learners.ppo import Minibatch, PPOLearner, mean
from xrl.nn.distributions import MultiOneHot
from xrl.policies.ppo import PPOPolicy

MULTI = ActionSpec("multi_discrete", 5, (2, 3))


def config_of(**changes):
    tree = {"method": "PPO", "env_name": "toy", "env_id": "Catch-v0", "parallels": 3, "buffer_size": 12,
            "batch_size": 4, "gamma": 0.9, "network": {"layers": 2, "units": 8, "depth": 2, "shared": False}}
    for key, value in changes.items():
        *path, last = key.split("__")
        section = tree
        for name in path:
            section = section.setdefault(name, {})
        section[last] = value
    return PPOConfig.model_validate(tree)


def learner_of(obs=VECTOR, action=DISCRETE, seed=0, **changes):
    torch.manual_seed(seed)
    policy = PPOPolicy(obs, action, config_of(**changes))
    with torch.no_grad():
        policy.actor.weight.mul_(100)  # laws that differ
    return PPOLearner(policy, config_of(**changes), generator(seed + 1))


def rollout_of(rows=5, obs=VECTOR, action=DISCRETE, seed=0) -> Row:
    """Random rows (rows, 3) with episodes that terminate, are truncated, or are cut."""
    row = random_row((rows, 3), obs, DISCRETE if action is MULTI else action, seed)
    if action is MULTI:
        row.action = MULTI.random(np.random.default_rng(seed), rows * 3).reshape(rows, 3, 5)
    row.is_first, row.is_last, row.is_terminal, reward, _ = life(seed, rows)
    row.reward = reward.astype(np.float32)
    return row


def minibatch_of(learner, rows=5, seed=0, **keys) -> Minibatch:
    return learner.estimate(learner.to_device(rollout_of(rows, seed=seed, **keys)))


# What is estimated of a rollout -----------------------------------------------------------------------------------


def log_probs_by_torch(policy, row, action):
    """ln pi(a_{t+1} | x_t) from torch's own laws."""
    out = policy.actor(policy.trunks[0]({name: torch.from_numpy(value[:-1]) for name, value in row.obs.items()}))
    chosen = torch.from_numpy(row.action[1:])
    if action.kind == "continuous":
        return Normal(out, policy.log_std.exp()).log_prob(chosen).sum(-1)
    parts = zip(out.split(list(action.choices or (action.size,)), -1),
                chosen.split(list(action.choices or (action.size,)), -1), strict=True)
    return sum(Categorical(logits=logits).log_prob(one_hot.argmax(-1)) for logits, one_hot in parts)


@pytest.mark.parametrize("action", [DISCRETE, MULTI, CONTINUOUS], ids=lambda spec: spec.kind)
@pytest.mark.parametrize("lambda_", [0.0, 0.9])
def test_a_rollout_is_estimated_with_the_policy_that_made_it(action, lambda_):
    learner = learner_of(action=action, lambda_=lambda_)
    row = rollout_of(12, action=action, seed=5)
    found = learner.estimate(learner.to_device(row))
    with torch.no_grad():
        value = learner.policy.value({"state": torch.from_numpy(row.obs["state"])})
        expected = log_probs_by_torch(learner.policy, row, action)
    flags = row.is_first, row.is_terminal
    advantage = advantages_by_definition(*flags, row.reward, value.double().numpy(), 0.9, lambda_)
    valid, target = ~np.isnan(advantage), advantage + value[:-1].numpy()
    assert np.array_equal(found.valid.view(11, 3).bool().numpy(), valid) and not valid.all()
    np.testing.assert_allclose(found.advantage.view(11, 3).numpy()[valid], advantage[valid], atol=1e-5)
    np.testing.assert_allclose(found.target.view(11, 3).numpy()[valid], target[valid], atol=1e-5)
    torch.testing.assert_close(found.log_prob.view(11, 3)[torch.tensor(valid)], expected[torch.tensor(valid)])
    torch.testing.assert_close(found.value.view(11, 3), value[:-1])
    assert torch.equal(found.obs["state"].view(11, 3, 3), torch.from_numpy(row.obs["state"][:-1]))
    assert torch.equal(found.action.view(11, 3, -1), torch.from_numpy(row.action[1:]))


def test_the_final_observation_of_a_truncated_episode_is_bootstrapped_from_and_a_terminal_one_is_not():
    learner = learner_of(lambda_=0.5)
    row = rollout_of(4)
    row.is_first[:], row.is_last[:], row.is_terminal[:] = False, False, False
    row.is_first[0] = row.is_first[3] = True  # the episodes end in row 2
    row.is_last[2] = True
    row.is_terminal[2, 1] = True
    found = learner.estimate(learner.to_device(row))
    with torch.no_grad():
        value = learner.policy.value({"state": torch.from_numpy(row.obs["state"])})
    reward = torch.from_numpy(row.reward)
    after = reward[2] + torch.tensor([0.9, 0.0, 0.9]) * value[2]
    torch.testing.assert_close(found.target.view(3, 3)[1], after)
    first = reward[1] + 0.9 * (0.5 * value[1] + 0.5 * after)
    torch.testing.assert_close(found.target.view(3, 3)[0], first)
    assert found.valid.view(3, 3).tolist() == [[1] * 3, [1] * 3, [0] * 3]


# The objective ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "advantage", "expected"), [
    (1.0, 2.0, -2.0), (1.5, 2.0, -2.4), (0.5, 2.0, -1.0), (1.5, -2.0, 3.0), (0.5, -2.0, 1.6)])
def test_the_clipped_objective_worked_by_hand(ratio, advantage, expected):
    found = learner_of(clip=0.2).clipped_loss(torch.tensor(ratio), torch.tensor(advantage))
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize(("value_clip", "value", "expected"), [
    (0.0, 3.0, 0.5 * 2**2), (0.5, 3.0, 0.5 * 2**2), (0.5, 1.2, 0.5 * 0.5**2), (0.5, 0.8, 0.5 * 0.5**2)])
def test_the_value_is_kept_near_the_old_one_by_the_larger_loss(value_clip, value, expected):
    """Old value 0, target 1: beyond 0.5 moving closer to the target pays no more."""
    batch = Minibatch({}, *(torch.tensor([x]) for x in (0.0, 0.0, 0.0, 0.0, 1.0, 1.0)))
    found = learner_of(value_clip=value_clip).value_loss(torch.tensor([value]), batch)
    assert found.item() == pytest.approx(expected)


def loss_by_definition(learner, batch):
    """PPO, eq. 9, over the valid transitions, in float64 NumPy."""
    config = learner.config
    with torch.no_grad():
        law, value = learner.policy(batch.obs)
    keep = batch.valid.bool().numpy()
    logits = law.logits.double().numpy()[keep]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    ratio = np.exp((log_p * batch.action.numpy()[keep]).sum(-1) - batch.log_prob.double().numpy()[keep])
    advantage = batch.advantage.double().numpy()[keep]
    if config.normalize_advantage:
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    surrogate = np.minimum(ratio * advantage, np.clip(ratio, 1 - config.clip, 1 + config.clip) * advantage).mean()
    critic = (0.5 * (value.double().numpy()[keep] - batch.target.double().numpy()[keep]) ** 2).mean()
    entropy = -(np.exp(log_p) * log_p).sum(-1).mean()
    clipped = (np.abs(ratio - 1) > config.clip).mean()
    return -surrogate + config.value_scale * critic - config.entropy * entropy, clipped


@pytest.mark.parametrize("changes", [{}, {"normalize_advantage": False}, {"entropy": 0.3, "value_scale": 2.0},
                                     {"clip": 0.01}])
def test_the_loss_is_its_equation(changes):
    learner = learner_of(**changes)
    batch = minibatch_of(learner, 12, seed=5)
    with torch.no_grad():
        for parameter in learner.policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(3)))
    loss, metrics = learner.loss(batch)
    expected, clipped = loss_by_definition(learner, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert metrics["actor/clipped"].item() == pytest.approx(clipped) and metrics["actor/kl"] > 0
    assert metrics["update/loss"] is loss


def test_what_is_no_transition_changes_nothing():
    learner = learner_of()
    batch = minibatch_of(learner, 12, seed=5)
    spoiled = batch._replace(**{name: getattr(batch, name).where(batch.valid.bool(), 7.0)
                                for name in ("log_prob", "advantage", "target", "value")})
    one, other = learner.loss(batch)[0], learner.loss(spoiled)[0]
    assert not batch.valid.all() and one.item() == pytest.approx(other.item())
    for left, right in zip(*(torch.autograd.grad(loss, learner.optimizer.parameters) for loss in (one, other)),
                           strict=True):
        torch.testing.assert_close(left, right)


def test_a_minibatch_without_a_transition_is_no_accident():
    learner = learner_of()
    batch = minibatch_of(learner)
    metrics = learner.step(batch._replace(valid=torch.zeros_like(batch.valid)))
    assert all(value.isfinite() for value in metrics.values())
    assert mean(torch.ones(3), torch.zeros(3)) == 0


def test_before_the_first_step_the_ratio_is_one():
    learner = learner_of(epochs=1, batch_size=12)
    metrics = learner.update(rollout_of())
    assert metrics["actor/kl"].item() == pytest.approx(0, abs=1e-6) and metrics["actor/clipped"] == 0
    again = learner_of(epochs=6, batch_size=4, optimizer__lr=0.1).update(rollout_of())
    assert again["actor/kl"] > 0.01 and again["actor/clipped"] > 0


@pytest.mark.parametrize("shared", [True, False])
def test_who_receives_gradient(shared):
    learner = learner_of(network__shared=shared, normalize_advantage=False)
    policy, batch = learner.policy, minibatch_of(learner)
    law, value = policy(batch.obs)
    parts = {"actor trunk": policy.trunks[0], "critic trunk": policy.trunks[-1], "actor": policy.actor,
             "critic": policy.critic}
    expected = {"actor": {"actor trunk", "actor"}, "critic": {"critic trunk", "critic"}}
    if shared:
        expected = {name: {*parts} - {"critic" if name == "actor" else "actor"} for name in expected}
    losses = {"actor": law.log_prob(batch.action).sum(), "critic": learner.value_loss(value, batch).sum()}
    for name, loss in losses.items():
        found = torch.autograd.grad(loss, learner.optimizer.parameters, allow_unused=True, retain_graph=True)
        moved = {id(parameter) for parameter, gradient in zip(learner.optimizer.parameters, found, strict=True)
                 if gradient is not None and gradient.any()}
        assert {part for part, module in parts.items() if id(next(module.parameters())) in moved} == expected[name]


# The update -------------------------------------------------------------------------------------------------------


def test_every_transition_is_learned_from_once_an_epoch_in_another_order_each_time():
    learner, seen = learner_of(epochs=3), []
    step = learner.step

    def watched(batch):
        seen.append(batch.obs["state"][:, 0].clone())
        return step(batch)

    learner._step = watched
    row = rollout_of()
    learner.update(row)
    assert [len(batch) for batch in seen] == [4] * 9 and learner.updates == 1
    epochs = [torch.cat(seen[k:k + 3]) for k in (0, 3, 6)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.from_numpy(row.obs["state"][:-1, :, 0].ravel()).sort().values)
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])


def test_the_learning_rate_falls_to_zero():
    learner = learner_of(optimizer__lr=0.1)
    for fraction, expected in ((0.0, 0.1), (0.75, 0.025), (1.5, 0.0)):
        learner.anneal(fraction)
        assert learner.lr.item() == pytest.approx(expected)
    before = [parameter.clone() for parameter in learner.policy.parameters()]
    learner.update(rollout_of())
    assert all(map(torch.equal, before, learner.policy.parameters()))
    constant = learner_of(anneal=False, optimizer__lr=0.1)
    constant.anneal(0.75)
    assert constant.lr.item() == pytest.approx(0.1)


def test_a_restored_learner_goes_on_bit_for_bit():
    one, other = learner_of(), learner_of(seed=9)
    one.update(rollout_of())
    other.policy.load_state_dict(one.policy.state_dict())
    other.load_state_dict(one.state_dict())
    for learner in (one, other):
        learner.update(rollout_of(seed=1))
    assert all(map(torch.equal, one.policy.parameters(), other.policy.parameters())) and other.updates == 2


def test_bad_updates_are_skipped_as_long_as_they_are_forgiven():
    learner = learner_of(skip_nonfinite=5, epochs=1)  # three gradient steps
    before = [parameter.clone() for parameter in learner.policy.parameters()]
    row = rollout_of()
    row.reward[2] = math.nan
    metrics = learner.update(row)
    learner.check()
    assert learner.health.skipped > 0 and metrics["update/skipped"] > 0
    learner.update(rollout_of(seed=1))
    assert not all(map(torch.equal, before, learner.policy.parameters()))


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"compile": "on"}])
def test_faster_is_the_same_update(change, monkeypatch):
    """Up to the rounding of its products; compiled: the same graph through another door."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, fast = learner_of(), learner_of(**change)
    ours, theirs = fast.update(rollout_of()), plain.update(rollout_of())
    for name, value in theirs.items():
        assert ours[name].item() == pytest.approx(value.item(), rel=0.05, abs=0.02), name


def test_a_bandit_is_solved_of_several_choices_at_once():
    """The first of 2 and the last of 3 pay."""
    learner, rng = learner_of(action=MULTI, optimizer__lr=2e-2, epochs=4, buffer_size=120, batch_size=60), generator(2)
    for _ in range(20):
        row = random_row((41, 3), VECTOR, DISCRETE)
        row.obs["state"][:] = 1
        row.is_first[:], row.is_terminal[:] = False, True
        law = learner.policy({"state": torch.ones(41, 3, 3)})[0]
        row.action = law.sample(learner.policy.noise(41, 3, generator=rng)).detach().numpy()
        row.reward = row.action[..., 0] + row.action[..., 4]
        learner.update(row)
    law = learner.policy({"state": torch.ones(1, 3)})[0]
    assert isinstance(law, MultiOneHot) and law.mode().tolist() == [[1, 0, 0, 0, 1]]


def test_images_are_seen():
    learner = learner_of(obs=IMAGE, network__shared=True)
    before = learner.policy.trunks[0].conv.layers[0].weight.clone()
    learner.update(rollout_of(obs=IMAGE))
    assert not torch.equal(before, learner.policy.trunks[0].conv.layers[0].weight)
    assert parameter_count(learner.policy) == sum(parameter.numel() for parameter in learner.optimizer.parameters)
