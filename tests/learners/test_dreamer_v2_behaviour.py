"""Imagination, targets, and the losses of actor and critic: values, and who receives a gradient."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import OneHotCategorical

from tests.builders import CONTINUOUS, DISCRETE, VECTOR, float64, generator, snapshot, tiny_learner, unchanged
from xrl.learners.dreamer_v2 import Dream
from xrl.world_models.rssm import State

T, B, H, N = 5, 3, 4, 15
GRADS = ["reinforce", "dynamics", "mix"]
SPACES = [DISCRETE, CONTINUOUS]


def setting(changes=None, action=DISCRETE):
    learner = tiny_learner(changes, VECTOR, action)
    for parameter in learner.policy.parameters():
        nn.init.normal_(parameter, std=0.3)
    return learner


def starts(learner, count=N):
    """Start states, every third one a terminal."""
    g = generator(3)
    state = State(torch.randn(count, 8, generator=g), torch.randn(count, learner.model.latent.size, generator=g))
    return state, torch.arange(count) % 3 == 0


def dreamed(changes=None, action=DISCRETE):
    learner = setting(changes, action)
    return learner, learner.imagine(*starts(learner))


def gradients(loss, module):
    """None where nothing arrives."""
    return torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, retain_graph=True)


def silent(grads):
    return all(grad is None or not grad.any() for grad in grads)


def array(tensor):
    return tensor.detach().double().numpy()


# Start states ----------------------------------------------------------------------------------------------------


def numbered_posteriors():
    """Row (t, b) carries the number t B + b in both parts of the state."""
    number = torch.arange(T * B, dtype=torch.float32).reshape(T, B, 1)
    flags = torch.rand(T, B, generator=generator(2)) < 0.4
    return State(number.expand(T, B, 8).clone().requires_grad_(), number.expand(T, B, 16).clone()), flags


@pytest.mark.parametrize(("changes", "count"), [
    ({}, 15), ({"imagination.drop_last": True}, 12), ({"imagination.starts": 7}, 7), ({"imagination.starts": 15}, 15),
    ({"imagination.starts": 99}, 15), ({"imagination.starts": 7, "imagination.drop_last": True}, 7)])
def test_states_and_flags_are_flattened_and_drawn_alike(changes, count):
    post, flags = numbered_posteriors()
    learner = setting({"actor.grad": "dynamics", **changes})
    start, is_terminal = learner.start_states(post, flags)
    number = start.deter[:, 0].long()
    assert torch.equal(start.stoch[:, 0].long(), number)
    assert torch.equal(is_terminal, flags.flatten()[number])
    assert len(set(number.tolist())) == len(number) == count
    assert not start.deter.requires_grad
    if learner.config.imagination.drop_last:
        assert number.max() < (T - 1) * B


def test_drawn_start_states_change_from_update_to_update_and_reach_every_row():
    post, flags = numbered_posteriors()
    learner = setting({"imagination.starts": 5})
    draws = [set(learner.start_states(post, flags)[0].deter[:, 0].long().tolist()) for _ in range(60)]
    assert len({frozenset(draw) for draw in draws}) > 50
    assert set.union(*draws) == set(range(T * B))


# Dreams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", SPACES)
@pytest.mark.parametrize("grad", GRADS)
def test_shapes(action, grad):
    learner = tiny_learner({"actor.grad": grad, "horizon": 15}, VECTOR, action)
    dream = learner.imagine(*starts(learner))
    assert dream.feat.shape == (16, N, 24) and dream.action.shape == (15, N, action.size)
    for name in ("discount", "weight", "value", "target"):
        assert getattr(dream, name).shape == (15, N), name
    assert learner.advantage(dream).shape == (14, N)


@pytest.mark.parametrize("predict", [True, False])
@pytest.mark.parametrize("lambda_", [0.95, 0.0, 1.0])
def test_dream_equals_a_loop_over_its_equations(predict, lambda_):
    changes = {"gamma": 0.9, "lambda_": lambda_, "world_model.predict_discount": predict}
    learner, dream = dreamed(changes)
    _, is_terminal = starts(learner)
    feat = dream.feat
    reward, value = array(learner.model.reward(feat)), array(learner.policy.slow_critic(feat))
    discount = array(learner.model.discount(feat)) if predict else np.full((H + 1, N), 0.9)
    if predict:  # what is known of the start row counts; without the head nothing ever ends
        discount[0] = np.where(is_terminal, 0.0, 0.9)
    for n in range(N):
        target, weight = value[H, n], 1.0
        for k in reversed(range(H)):
            target = reward[k, n] + discount[k, n] * ((1 - lambda_) * value[k + 1, n] + lambda_ * target)
            assert dream.target[k, n].item() == pytest.approx(target, abs=1e-5)
        for k in range(H):
            assert dream.weight[k, n].item() == pytest.approx(weight, abs=1e-6)
            assert dream.discount[k, n].item() == pytest.approx(discount[k, n], abs=1e-6)
            assert dream.value[k, n].item() == pytest.approx(value[k, n], abs=1e-6)
            weight *= discount[k, n]


def test_terminal_start_is_worth_its_own_reward_and_nothing_later_counts():
    learner, dream = dreamed()
    reward = learner.model.reward(dream.feat[0])
    torch.testing.assert_close(dream.target[0, ::3], reward[::3])
    assert dream.weight[:, 0].tolist() == [1, 0, 0, 0] and dream.weight[1:, 1].all()


def test_gamma_enters_once():
    """A discount head that has learned its label already contains gamma."""
    learner = setting({"gamma": 0.9})
    nn.init.zeros_(learner.model.discount.out.weight)
    nn.init.constant_(learner.model.discount.out.bias, math.log(9.0))  # sigmoid = 0.9
    dream = learner.imagine(starts(learner)[0], torch.zeros(N, dtype=torch.bool))
    torch.testing.assert_close(dream.weight, (0.9 ** torch.arange(4.0)).unsqueeze(-1).expand(H, N))


@pytest.mark.parametrize(("grad", "action", "differentiable"), [
    ("auto", DISCRETE, False), ("auto", CONTINUOUS, True), ("reinforce", CONTINUOUS, False),
    ("dynamics", DISCRETE, True), ("mix", DISCRETE, True)])
def test_estimator_and_what_it_needs(grad, action, differentiable):
    learner, dream = dreamed({"actor.grad": grad}, action)
    assert learner.actor_grad == (grad if grad != "auto" else "dynamics" if differentiable else "reinforce")
    assert dream.target.requires_grad == differentiable
    assert not dream.weight.requires_grad and not dream.value.requires_grad


# Actor -----------------------------------------------------------------------------------------------------------


def log_prob_and_entropy(learner, dream):
    """Of the policy at feat_0 .. feat_{H-2}, from torch.distributions or scipy."""
    law = learner.actor(dream.feat[:H - 1])
    if learner.actor.noise_shape:
        loc, scale, action = array(law.loc), array(law.scale), array(dream.action[:H - 1])
        oracle = stats.truncnorm((-1 - loc) / scale, (1 - loc) / scale, loc, scale)
        return oracle.logpdf(action).sum(-1), oracle.entropy().sum(-1)
    oracle = OneHotCategorical(logits=law.logits)
    return array(oracle.log_prob(dream.action[:H - 1].detach())), array(oracle.entropy())


@pytest.mark.parametrize("action", SPACES)
@pytest.mark.parametrize("grad", GRADS)
@pytest.mark.parametrize("advantage", ["offset", "centered"])
@pytest.mark.parametrize("baseline", ["slow", "fast"])
def test_actor_loss_equals_its_equation(action, grad, advantage, baseline):
    learner, dream = dreamed({"actor.grad": grad, "actor.advantage": advantage, "actor.baseline": baseline,
                              "actor.mix": 0.3, "actor.entropy": 0.5}, action)
    target, weight = array(dream.target), array(dream.weight)
    critic = learner.policy.slow_critic if baseline == "slow" else learner.critic
    value = array(critic(dream.feat))
    log_prob, entropy = log_prob_and_entropy(learner, dream)
    total = 0.0
    for k in range(H - 1):
        gain = {"dynamics": target[k + 1],
                "reinforce": log_prob[k] * ((target[k + 1] if advantage == "offset" else target[k]) - value[k])}
        gain["mix"] = 0.3 * gain["dynamics"] + 0.7 * gain["reinforce"]
        total -= (weight[k] * (gain[grad] + 0.5 * entropy[k])).sum()
    loss, metrics = learner.actor_loss(dream)
    assert loss.item() == pytest.approx(total / ((H - 1) * N), rel=1e-4, abs=1e-5)
    assert metrics["actor/entropy"].item() == pytest.approx(entropy.mean(), abs=1e-5)


def test_paper_advantage_differs_from_the_official_one_by_the_index_and_the_network():
    learner, dream = dreamed()
    values = {}
    for advantage in ("offset", "centered"):
        for baseline in ("slow", "fast"):
            other = setting({"actor.advantage": advantage, "actor.baseline": baseline})
            values[advantage, baseline] = other.advantage(dream)
    slow, fast = learner.policy.slow_critic(dream.feat), learner.critic(dream.feat)
    torch.testing.assert_close(values["offset", "slow"], dream.target[1:] - slow[:3])
    torch.testing.assert_close(values["centered", "fast"], dream.target[:3] - fast[:3])
    torch.testing.assert_close(values["offset", "fast"] - values["offset", "slow"], slow[:3] - fast[:3])


def single_choice(reward=1.0, entropy=0.0):
    """Two actions without preference, one trained step: action 0 taken, advantage ``reward``, weight 1."""
    learner = setting({"actor.entropy": entropy, "horizon": 2})
    nn.init.zeros_(learner.actor.out.weight)
    nn.init.zeros_(learner.actor.out.bias)
    action = torch.zeros(2, 1, 3)
    action[..., 0] = 1
    one = torch.ones(2, 1)
    return learner, Dream(torch.randn(3, 1, 24), action, one, one, 0 * one, reward * one)


def test_reinforce_golden_number():
    learner, dream = single_choice()
    loss, _ = learner.actor_loss(dream)
    (grad,) = torch.autograd.grad(loss, learner.actor.out.bias)
    assert loss.item() == pytest.approx(math.log(3), abs=1e-6)
    assert grad.tolist() == pytest.approx([-2 / 3, 1 / 3, 1 / 3], abs=1e-6)


def test_reinforce_golden_number_of_two_actions():
    learner = tiny_learner({"actor.entropy": 0.0, "horizon": 2}, VECTOR, type(DISCRETE)("discrete", 2))
    nn.init.zeros_(learner.actor.out.weight)
    one = torch.ones(2, 1)
    loss, _ = learner.actor_loss(Dream(torch.randn(3, 1, 24), torch.tensor([[[1.0, 0.0]]] * 2), one, one, 0 * one, one))
    (grad,) = torch.autograd.grad(loss, learner.actor.out.bias)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert grad.tolist() == pytest.approx([-0.5, 0.5], abs=1e-6)


def test_without_advantage_and_entropy_nothing_is_learned():
    learner, dream = single_choice(reward=0.0)
    assert silent(gradients(learner.actor_loss(dream)[0], learner.actor))


@pytest.mark.parametrize("action", SPACES)
def test_entropy_bonus_raises_entropy(action):
    changes = {"actor.grad": "reinforce", "actor.entropy": 0.1, "actor_opt.lr": 1e-3}
    learner, dream = dreamed(changes, action)
    dream.target = torch.zeros_like(dream.target)
    dream.value = torch.zeros_like(dream.value)
    loss, before = learner.actor_loss(dream)
    learner.actor_opt.minimize(loss)
    assert learner.actor_loss(dream)[1]["actor/entropy"] > before["actor/entropy"]


def test_reinforce_makes_the_better_action_likelier():
    for reward, sign in [(1.0, 1), (-1.0, -1)]:
        learner, dream = single_choice(reward)
        learner.actor_opt.minimize(learner.actor_loss(dream)[0])
        assert sign * (learner.actor(dream.feat[0]).logits.softmax(-1)[0, 0].item() - 1 / 3) > 0


@pytest.mark.parametrize("action", SPACES)
@pytest.mark.parametrize("grad", GRADS)
def test_actor_loss_trains_the_actor_and_steps_nothing_else(action, grad):
    learner, dream = dreamed({"actor.grad": grad}, action)
    policy = learner.policy
    others = {name: snapshot(part) for name, part in policy.named_children() if name != "actor"}
    loss, _ = learner.actor_loss(dream)
    assert not silent(gradients(loss, policy.actor)) and silent(gradients(loss, policy.critic))
    if grad == "reinforce":
        assert all(g is None for g in gradients(loss, policy.world_model))
    learner.actor_opt.minimize(loss)
    for name, before in others.items():
        assert unchanged(getattr(policy, name), before), name
    assert all(parameter.grad is None for parameter in policy.parameters())


@pytest.mark.parametrize("action", SPACES)
def test_dynamics_reaches_the_actor_only_by_what_its_actions_lead_to(action, monkeypatch):
    changes = {"actor.grad": "dynamics", "actor.entropy": 0.0}
    learner = setting(changes, action)
    assert not silent(gradients(learner.actor_loss(learner.imagine(*starts(learner)))[0], learner.actor))
    rssm, step = learner.model.rssm, learner.model.rssm.img_step
    monkeypatch.setattr(rssm, "img_step", lambda state, action, noise: step(state, 0 * action.detach(), noise))
    loss, _ = learner.actor_loss(learner.imagine(*starts(learner)))
    assert not loss.requires_grad or silent(gradients(loss, learner.actor))


def test_dynamics_gradient_equals_a_finite_difference():
    """Through states, rewards, discounts and the slow critic alike; weights and the actor's inputs held fixed."""
    changes = {"actor.grad": "dynamics", "actor.entropy": 0.0, "world_model.rssm.latent": "gaussian"}
    with float64():
        learner = setting(changes, CONTINUOUS)
        for part in (learner.model.reward, learner.model.discount, learner.policy.slow_critic):
            nn.init.normal_(part.out.weight, std=3.0)  # so that each of them matters
        start, noise_state, actor = starts(learner), learner.generator.get_state(), learner.actor
        start = (State(start[0].deter.double(), start[0].stoch.double()), start[1])
        dream = learner.imagine(*start)
        grads = gradients(learner.actor_loss(dream)[0], actor)
        directions = [torch.randn(p.shape, generator=generator(5)) for p in actor.parameters()]

        def value():
            remembered = iter(dream.feat.detach())
            learner.actor = Remembering(lambda _: actor(next(remembered)), actor)
            learner.generator.set_state(noise_state)
            targets = learner.imagine(*start).target
            return -(dream.weight[:H - 1] * targets[1:]).mean().item()

        def move(step):
            with torch.no_grad():
                for parameter, direction in zip(actor.parameters(), directions, strict=True):
                    parameter.add_(direction, alpha=step)

        move(1e-5)
        above = value()
        move(-2e-5)
        below = value()
    slope = sum((g * d).sum().item() for g, d in zip(grads, directions, strict=True))
    assert abs(slope) > 1e-3
    assert slope == pytest.approx((above - below) / 2e-5, rel=1e-5)


