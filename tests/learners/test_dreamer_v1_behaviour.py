"""DreamerV1's imagination, returns and losses of actor and critic: values, and who receives a gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.builders import CONTINUOUS, DISCRETE, VECTOR, float64, generator, snapshot, unchanged
from tests.builders_v1 import MULTI, v1_learner
from xrl.learners.dreamer_v1 import Dream
from xrl.nn.distributions import uniform
from xrl.world_models.rssm import State

T, B, H, N = 5, 3, 4, 15
DISCOUNT = {"world_model.predict_discount": True}
HALF_LOG_2PI = 0.9189385332046727


def setting(changes=None, action=CONTINUOUS):
    learner = v1_learner(changes, VECTOR, action)
    for parameter in learner.policy.parameters():
        nn.init.normal_(parameter, std=0.3)
    return learner


def starts(count=N):
    """Start states, every third one a terminal."""
    g = generator(3)
    return (State(torch.randn(count, 8, generator=g), torch.randn(count, 4, generator=g)), torch.arange(count) % 3 == 0)


def gradients(loss, module):
    """None where nothing arrives."""
    return torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, retain_graph=True)


def silent(grads):
    return all(grad is None or not grad.any() for grad in grads)


def array(tensor):
    return tensor.detach().double().numpy()


# Start states ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "count"), [
    ({}, 15), (DISCOUNT, 12), ({"imagination.starts": 7}, 7), ({"imagination.starts": 99}, 15),
    ({"imagination.starts": 7, **DISCOUNT}, 7)], ids=str)
def test_states_and_flags_are_flattened_and_drawn_alike(changes, count):
    """With a discount head the last row of each sequence begins no dream."""
    number = torch.arange(T * B, dtype=torch.float32).reshape(T, B, 1)
    post = State(number.expand(T, B, 8).clone().requires_grad_(), number.expand(T, B, 4).clone())
    flags = torch.rand(T, B, generator=generator(2)) < 0.4
    start, is_terminal = setting(changes).start_states(post, flags)
    drawn = start.deter[:, 0].long()
    assert torch.equal(start.stoch[:, 0].long(), drawn) and not start.deter.requires_grad
    assert torch.equal(is_terminal, flags.flatten()[drawn])
    assert len(set(drawn.tolist())) == len(drawn) == count
    if "world_model.predict_discount" in changes:
        assert drawn.max() < (T - 1) * B


def test_drawn_start_states_change_and_reach_every_row():
    post, learner = State(torch.arange(15.0).reshape(T, B, 1), torch.zeros(T, B, 4)), setting({"imagination.starts": 5})
    draws = [set(learner.start_states(post, torch.zeros(T, B))[0].deter[:, 0].long().tolist()) for _ in range(60)]
    assert len({frozenset(draw) for draw in draws}) > 50 and set.union(*draws) == set(range(T * B))


# Dreams ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [CONTINUOUS, DISCRETE, MULTI], ids=lambda spec: spec.kind)
def test_the_start_is_left_out(action):
    """15 steps from the start are 15 states after it, and 14 targets (specification of the official code)."""
    learner = setting({"horizon": 15}, action)
    start, flags = starts()
    before = learner.generator.get_state()
    dream = learner.imagine(start, flags)
    assert dream.feat.shape == (15, N, 12) and dream.target.shape == dream.weight.shape == (14, N)
    again = torch.Generator()
    again.set_state(before)
    action_noise = uniform(15, N, *learner.actor.noise_shape, generator=again)
    latent_noise, state = torch.randn(15, N, 4, generator=again), start
    for k in range(15):  # a_{k+1} is chosen at feat_k, from the start on
        chosen = learner.actor(state.feat).sample(action_noise[k])
        state = learner.model.rssm.img_step(state, chosen, latent_noise[k])
        torch.testing.assert_close(dream.feat[k], state.feat)


class Table(nn.Module):
    """A head that reads which step it is asked about; ``values``: of steps 1, 2, .."""

    def __init__(self, values):
        super().__init__()
        self.values = torch.tensor(values)

    def forward(self, feat):
        return self.values[feat[..., 0].long() - 1]


def test_golden_returns(monkeypatch):
    """r = 1 2 3 4, v = 10 20 30 40, p = .9 .8 .7 .6: the last of each is the bootstrap's, and only v is read there."""
    learner = setting({**DISCOUNT, "lambda_": 0.95})
    counted = torch.arange(5.0).reshape(5, 1, 1).expand(5, 2, 12)  # the start is step 0
    monkeypatch.setattr("xrl.learners.dreamer_v1.imagine", lambda *args: (counted, None))
    learner.model.reward, learner.critic = Table([1.0, 2.0, 3.0, 4.0]), Table([10.0, 20.0, 30.0, 40.0])
    learner.model.discount = Table([0.9, 0.8, 0.7, 0.6])
    dream = learner.imagine(State(torch.zeros(2, 8), torch.zeros(2, 4)), torch.tensor([False, True]))
    assert dream.target[:, 0].tolist() == pytest.approx([24.7798, 26.76, 31.0], abs=1e-4)
    assert dream.weight[:, 0].tolist() == pytest.approx([1, 0.9, 0.72])
    assert dream.weight[:, 1].tolist() == [0, 0, 0], "nothing counts after a terminal start"
    alive = Dream(dream.feat[:, :1], dream.target[:, :1], dream.weight[:, :1])
    assert learner.actor_loss(alive)[0].item() == pytest.approx(-23.7279333, abs=1e-5)


