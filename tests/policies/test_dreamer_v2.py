"""Acting: the latent state is carried per environment, sampled always; the action is sampled or its mode."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.builders import (
    BOTH,
    CONTINUOUS,
    DISCRETE,
    IMAGE,
    VECTOR,
    generator,
    parameter_count,
    random_row,
    tiny_config,
    tiny_policy,
)
from xrl.common.row import ActionSpec, ObsSpec
from xrl.configs.schemas.dreamer_v2 import DreamerV2Config
from xrl.policies.dreamer_v2 import DreamerV2Policy
from xrl.world_models.rssm import State


def rows(count, envs=2, obs=VECTOR, action=DISCRETE, seed=0):
    """``count`` rows of ``envs`` environments, as tensors: obs and the actions that led to them."""
    row = random_row((count, envs), obs, action, seed)
    tensors = {name: torch.from_numpy(value) for name, value in row.obs.items()}
    return [{name: value[t] for name, value in tensors.items()} for t in range(count)], torch.from_numpy(row.action)


def act(policy, state, obs, action, first, seed=0, explore=True):
    first = torch.tensor(first)
    return policy.act(state, obs, action, first, generator(seed), explore)


@pytest.mark.parametrize(("actions", "trainable", "everything"), [
    (18, 22_245_398, 23_376_999), (6, 22_233_386, 23_364_987)])
def test_parameters_for_atari(actions, trainable, everything):
    config = DreamerV2Config.model_validate({"method": "DreamerV2", "env_name": "atari", "env_id": "ALE/Pong-v5",
                                             "world_model": {"rssm": {"deter": 600, "hidden": 600}}})
    with torch.device("meta"):
        policy = DreamerV2Policy(IMAGE, ActionSpec("discrete", actions), config)
    assert sum(p.numel() for p in policy.parameters() if p.requires_grad) == trainable
    assert parameter_count(policy) == everything


def test_parameters_with_layer_norm_everywhere():
    norm = {"norm": "layer"}
    config = DreamerV2Config.model_validate({"method": "DreamerV2", "env_name": "crafter", "env_id": "crafter",
                                             "world_model": norm, "actor": norm, "critic": norm})
    with torch.device("meta"):
        policy = DreamerV2Policy({"image": ObsSpec("image", (64, 64, 3))}, ActionSpec("discrete", 17), config)
    assert sum(p.numel() for p in policy.parameters() if p.requires_grad) == 31_074_807


def test_parameters_of_the_tiny_policy():
    policy = tiny_policy(obs=IMAGE)
    assert parameter_count(policy.actor) == 723 and parameter_count(policy.critic) == 689
    assert sum(p.numel() for p in policy.parameters() if p.requires_grad) == 22_675


def test_slow_critic_is_a_network_of_its_own_without_gradient():
    policy = tiny_policy()
    feat = torch.randn(4, policy.world_model.rssm.feat_size)
    assert not torch.equal(policy.critic(feat), policy.slow_critic(feat)), "random at first, as in the official code"
    assert not any(p.requires_grad for p in policy.slow_critic.parameters())


def test_initial_state_is_zero():
    state = tiny_policy().initial(2)
    assert state.deter.shape == (2, 8) and not state.feat.any()


@pytest.mark.parametrize("action", [DISCRETE, CONTINUOUS])
@pytest.mark.parametrize("obs", [VECTOR, BOTH])
def test_actions_fit_the_space(obs, action):
    policy = tiny_policy(obs=obs, action=action)
    observations, actions = rows(1, 5, obs, action)
    for explore in (True, False):
        chosen, state = act(policy, policy.initial(5), observations[0], actions[0], [True] * 5, explore=explore)
        assert chosen.shape == (5, action.size) and chosen.abs().max() <= 1
        assert not chosen.requires_grad and not state.feat.requires_grad
        if action is DISCRETE:
            assert chosen.sum(-1).eq(1).all() and ((chosen == 0) | (chosen == 1)).all()


def test_state_is_that_of_the_world_models_filter():
    """Acting row by row and observing the whole sequence are the same computation."""
    policy = tiny_policy({"world_model.rssm.latent": "gaussian", "world_model.obs_scale": 3.0})
    model, (observations, actions) = policy.world_model, rows(4)
    first = torch.tensor([[True, True], [False, False], [False, True], [False, False]])
    noise, state = [], policy.initial(2)
    for t in range(4):
        g = generator(t)
        noise.append(model.latent.noise(2, generator=g))
        _, state = act(policy, state, observations[t], actions[t], first[t].tolist(), seed=t)
    stacked = torch.stack([obs["state"] for obs in observations]) / 3.0
    states, _, _ = model.rssm.observe(model.encoder({"state": stacked}), actions, first, torch.stack(noise))
    torch.testing.assert_close(state.feat, states.feat[-1])


def test_a_reset_concerns_its_own_environment_only():
    policy = tiny_policy()
    observations, actions = rows(4)
    state = policy.initial(2)
    for t in range(3):
        _, state = act(policy, state, observations[t], actions[t], [t == 0] * 2, seed=t)
    mixed_action, mixed = act(policy, state, observations[3], actions[3], [False, True])
    going_action, going = act(policy, state, observations[3], actions[3], [False, False])
    fresh_action, fresh = act(policy, policy.initial(2), observations[3], torch.zeros(2, 3), [False, False])
    assert torch.equal(mixed.feat[0], going.feat[0]) and torch.equal(mixed_action[0], going_action[0])
    assert torch.equal(mixed.feat[1], fresh.feat[1]) and torch.equal(mixed_action[1], fresh_action[1])
    assert not torch.equal(mixed.deter[1], going.deter[1])


def test_same_generator_same_action():
    policy = tiny_policy()
    observations, actions = rows(1, 50)
    chosen = [act(policy, policy.initial(50), observations[0], actions[0], [True] * 50, seed)[0] for seed in (0, 0, 1)]
    assert torch.equal(chosen[0], chosen[1]) and not torch.equal(chosen[0], chosen[2])


def test_global_generator_is_not_touched():
    policy = tiny_policy()
    observations, actions = rows(1)
    before = torch.get_rng_state()
    act(policy, policy.initial(2), observations[0], actions[0], [True] * 2)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("action", [DISCRETE, CONTINUOUS])
def test_evaluation_takes_the_mode_but_samples_the_latent(action):
    policy = tiny_policy(action=action)
    observations, actions = rows(1, 50, VECTOR, action)
    chosen, state = act(policy, policy.initial(50), observations[0], actions[0], [True] * 50, explore=False)
    law = policy.actor(state.feat)
    if action is DISCRETE:
        expected = torch.nn.functional.one_hot(law.logits.argmax(-1), 3).float()
    else:
        expected = law.loc
    assert torch.equal(chosen, expected)
    explored, explored_state = act(policy, policy.initial(50), observations[0], actions[0], [True] * 50)
    assert torch.equal(explored_state.feat, state.feat), "one law of the latent in training and evaluation"
    assert not torch.equal(explored, chosen)
    _, other = act(policy, policy.initial(50), observations[0], actions[0], [True] * 50, seed=1, explore=False)
    assert not torch.equal(other.stoch, state.stoch)


def test_exploration_follows_the_actors_law():
    policy = tiny_policy()
    count = 4000
    observations, actions = rows(1, 1)
    obs = {name: value.expand(count, -1) for name, value in observations[0].items()}
    chosen, state = act(policy, policy.initial(count), obs, actions[0].expand(count, -1), [True] * count)
    expected = policy.actor(state.feat).logits.softmax(-1).mean(0)
    torch.testing.assert_close(chosen.mean(0), expected, atol=0.03, rtol=0)


def test_acting_does_not_change_what_it_is_given():
    policy = tiny_policy()
    observations, actions = rows(1)
    state = State(torch.ones(2, 8), torch.ones(2, 16))
    act(policy, state, observations[0], actions[0], [True, False])
    assert state.feat.eq(1).all()


@pytest.mark.parametrize("part", ["actor", "critic"])
def test_norm_option(part):
    normed = getattr(tiny_policy({f"{part}.norm": "layer"}), part)
    assert parameter_count(normed) == parameter_count(getattr(tiny_policy(), part)) + 2 * 2 * 16
    assert getattr(tiny_config(), part).norm == "none"


def test_slow_critic_has_the_critics_shape_with_norm():
    policy = tiny_policy({"critic.norm": "layer"})
    assert parameter_count(policy.slow_critic) == parameter_count(policy.critic)


# Looking -----------------------------------------------------------------------------------------------------------


def states_of(policy, count=4):
    rssm = policy.world_model.rssm
    stoch = torch.randn(count, rssm.latent.size, generator=generator(1))
    return State(torch.randn(count, rssm.deter, generator=generator(2)), stoch)


@pytest.mark.parametrize(("obs", "action"), [(BOTH, DISCRETE), (VECTOR, CONTINUOUS), (IMAGE, DISCRETE)])
def test_a_look_is_what_each_network_says(obs, action):
    policy = tiny_policy(obs=obs, action=action)
    state = states_of(policy)
    look, feat, model = policy.look(state), torch.cat([state.stoch, state.deter], -1), policy.world_model
    with torch.no_grad():
        law, gamma = policy.actor(feat), tiny_config().gamma
        for name, mean in model.decoder(feat).items():
            spec = obs[name]
            assert look.obs[name].shape == (4, *spec.shape) and look.obs[name].dtype == spec.dtype
            if spec.kind == "vector":
                np.testing.assert_allclose(look.obs[name], mean, rtol=1e-6)
            else:
                np.testing.assert_array_equal(look.obs[name], ((mean.clamp(-0.5, 0.5) + 0.5) * 255).round())
        np.testing.assert_allclose(look.reward, model.reward(feat), rtol=1e-6)
        np.testing.assert_allclose(look.value, policy.critic(feat), rtol=1e-6)
        np.testing.assert_allclose(look.cont, (model.discount(feat) / gamma).clamp(max=1), rtol=1e-6)
        np.testing.assert_allclose(look.entropy, law.entropy(), rtol=1e-6)
        if action is DISCRETE:
            np.testing.assert_allclose(look.action, torch.softmax(law.logits, -1), rtol=1e-6)
            np.testing.assert_allclose(look.action.sum(-1), 1, rtol=1e-6)
        else:
            np.testing.assert_allclose(look.action, law.mode(), rtol=1e-6)


class First(torch.nn.Module):
    """A head whose answer is the first number it is asked about."""

    def forward(self, feat):
        return feat[..., 0]


def test_the_probability_to_go_on_is_free_of_gamma_and_1_without_the_head():
    """The head learns gamma (1 - terminal): at its best it says gamma where an episode goes on."""
    policy = tiny_policy({"gamma": 0.9})
    policy.world_model.discount = First()
    assert policy.cont(torch.tensor([[0.0], [0.45], [0.9], [0.95]])).tolist() == pytest.approx([0, 0.5, 1, 1])
    without = tiny_policy({"world_model.predict_discount": False})
    assert without.cont(torch.rand(3, 2, without.world_model.rssm.feat_size)).tolist() == [[1, 1]] * 3


def test_a_dreamt_step_is_the_priors_with_noise_of_the_given_generator():
    policy = tiny_policy()
    state, action, model = states_of(policy), torch.eye(3)[[0, 1, 2, 0]], policy.world_model
    found = policy.dream(state, action, generator(5))
    with torch.no_grad():
        expected = model.rssm.img_step(state, action, torch.rand(4, model.latent.stoch, generator=generator(5)))
    assert torch.equal(found.deter, expected.deter) and torch.equal(found.stoch, expected.stoch)
    assert not found.deter.requires_grad
