"""SAC's update against equations written with torch.distributions, and who receives which gradient."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from tests.builders import CONTINUOUS, IMAGE, VECTOR, generator, random_row
from xrl.configs.schemas.sac import SACConfig
from xrl.learners.sac import SACLearner
from xrl.memory import Draw
from xrl.nn.gaussians import standard_normal
from xrl.policies.sac import SACPolicy


def config_of(**changes):
    tree = {"method": "SAC", "env_name": "toy", "env_id": "Catch-v0", "batch_size": 6, "gamma": 0.9,
            "temperature": {"start": 0.5}, "network": {"layers": 2, "units": 8, "depth": 2}}
    for key, value in changes.items():
        *path, last = key.split("__")
        section = tree
        for name in path:
            section = section.setdefault(name, {})
        section[last] = value
    return SACConfig.model_validate(tree)


def learner_of(obs=VECTOR, seed=0, **changes):
    torch.manual_seed(seed)
    policy = SACPolicy(obs, CONTINUOUS, config_of(**changes))
    with torch.no_grad():
        for parameter in policy.target_q.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return SACLearner(policy, config_of(**changes), generator(seed + 1))


def draw_of(learner, size=6, obs=VECTOR, seed=0) -> Draw:
    rows = random_row((learner.config.frame_stack + 1, size), obs, CONTINUOUS, seed)
    rows.is_first[1:], rows.is_terminal[:] = False, False
    rows.is_last[-1, ::2] = True
    rows.is_terminal[-1, ::3] = True
    return Draw(rows, np.arange(size), np.full(size, 1 / 50), 50)


def transitions_of(learner, **keys):
    return learner.transitions(learner.to_device(draw_of(learner, **keys)))


def sample_by_torch(learner, obs, noise):
    """The action that such noise makes, and its log-probability by torch's own law."""
    mean, log_std = learner.policy.actor.out(learner.policy.actor.trunk(obs)).chunk(2, -1)
    law = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform(cache_size=1))
    action = (mean + log_std.exp() * standard_normal(noise)).tanh()
    return action, law.log_prob(action).sum(-1)


@torch.no_grad()
def test_the_target_is_its_equation():
    learner = learner_of(reward_scale=2.0)
    transitions = transitions_of(learner)
    state = learner.generator.get_state()
    found = learner.target(transitions)
    learner.generator.set_state(state)
    noise = learner.policy.noise(6, generator=learner.generator)
    action, log_prob = sample_by_torch(learner, transitions.next_obs, noise)
    first, second = learner.policy.target_q(transitions.next_obs, action)
    draw = draw_of(learner)
    for env in range(6):
        soft = min(first[env].item(), second[env].item()) - 0.5 * log_prob[env].item()
        cont = 0.0 if draw.rows.is_terminal[1, env] else 0.9
        assert found[env].item() == pytest.approx(2 * draw.rows.reward[1, env] + cont * soft, abs=1e-4)
    assert draw.rows.is_last[1].sum() > draw.rows.is_terminal[1].sum() - 1 > 0, "some are truncated"


def test_both_critics_learn_the_same_target():
    learner = learner_of()
    transitions = transitions_of(learner)
    state = learner.generator.get_state()
    loss, metrics = learner.critic_loss(transitions)
    learner.generator.set_state(state)
    target = learner.target(transitions)
    with torch.no_grad():
        values = [critic(transitions.obs, transitions.action)
                  for critic in (learner.policy.critics.first, learner.policy.critics.second)]
    expected = sum(0.5 * ((value - target) ** 2).mean() for value in values)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5) and metrics["critic/loss"] is loss
    assert not torch.allclose(*values), "they begin apart"


def test_the_actor_is_pulled_towards_the_smaller_value_and_towards_chance():
    learner = learner_of()
    transitions = transitions_of(learner)
    state = learner.generator.get_state()
    loss, log_prob, _ = learner.actor_loss(transitions)
    gradient = torch.autograd.grad(loss, learner.actor_opt.parameters)
    learner.generator.set_state(state)
    noise = learner.policy.noise(6, generator=learner.generator)
    action, expected_log_prob = sample_by_torch(learner, transitions.obs, noise)
    value = torch.minimum(learner.policy.critics.first(transitions.obs, action),
                          learner.policy.critics.second(transitions.obs, action))
    expected = (0.5 * expected_log_prob - value).mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)
    torch.testing.assert_close(log_prob, expected_log_prob.detach(), atol=1e-4, rtol=1e-4)
    for found, known in zip(gradient, torch.autograd.grad(expected, learner.actor_opt.parameters), strict=True):
        torch.testing.assert_close(found, known, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("wanted", "goal"), [(None, -2.0), (1.5, 1.5)])