@pytest.mark.parametrize("changes", [{}, DISCOUNT], ids=["gamma", "discount"])
@pytest.mark.parametrize("lambda_", [0.95, 0.0, 1.0])
def test_dream_and_losses_equal_a_loop_over_the_equations(changes, lambda_):
    with float64():
        learner = setting({"gamma": 0.9, "lambda_": lambda_, **changes})
        start, flags = starts()
        dream = learner.imagine(State(*(part.double() for part in start)), flags)
        actor_loss, critic_loss = learner.actor_loss(dream)[0].item(), learner.critic_loss(dream)[0].item()
        reward, value = array(learner.model.reward(dream.feat)), array(learner.critic(dream.feat))
        head = learner.model.discount
        discount = np.full((H, N), 0.9) if head is None else array(head(dream.feat))
    gain = loss = 0.0
    for n in range(N):
        weight, target = 1.0 if head is None or not flags[n] else 0.0, {H: value[H - 1, n]}
        for k in reversed(range(1, H)):  # states are s_1 .. s_H, s_k at index k - 1
            ahead = (1 - lambda_) * value[k, n] + lambda_ * target[k + 1]
            target[k] = reward[k - 1, n] + discount[k - 1, n] * ahead
        for k in range(1, H):
            assert dream.target[k - 1, n].item() == pytest.approx(target[k], abs=1e-9)
            assert dream.weight[k - 1, n].item() == pytest.approx(weight, abs=1e-9)
            gain += weight * target[k]
            loss += weight * (0.5 * (value[k - 1, n] - target[k])**2 + HALF_LOG_2PI)
            weight *= discount[k - 1, n]
    assert actor_loss == pytest.approx(-gain / (N * (H - 1)), rel=1e-9)
    assert critic_loss == pytest.approx(loss / (N * (H - 1)), rel=1e-9)


def test_without_a_discount_head_nothing_ends_whatever_the_start():
    dream = setting({"gamma": 0.5}).imagine(*starts())
    torch.testing.assert_close(dream.weight, torch.tensor([1, 0.5, 0.25]).unsqueeze(-1).expand(3, N))


# Gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [CONTINUOUS, DISCRETE, MULTI], ids=lambda spec: spec.kind)
@pytest.mark.parametrize("part", ["reward", "critic", "discount"])
def test_the_actors_gradient_flows_through_reward_value_and_discount(part, action):
    """Each of the three alone, the others constant, still teaches the actor."""
    learner = setting(DISCOUNT, action)
    for name, head in (("reward", learner.model.reward), ("critic", learner.critic),
                       ("discount", learner.model.discount)):
        if name != part:
            nn.init.zeros_(head.out.weight)
            nn.init.constant_(head.out.bias, 1.0)
    loss = learner.actor_loss(learner.imagine(*starts()))[0]
    assert not silent(gradients(loss, learner.actor))


def test_there_is_no_gradient_through_the_weights():
    """Only V_k of the actor's loss is differentiated: with rewards and values of 0 no gradient is left."""
    learner = setting(DISCOUNT)
    for head in (learner.model.reward, learner.critic):
        nn.init.zeros_(head.out.weight)
        nn.init.zeros_(head.out.bias)
    dream = learner.imagine(*starts())
    assert not dream.weight.requires_grad
    assert silent(gradients(learner.actor_loss(dream)[0], learner.actor))


def test_the_actors_gradient_is_that_of_finite_differences(monkeypatch):
    """Of actions whose inputs stay what they were: the policy reads detached features; the weights are constants."""
    with float64():
        learner = setting(DISCOUNT)
        start, flags = starts(4)
        start, random = State(*(part.double() for part in start)), learner.generator.get_state()
        forward, bias, read = learner.actor.forward, learner.actor.out.bias, []
        monkeypatch.setattr(learner.actor, "forward", lambda feat: read.append(feat) or forward(feat))
        dream = learner.imagine(start, flags)
        (found,) = torch.autograd.grad(learner.actor_loss(dream)[0], [bias])

        @torch.no_grad()
        def loss(i, moved):
            bias[i] += moved
            inputs = iter(read[:H])
            monkeypatch.setattr(learner.actor, "forward", lambda feat: forward(next(inputs)))
            learner.generator.set_state(random)
            target = learner.imagine(start, flags).target
            bias[i] -= moved
            return -(dream.weight * target).mean().item()

        for i, gradient in enumerate(found.tolist()):
            assert gradient == pytest.approx((loss(i, 1e-6) - loss(i, -1e-6)) / 2e-6, rel=1e-5, abs=1e-9)


def test_the_critics_loss_teaches_the_critic_alone():
    learner = setting(DISCOUNT)
    loss = learner.critic_loss(learner.imagine(*starts()))[0]
    assert not silent(gradients(loss, learner.critic))
    for other in (learner.model, learner.actor):
        assert silent(gradients(loss, other))


def test_the_policy_reads_detached_features(monkeypatch):
    learner = setting()
    seen = []
    forward = learner.actor.forward
    monkeypatch.setattr(learner.actor, "forward", lambda feat: seen.append(feat.requires_grad) or forward(feat))
    learner.imagine(*starts())
    assert seen == [False] * H


def test_the_actors_step_leaves_model_and_critic_alone():
    learner = setting(DISCOUNT)
    parts = [learner.model, learner.critic]
    before = [snapshot(part) for part in parts]
    learner.actor_opt.minimize(learner.actor_loss(learner.imagine(*starts()))[0])
    assert all(unchanged(part, then) for part, then in zip(parts, before, strict=True))
    assert all(parameter.grad is None for parameter in learner.policy.parameters())


def test_the_value_learns_from_the_critic_itself():
    """No slow copy: a policy has three parts, and the targets move with the critic's weights."""
    learner = setting()
    assert {name for name, _ in learner.policy.named_children()} == {"world_model", "actor", "critic"}
    random = learner.generator.get_state()
    first = learner.imagine(*starts()).target
    with torch.no_grad():
        learner.critic.out.bias.add_(1.0)
    learner.generator.set_state(random)
    assert (learner.imagine(*starts()).target > first).all()
