"""DQN's update against equations written again in loops over rows, and every option at its other value."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from tests.builders import DISCRETE, IMAGE, VECTOR, generator, random_row
from tests.ops.test_advantages import life
from xrl.configs.schemas.dqn import DQNConfig
from xrl.learners.dqn import DQNLearner
from xrl.memory import Draw
from xrl.policies.dqn import DQNPolicy

OPTIONS = [{}, {"double": True}, {"dueling": True}, {"n_step": 3}, {"n_step": 3, "frame_stack": 2, "double": True}]


def config_of(**changes):
    tree = {"method": "DQN", "env_name": "toy", "env_id": "Catch-v0", "batch_size": 6, "gamma": 0.9, "target_every": 3,
            "network": {"layers": 2, "units": 8, "depth": 2}}
    for key, value in changes.items():
        *path, last = key.split("__")
        section = tree
        for name in path:
            section = section.setdefault(name, {})
        section[last] = value
    return DQNConfig.model_validate(tree)


def learner_of(obs=VECTOR, seed=0, **changes):
    torch.manual_seed(seed)
    policy = DQNPolicy(obs, DISCRETE, config_of(**changes))
    with torch.no_grad():
        for parameter in policy.target_q.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return DQNLearner(policy, config_of(**changes), generator(seed + 1))


def draw_of(learner, size=6, obs=VECTOR, seed=0, probs=None) -> Draw:
    """Windows of random rows whose first transition is one."""
    config = learner.config
    rows = random_row((config.frame_stack + config.n_step, size), obs, DISCRETE, seed)
    rows.is_first, rows.is_last, rows.is_terminal, reward, _ = life(seed, config.frame_stack + config.n_step, size)
    rows.reward = reward.astype(np.float32)
    for flags in (rows.is_first, rows.is_last, rows.is_terminal):
        flags[config.frame_stack if flags is rows.is_first else config.frame_stack - 1] = False
    return Draw(rows, np.arange(size), np.full(size, 1 / 50) if probs is None else probs, 50)


def seen(rows, row, env, frames):
    """The last ``frames`` observations at a row, the first of the episode repeated where there are no more."""
    found = [rows.obs["state"][row, env]]
    while len(found) < frames:
        row -= 0 if rows.is_first[row, env] or row == 0 else 1
        found.insert(0, rows.obs["state"][row, env])
    return {"state": torch.from_numpy(np.concatenate(found))}


@torch.no_grad()
def errors_by_definition(learner, draw):
    """Q(x_t, a_{t+1}) - y for every window, one at a time."""
    config, rows, found = learner.config, draw.rows, []
    frames = config.frame_stack
    for env in range(rows.reward.shape[1]):
        now = frames - 1
        total, factor, row = 0.0, 1.0, now
        for step in range(config.n_step):
            if step and rows.is_first[row + 1, env]:
                break
            row += 1
            total, factor = total + factor * rows.reward[row, env], factor * config.gamma
        if not rows.is_terminal[row, env]:
            slow = learner.policy.target_q(seen(rows, row, env, frames))
            best = learner.policy.q(seen(rows, row, env, frames)).argmax() if config.double else slow.argmax()
            total += factor * slow[best].item()
        value = learner.policy.q(seen(rows, now, env, frames))[rows.action[frames, env].argmax()].item()
        found.append(value - total)
    return np.array(found)


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_the_error_is_its_equation(changes):
    learner = learner_of(**changes)
    for seed in range(4):
        draw = draw_of(learner, seed=seed)
        expected = errors_by_definition(learner, draw)
        loss, metrics = learner.loss(learner.to_device(draw))
        np.testing.assert_allclose(learner.error.numpy(), expected, atol=1e-5)
        huber = np.where(np.abs(expected) < 1, 0.5 * expected**2, np.abs(expected) - 0.5)
        assert loss.item() == pytest.approx(huber.mean(), abs=1e-5)
        assert metrics["q/error"].item() == pytest.approx(np.abs(expected).mean(), abs=1e-5)


def test_double_is_another_target_where_the_networks_disagree():
    plain, double = learner_of(), learner_of(double=True)
    draw = draw_of(plain, size=40, seed=1)
    targets = [learner.target(learner.transitions(learner.to_device(draw))) for learner in (plain, double)]
    assert (targets[1] <= targets[0] + 1e-6).all() and (targets[1] < targets[0] - 1e-3).any()


def test_importance_weights_scale_each_error():
    learner = learner_of(replay__prioritized=True, replay__beta=1.0)
    probs = np.array([0.1, 0.2, 0.1, 0.4, 0.1, 0.1])
    draw = draw_of(learner, probs=probs)
    loss, _ = learner.loss(learner.to_device(draw))
    error = errors_by_definition(learner, draw)
    huber = np.where(np.abs(error) < 1, 0.5 * error**2, np.abs(error) - 0.5)
    assert loss.item() == pytest.approx((huber * 0.1 / probs).mean(), abs=1e-5)
    learner.beta = 0.0
    assert learner.loss(learner.to_device(draw))[0].item() == pytest.approx(huber.mean(), abs=1e-5)


def test_the_correction_grows_to_all_of_it():
    learner = learner_of(replay__beta=0.4)
    for fraction, expected in ((0.0, 0.4), (0.5, 0.7), (2.0, 1.0)):
        learner.anneal(fraction)
        assert learner.beta == pytest.approx(expected)


def test_only_the_network_receives_gradient():
    learner = learner_of(double=True, dueling=True)
    loss, _ = learner.loss(learner.to_device(draw_of(learner)))
    gradients = torch.autograd.grad(loss, learner.optimizer.parameters)
    assert all(gradient.any() for gradient in gradients)
    assert not any(parameter.requires_grad for parameter in learner.policy.target_q.parameters())


def test_the_target_network_is_copied_every_so_often():
    learner = learner_of()
    before = learner.policy.target_q.out[-1].weight.clone()
    for update in range(1, 7):
        learner.update(draw_of(learner, seed=update))
        now = learner.policy.target_q.out[-1].weight
        if update % 3 == 0:
            assert torch.equal(now, learner.policy.q.out[-1].weight) and not torch.equal(now, before)
            before = now.clone()
        assert torch.equal(now, before)


def test_a_restored_learner_goes_on_bit_for_bit():
    one, other = learner_of(), learner_of(seed=9)
    one.update(draw_of(one))
    other.policy.load_state_dict(one.policy.state_dict())
    other.load_state_dict(one.state_dict())
    for learner in (one, other):
        learner.update(draw_of(one, seed=1))
    assert all(map(torch.equal, one.policy.parameters(), other.policy.parameters())) and other.updates == 2


def test_a_bad_update_is_skipped_if_that_is_forgiven():
    learner = learner_of(skip_nonfinite=1, target_every=1)
    before = [parameter.clone() for parameter in learner.policy.parameters()]
    draw = draw_of(learner)
    draw.rows.reward[:] = math.nan
    assert learner.update(draw)["update/skipped"] == 1
    learner.check()
    assert all(map(torch.equal, before, learner.policy.parameters()))


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"compile": "on"}])
def test_faster_is_the_same_update(change, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, fast = learner_of(), learner_of(**change)
    ours, theirs = fast.update(draw_of(plain)), plain.update(draw_of(plain))
    for name, value in theirs.items():
        assert ours[name].item() == pytest.approx(value.item(), rel=0.05, abs=0.02), name


def test_images_are_seen():
    learner = learner_of(obs=IMAGE, dueling=True, frame_stack=2)
    before = learner.policy.q.trunk.conv.layers[0].weight.clone()
    learner.update(draw_of(learner, obs=IMAGE))
    assert not torch.equal(before, learner.policy.q.trunk.conv.layers[0].weight)
