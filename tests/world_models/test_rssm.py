"""The recurrent state-space model: what enters where, and at which index."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.builders import generator, parameter_count
from xrl.world_models.latents import CategoricalLatent, GaussianLatent
from xrl.world_models.rssm import RSSM, State

T, B, A, M = 6, 3, 2, 7
LATENTS = [CategoricalLatent(4, 4), GaussianLatent(5)]


def make_rssm(latent=LATENTS[0], norm="none"):
    torch.manual_seed(0)
    rssm = RSSM(M, A, latent, deter=8, hidden=9, norm=norm)
    for parameter in rssm.parameters():
        nn.init.normal_(parameter, std=0.5)
    return rssm


def random_state(rssm, n=B, seed=5):
    g = generator(seed)
    return State(torch.randn(n, 8, generator=g), torch.randn(n, rssm.latent.size, generator=g))


def sequence(rssm, first=(0,)):
    g = generator(1)
    is_first = torch.zeros(T, B, dtype=torch.bool)
    is_first[list(first)] = True
    return (torch.randn(T, B, M, generator=g), torch.randn(T, B, A, generator=g), is_first,
            rssm.latent.noise(T, B, generator=g))


def at(sequences, times):
    return tuple(tensor[times] for tensor in sequences)


def array(tensor):
    return tensor.detach().double().numpy()


def affine(layer, *inputs):
    return np.concatenate(inputs, -1) @ array(layer.weight).T + array(layer.bias)


def elu(x):
    return np.where(x > 0, x, np.expm1(x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def next_deter(rssm, deter, stoch, action):
    """The equations of the deterministic path, in double precision."""
    x = elu(affine(rssm.img_in[0], stoch, action))
    gates = affine(rssm.cell.gates, x, deter)
    gates = (gates - gates.mean(-1, keepdims=True)) / np.sqrt(gates.var(-1, keepdims=True) + 1e-3)
    reset, candidate, update = np.split(gates * array(rssm.cell.norm.weight) + array(rssm.cell.norm.bias), 3, -1)
    keep = 1 - sigmoid(update - 1)
    return keep * deter + (1 - keep) * np.tanh(sigmoid(reset) * candidate)


def test_features_are_stoch_then_deter():
    state = State(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]]))
    assert state.feat.tolist() == [[3.0, 1.0, 2.0]]
    assert make_rssm().feat_size == 16 + 8


def test_initial_state_is_zero():
    state = make_rssm().initial(3)
    assert state.deter.shape == (3, 8) and state.stoch.shape == (3, 16) and not state.feat.any()


@pytest.mark.parametrize("latent", LATENTS)
def test_obs_step_equals_its_equations(latent):
    rssm = make_rssm(latent)
    state = random_state(rssm)
    embed, action, _, noise = at(sequence(rssm), 2)
    new, stats = rssm.obs_step(state, action, embed, torch.zeros(B, dtype=torch.bool), noise)
    deter = next_deter(rssm, *map(array, (*state, action)))
    np.testing.assert_allclose(array(new.deter), deter, atol=1e-5)
    expected = affine(rssm.obs_stats, elu(affine(rssm.obs_out[0], deter, array(embed))))
    np.testing.assert_allclose(array(stats), expected, atol=1e-4)
    assert torch.equal(new.stoch, latent.sample(stats, noise))


@pytest.mark.parametrize("latent", LATENTS)
def test_img_step_equals_its_equations(latent):
    rssm = make_rssm(latent)
    state = random_state(rssm)
    _, action, _, noise = at(sequence(rssm), 2)
    new = rssm.img_step(state, action, noise)
    deter = next_deter(rssm, *map(array, (*state, action)))
    np.testing.assert_allclose(array(new.deter), deter, atol=1e-5)
    stats = affine(rssm.img_stats, elu(affine(rssm.img_out[0], deter)))
    np.testing.assert_allclose(array(rssm.prior_stats(new.deter)), stats, atol=1e-4)
    assert torch.equal(new.stoch, latent.sample(rssm.prior_stats(new.deter), noise))


def test_is_first_erases_state_and_action_bit_for_bit():
    rssm = make_rssm()
    embed, action, _, noise = at(sequence(rssm), 0)
    first, going = torch.ones(B, dtype=torch.bool), torch.zeros(B, dtype=torch.bool)
    masked, masked_stats = rssm.obs_step(random_state(rssm), 9 * action, embed, first, noise)
    fresh, fresh_stats = rssm.obs_step(rssm.initial(B), torch.zeros(B, A), embed, going, noise)
    assert torch.equal(masked.feat, fresh.feat) and torch.equal(masked_stats, fresh_stats)


def test_is_first_concerns_its_own_environment_only():
    rssm = make_rssm()
    state = random_state(rssm)
    embed, action, _, noise = at(sequence(rssm), 0)
    mixed, _ = rssm.obs_step(state, action, embed, torch.tensor([False, True, False]), noise)
    going, _ = rssm.obs_step(state, action, embed, torch.zeros(B, dtype=torch.bool), noise)
    assert torch.equal(mixed.feat[[0, 2]], going.feat[[0, 2]])
    assert not torch.equal(mixed.deter[1], going.deter[1])


@pytest.mark.parametrize("latent", LATENTS)
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_observe_is_a_loop_of_obs_step(latent, norm):
    rssm = make_rssm(latent, norm)
    embed, action, is_first, noise = sequence(rssm, first=(0, 3))
    states, posts, priors = rssm.observe(embed, action, is_first, noise)
    assert states.deter.shape == (T, B, 8) and posts.shape == priors.shape == (T, B, latent.stats_size)
    state = rssm.initial(B)
    for t in range(T):
        state, stats = rssm.obs_step(state, action[t], embed[t], is_first[t], noise[t])
        assert torch.equal(states.deter[t], state.deter) and torch.equal(states.stoch[t], state.stoch)
        assert torch.equal(posts[t], stats)
        torch.testing.assert_close(priors[t], rssm.prior_stats(state.deter))


def test_a_sequence_with_a_new_episode_equals_two_runs():
    rssm = make_rssm()
    whole = sequence(rssm, first=(0, 3))
    states, posts, priors = rssm.observe(*whole)
    for half in (slice(0, 3), slice(3, 6)):
        own_states, own_posts, own_priors = rssm.observe(*at(whole, half))
        assert torch.equal(states.feat[half], own_states.feat) and torch.equal(posts[half], own_posts)
        torch.testing.assert_close(priors[half], own_priors)


def test_action_leads_to_the_row_it_stands_in():
    rssm = make_rssm()
    embed, action, is_first, noise = sequence(rssm)
    before = rssm.observe(embed, action, is_first, noise)[0].deter
    changed = action.clone()
    changed[2] += 1
    after = rssm.observe(embed, changed, is_first, noise)[0].deter
    moved = (before != after).any(-1).any(-1)
    assert moved.tolist() == [False, False, True, True, True, True]


def test_observation_shapes_the_posterior_now_and_the_prior_later():
    rssm = make_rssm(GaussianLatent(5))
    embed, action, is_first, noise = sequence(rssm)
    _, post, prior = rssm.observe(embed, action, is_first, noise)
    changed = embed.clone()
    changed[2] += 1
    _, new_post, new_prior = rssm.observe(changed, action, is_first, noise)
    assert (post != new_post).any(-1).any(-1).tolist() == [False, False, True, True, True, True]
    assert (prior != new_prior).any(-1).any(-1).tolist() == [False, False, False, True, True, True]


def test_masks_and_detaches():
    state = random_state(make_rssm())
    state.deter[1] = torch.nan  # must not outlive a reset
    masked = state.masked(torch.tensor([[True], [False], [True]]))
    assert torch.equal(masked.feat[0], state.feat[0]) and not masked.feat[1].any()
    grown = State(state.deter.requires_grad_(), state.stoch.requires_grad_()).detach()
    assert not grown.deter.requires_grad and not grown.stoch.requires_grad


@pytest.mark.parametrize(("actions", "img_in", "total"), [(18, 625_800, 5_664_848), (6, 618_600, 5_657_648)])
def test_parameters_at_full_size(actions, img_in, total):
    with torch.device("meta"):
        rssm = RSSM(1536, actions, CategoricalLatent(32, 32), deter=600, hidden=600)
    counts = {name: parameter_count(module) for name, module in rssm.named_children()}
    assert counts == {"img_in": img_in, "cell": 2_161_800 + 3_600, "img_out": 360_600, "img_stats": 615_424,
                      "obs_out": 1_282_200, "obs_stats": 615_424}
    assert parameter_count(rssm) == total


def test_norm_option_normalises_the_three_hidden_layers():
    assert parameter_count(make_rssm(norm="layer")) == parameter_count(make_rssm()) + 3 * 2 * 9