class Remembering:
    def __init__(self, law, actor):
        self.law, self.noise_shape, self.mlp = law, actor.noise_shape, actor.mlp

    def __call__(self, feat):
        return self.law(feat)


def test_reinforce_does_not_differentiate_the_sampled_action():
    """In a mix the actions carry a graph; the log-probability must not follow it."""
    learner, dream = dreamed({"actor.grad": "mix", "actor.mix": 0.0, "actor.entropy": 0.0}, CONTINUOUS)
    assert dream.action.requires_grad
    ours = gradients(learner.actor_loss(dream)[0], learner.actor)
    cut = copy.copy(dream)
    cut.action, cut.feat, cut.target = dream.action.detach(), dream.feat.detach(), dream.target.detach()
    expected = gradients(learner.actor_loss(cut)[0], learner.actor)
    for grad, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(grad, other)
    law = learner.actor(dream.feat[:H - 1].detach())
    naive = -(dream.weight[:H - 1] * law.log_prob(dream.action[:H - 1]) * learner.advantage(dream)).mean()
    assert not all(torch.allclose(g, o) for g, o in zip(gradients(naive, learner.actor), expected, strict=True))


@pytest.mark.parametrize("action", SPACES)
def test_mix_weighs_dynamics(action):
    def grads_of(grad, mix):
        learner, dream = dreamed({"actor.grad": grad, "actor.mix": mix, "actor.entropy": 0.0}, action)
        return gradients(learner.actor_loss(dream)[0], learner.actor)

    reinforce, dynamics = grads_of("reinforce", 0.5), grads_of("dynamics", 0.5)
    for mix in (0.0, 0.3, 1.0):
        for ours, r, d in zip(grads_of("mix", mix), reinforce, dynamics, strict=True):
            torch.testing.assert_close(ours, (1 - mix) * r + mix * d, atol=1e-6, rtol=1e-4)
    assert not all(torch.allclose(r, d, atol=1e-4) for r, d in zip(reinforce, dynamics, strict=True))


