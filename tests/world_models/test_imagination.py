"""Imagined rollouts: which action leads where, and the only way by which a gradient reaches the actor."""

from __future__ import annotations

import pytest
import torch

from tests.builders import CONTINUOUS, DISCRETE, float64, generator
from xrl.nn.heads import make_actor
from xrl.world_models.imagination import imagine
from xrl.world_models.latents import CategoricalLatent, GaussianLatent
from xrl.world_models.rssm import RSSM, State

H, N = 4, 5


def setting(latent=None, action=CONTINUOUS):
    """RSSM, actor, start states and both noises, in the default precision."""
    torch.manual_seed(0)
    latent = latent or GaussianLatent(5)
    rssm = RSSM(7, action.size, latent, deter=8, hidden=9)
    actor = make_actor(rssm.feat_size, action, 2, 16)
    g = generator(3)
    start = State(torch.randn(N, 8, generator=g), torch.randn(N, latent.size, generator=g))
    action_noise = torch.rand(H, N, *actor.noise_shape, generator=g)
    return rssm, actor, start, action_noise, latent.noise(H, N, generator=g)


@pytest.mark.parametrize("latent", [CategoricalLatent(4, 4), GaussianLatent(5)])
@pytest.mark.parametrize("action", [DISCRETE, CONTINUOUS])
def test_rollout_equals_its_steps(latent, action):
    rssm, actor, start, action_noise, latent_noise = setting(latent, action)
    feats, actions = imagine(rssm, actor, start, action_noise, latent_noise)
    assert feats.shape == (H + 1, N, rssm.feat_size) and actions.shape == (H, N, action.size)
    assert torch.equal(feats[0], torch.cat([start.stoch, start.deter], -1))
    state = start
    for k in range(H):
        assert torch.equal(actions[k], actor(feats[k]).sample(action_noise[k]))
        state = rssm.img_step(state, actions[k], latent_noise[k])
        assert torch.equal(feats[k + 1], state.feat)


@pytest.mark.parametrize("action", [DISCRETE, CONTINUOUS])
def test_first_action_depends_on_no_parameter_but_the_actors(action):
    rssm, actor, start, *noise = setting(action=action)
    start = State(start.deter.requires_grad_(), start.stoch.requires_grad_())
    _, actions = imagine(rssm, actor, start, *noise)
    total = (actions * torch.arange(1.0, action.size + 1)).sum()
    model, state = list(rssm.parameters()), list(start)
    assert all(g is None for g in torch.autograd.grad(total, model + state, allow_unused=True, retain_graph=True))
    assert any(g.any() for g in torch.autograd.grad(total, list(actor.parameters())))


@pytest.mark.parametrize("action", [DISCRETE, CONTINUOUS])
def test_gradient_reaches_the_actor_through_the_model_only(action, monkeypatch):
    rssm, actor, start, *noise = setting(action=action)
    feats, _ = imagine(rssm, actor, start, *noise)
    assert any(g.any() for g in torch.autograd.grad(feats.square().sum(), list(actor.parameters())))

    step = rssm.img_step
    monkeypatch.setattr(rssm, "img_step", lambda state, action, noise: step(state, torch.zeros_like(action), noise))
    feats, _ = imagine(rssm, actor, start, *noise)
    grads = torch.autograd.grad(feats.square().sum(), list(actor.parameters()), allow_unused=True)
    assert all(g is None or not g.any() for g in grads), "the actor's input is detached"


def test_gradient_equals_a_finite_difference():
    """With the noise held fixed. The actor's input is detached, so the difference holds it fixed as well."""
    with float64():
        rssm, actor, start, action_noise, latent_noise = setting()
        weight = torch.randn(H + 1, N, rssm.feat_size, generator=generator(4))
        inputs = [feat.detach() for feat in imagine(rssm, actor, start, action_noise, latent_noise)[0]]

        def value():
            remembered = iter(inputs)
            feats, _ = imagine(rssm, lambda _: actor(next(remembered)), start, action_noise, latent_noise)
            return (feats * weight).sum()

        parameters = list(actor.parameters())
        feats, _ = imagine(rssm, actor, start, action_noise, latent_noise)
        grads = torch.autograd.grad((feats * weight).sum(), parameters)
        directions = [torch.randn(p.shape, generator=generator(5)) for p in parameters]
        step, values = 1e-5, []
        with torch.no_grad():
            for sign in (1, -2):
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter.add_(direction, alpha=sign * step)
                values.append(value().item())
    slope = sum((g * d).sum().item() for g, d in zip(grads, directions, strict=True))
    assert abs(slope) > 0.1
    assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6)