def test_the_temperature_rises_while_there_is_less_entropy_than_wanted(wanted, goal):
    learner = learner_of(temperature__target_entropy=wanted)
    for entropy, sign in ((goal - 1, 1), (goal + 1, -1)):
        loss = learner.temperature_loss(torch.full((6,), -entropy))
        gradient, = torch.autograd.grad(loss, [learner.policy.log_alpha])
        assert math.copysign(1, -gradient.item()) == sign
        assert loss.item() == pytest.approx(-math.log(0.5) * (goal - entropy))


def test_a_fixed_temperature_stays():
    learner = learner_of(temperature__automatic=False, temperature__start=0.2)
    metrics = learner.update(draw_of(learner))
    assert "temperature/loss" not in metrics
    assert learner.alpha.item() == metrics["temperature/alpha"].item() == pytest.approx(0.2)
    moving = learner_of(temperature__start=0.2)
    moving.update(draw_of(moving))
    assert moving.alpha.item() != pytest.approx(0.2, abs=1e-6)


def test_who_receives_gradient_and_who_moves():
    learner = learner_of()
    policy = learner.policy
    parts = {"actor": policy.actor, "critics": policy.critics, "target": policy.target_q}
    before = {name: [parameter.clone() for parameter in part.parameters()] for name, part in parts.items()}
    learner.step(learner.to_device(draw_of(learner)))
    moved = {name: any(not torch.equal(*pair) for pair in zip(before[name], part.parameters(), strict=True))
             for name, part in parts.items()}
    assert moved == {"actor": True, "critics": True, "target": False}
    transitions = transitions_of(learner)
    critic_loss, actor_loss = learner.critic_loss(transitions)[0], learner.actor_loss(transitions)[0]
    assert not any(gradient is not None for gradient in torch.autograd.grad(
        critic_loss, [*policy.actor.parameters(), policy.log_alpha], allow_unused=True))
    assert torch.autograd.grad(actor_loss, [policy.log_alpha], allow_unused=True) == (None,)


def test_the_target_critics_follow_slowly():
    learner = learner_of(target_rate=0.25)
    before = learner.policy.target_q.first.out.weight.clone()
    learner.update(draw_of(learner))
    expected = 0.75 * before + 0.25 * learner.policy.critics.first.out.weight
    torch.testing.assert_close(learner.policy.target_q.first.out.weight, expected)


def test_a_restored_learner_goes_on_bit_for_bit():
    one, other = learner_of(), learner_of(seed=9)
    one.update(draw_of(one))
    other.policy.load_state_dict(one.policy.state_dict())
    other.load_state_dict(one.state_dict())
    for learner in (one, other):
        learner.update(draw_of(one, seed=1))
    assert all(map(torch.equal, one.policy.parameters(), other.policy.parameters())) and other.updates == 2


def test_a_bad_update_is_skipped_if_that_is_forgiven():
    learner = learner_of(skip_nonfinite=1)
    before = [parameter.clone() for parameter in learner.policy.parameters()]
    draw = draw_of(learner)
    draw.rows.reward[:] = math.nan
    assert learner.update(draw)["update/skipped"] == 1
    learner.check()
    assert all(map(torch.equal, before, learner.policy.parameters())), "nothing follows the critics' bad step"


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"compile": "on"}])
def test_faster_is_the_same_update(change, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, fast = learner_of(), learner_of(**change)
    ours, theirs = fast.update(draw_of(plain)), plain.update(draw_of(plain))
    for name, value in theirs.items():
        assert ours[name].item() == pytest.approx(value.item(), rel=0.05, abs=0.02), name


@pytest.mark.parametrize("frames", [1, 3])
def test_images_are_seen_as_acting_sees_them(frames):
    learner = learner_of(obs=IMAGE, frame_stack=frames)
    draw = draw_of(learner, obs=IMAGE)
    found = learner.transitions(learner.to_device(draw))
    images = [torch.from_numpy(draw.rows.obs["image"][row]) for row in range(frames + 1)]
    assert torch.equal(found.obs["image"], torch.cat(images[:frames], -1))
    assert torch.equal(found.next_obs["image"], torch.cat(images[1:], -1))
    before = [network.trunk.conv.layers[0].weight.clone() for network in (learner.policy.actor,
                                                                            learner.policy.critics.second)]
    learner.update(draw)
    now = [network.trunk.conv.layers[0].weight for network in (learner.policy.actor, learner.policy.critics.second)]
    assert not any(map(torch.equal, before, now))