# Critic ----------------------------------------------------------------------------------------------------------


def test_critic_loss_equals_its_equation():
    learner, dream = dreamed()
    value, target, weight = array(learner.critic(dream.feat)), array(dream.target), array(dream.weight)
    total = sum((weight[k] * (0.5 * (value[k] - target[k])**2 + 0.918938533)).sum() for k in range(H))
    loss, metrics = learner.critic_loss(dream)
    assert loss.item() == pytest.approx(total / (H * N), rel=1e-5)
    assert metrics["critic/value"].item() == pytest.approx(value[:H].mean(), abs=1e-6)
    assert metrics["critic/target"].item() == pytest.approx(target.mean(), abs=1e-6)
    assert metrics["critic/slow_value"].item() == pytest.approx(array(dream.value).mean(), abs=1e-6)


@pytest.mark.parametrize("grad", ["reinforce", "dynamics"])
def test_critic_loss_trains_the_critic_alone(grad):
    learner, dream = dreamed({"actor.grad": grad})
    policy = learner.policy
    loss, _ = learner.critic_loss(dream)
    assert not silent(gradients(loss, policy.critic))
    for part in (policy.world_model, policy.actor):
        assert all(g is None for g in gradients(loss, part))


def test_critic_loss_sends_no_gradient_to_what_it_reads():
    learner, dream = dreamed()
    parts = [dream.feat, dream.weight, dream.target, dream.value, dream.discount]
    parts = [tensor.detach().requires_grad_() for tensor in parts]
    feat, weight, target, value, discount = parts
    loss, _ = learner.critic_loss(Dream(feat, dream.action, discount, weight.detach(), value, target))
    assert all(g is None for g in torch.autograd.grad(loss, parts, allow_unused=True))
