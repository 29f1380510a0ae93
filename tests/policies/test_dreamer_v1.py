"""DreamerV1 acting: what its networks are made of, how actions are varied, what evaluation does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from tests.builders import BOTH, CONTINUOUS, DISCRETE, VECTOR, generator, parameter_count
from tests.builders_v1 import MULTI, v1_config, v1_policy
from xrl.common.row import ActionSpec, ObsSpec
from xrl.configs.schemas.dreamer_v1 import DreamerV1Config
from xrl.nn.distributions import uniform
from xrl.nn.layers import LayerNorm
from xrl.policies.dreamer_v1 import DreamerV1Policy
from xrl.world_models.rssm import State

DEFAULT = DreamerV1Config.model_validate({"method": "DreamerV1", "env_name": "dmc", "env_id": "walker_walk"})
COLOUR = {"image": ObsSpec("image", (64, 64, 3))}


def full_size(changes=None, action=6):
    config = DEFAULT.model_copy(update=changes or {})
    with torch.device("meta"):
        return DreamerV1Policy(COLOUR, ActionSpec("continuous", action), config)


def act(policy, rows=50, explore=True, seed=0, action=None):
    obs = {"state": torch.randn(rows, 3, generator=generator(7))}
    previous = torch.zeros(rows, sum(policy.parts) or 2) if action is None else action
    first = torch.ones(rows, dtype=torch.bool)
    return policy.act(policy.initial(rows), obs, previous, first, generator(seed), explore)


# Networks ----------------------------------------------------------------------------------------------------------


def test_parameters_at_full_size():
    """Those of the official code for DMC with 6 actions."""
    policy, model = full_size(), full_size().world_model
    assert {name: parameter_count(getattr(model, name)) for name in ("encoder", "rssm", "decoder", "reward")} == {
        "encoder": 690_144, "rssm": 557_920, "decoder": 3_795_555, "reward": 253_201}
    assert parameter_count(model) == 5_296_820 and model.discount is None
    assert (parameter_count(policy.critic), parameter_count(policy.actor)) == (413_601, 578_412)
    with_discount = DEFAULT.world_model.model_copy(update={"predict_discount": True})
    assert parameter_count(full_size({"world_model": with_discount}).world_model.discount) == 413_601


def test_relu_between_convolutions_elu_everywhere_else_and_no_norm_anywhere():
    model = full_size().world_model
    assert not any(isinstance(module, LayerNorm | nn.LayerNorm) for module in model.modules())
    convolutions = [*model.encoder.conv.modules(), *model.decoder.conv.modules()]
    assert sum(isinstance(module, nn.ReLU) for module in convolutions) == 5  # 4, and one shared by 3 places
    assert not any("ELU" in type(module).__name__ and not isinstance(module, nn.ReLU) for module in convolutions)
    for part in (model.rssm, model.reward):
        assert any(isinstance(module, nn.ELU) for module in part.modules())
        assert not any(isinstance(module, nn.ReLU) for module in part.modules())


def test_the_state_is_that_of_a_textbook_cell_and_normal_latents():
    """One row by the equations of the GRU, written out; its update gate keeps the old state."""
    policy = v1_policy(action=CONTINUOUS)
    model, rssm = policy.world_model, policy.world_model.rssm
    for parameter in rssm.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator(3))
    state = State(torch.randn(1, 8, generator=generator(4)), torch.randn(1, 4, generator=generator(5)))
    obs, action = {"state": torch.randn(1, 3, generator=generator(6))}, torch.tensor([[0.3, -0.7]])
    _, after = policy.act(state, obs, action, torch.tensor([False]), generator(9), explore=False)

    def array(tensor):
        return tensor.detach().double().numpy()

    def dense(layer, x):
        return x @ array(layer.weight).T + array(layer.bias)

    def elu(x):
        return np.where(x > 0, x, np.expm1(x))

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    x = elu(dense(rssm.img_in[0], np.concatenate([array(state.stoch), array(action)], -1)))
    cell, h = rssm.cell, array(state.deter)
    inputs = np.split(x @ array(cell.weight_ih).T + array(cell.bias_ih), 3, -1)
    hidden = np.split(h @ array(cell.weight_hh).T + array(cell.bias_hh), 3, -1)
    reset, update = (sigmoid(inputs[i] + hidden[i]) for i in (0, 1))
    deter = update * h + (1 - update) * np.tanh(inputs[2] + reset * hidden[2])
    np.testing.assert_allclose(array(after.deter), deter, atol=1e-5)
    embed = array(model.encoder(obs))
    stat = dense(rssm.obs_stats, elu(dense(rssm.obs_out[0], np.concatenate([deter, embed], -1))))
    noise = array(torch.randn(1, 4, generator=generator(9)))
    stoch = stat[:, :4] + (np.log1p(np.exp(stat[:, 4:])) + 0.1) * noise
    np.testing.assert_allclose(array(after.stoch), stoch, atol=1e-5)


def test_initial_state_is_zero_and_a_first_row_forgets_state_and_action():
    policy = v1_policy()
    assert not policy.initial(2).feat.any()
    obs, first = {"state": torch.randn(2, 3)}, torch.ones(2, dtype=torch.bool)
    kept = policy.act(State(torch.ones(2, 8), torch.ones(2, 4)), obs, torch.eye(3)[:2], first, generator(), True)[1]
    fresh = policy.act(policy.initial(2), obs, torch.zeros(2, 3), first, generator(), True)[1]
    assert torch.equal(kept.feat, fresh.feat)


@pytest.mark.parametrize(("changes", "std", "limit"), [
    ({}, 5.0, 5.0), ({"actor.init_std": 0.5}, 0.5, 5.0), ({"actor.mean_scale": 2.0}, 5.0, 2.0)])
def test_the_policy_is_as_wide_and_as_bounded_as_it_is_told(changes, std, limit):
    policy = v1_policy(changes, action=CONTINUOUS)
    nn.init.zeros_(policy.actor.out.weight)
    with torch.no_grad():
        policy.actor.out.bias[:2] = 1e3
    law = policy.actor(torch.randn(1, 12))
    assert law.scale.tolist()[0] == pytest.approx([std + 1e-4] * 2) and law.loc.tolist() == [[limit] * 2]


# Exploration -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [DISCRETE, MULTI, CONTINUOUS], ids=lambda spec: spec.kind)
@pytest.mark.parametrize("explore", [True, False])
def test_actions_fit_the_space(action, explore):
    chosen, state = act(v1_policy(action=action), action=torch.zeros(50, action.size), explore=explore)
    assert chosen.shape == (50, action.size) and not chosen.requires_grad and not state.feat.requires_grad
    if action is CONTINUOUS:
        assert chosen.abs().max() <= 1
    else:
        for part in chosen.split(action.choices or (action.size,), -1):
            assert part.sum(-1).eq(1).all() and ((part == 0) | (part == 1)).all()


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3])
def test_noise_is_added_to_continuous_actions_and_clipped(noise):
    policy = v1_policy({"exploration.noise": noise}, action=CONTINUOUS)
    added = policy.varied(torch.zeros(5000, 2), generator()).numpy()
    if not noise:
        assert not added.any()
    else:
        assert stats.kstest(added.ravel() / noise, stats.norm.cdf).statistic < 0.02
        assert added.std() == pytest.approx(noise, rel=0.03)
    high = policy.varied(torch.full((1000, 2), 0.99), generator())
    assert high.max() <= 1 and (not noise or (high == 1).any())
    assert v1_config().exploration.noise == 0.3


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.4, 1.0])
def test_a_share_of_discrete_actions_is_replaced_by_any(epsilon):
    """A replaced one may come out as it was: the chosen action keeps 1 - epsilon + epsilon / K."""
    policy, count = v1_policy({"exploration.epsilon": epsilon}), 20_000
    chosen = torch.eye(3)[torch.full((count,), 1)]
    shares = policy.varied(chosen, generator()).mean(0).tolist()
    third = epsilon / 3
    assert shares == pytest.approx([third, 1 - epsilon + third, third], abs=0.012)


def test_each_of_several_discrete_actions_is_replaced_on_its_own():
    policy, count = v1_policy({"exploration.epsilon": 0.5}, action=MULTI), 20_000
    chosen = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0]).expand(count, 5)
    varied = policy.varied(chosen, generator())
    assert varied.mean(0).tolist() == pytest.approx([0.75, 0.25, 1 / 6, 1 / 6, 2 / 3], abs=0.015)
    both = (varied[:, 1] * (1 - varied[:, 4])).mean().item()
    assert both == pytest.approx(0.25 / 3, abs=0.01), "independent"


@pytest.mark.parametrize("action", [DISCRETE, CONTINUOUS], ids=lambda spec: spec.kind)
def test_training_samples_and_varies_evaluation_takes_the_mode(action):
    key = {"exploration.noise": 0.2, "exploration.epsilon": 0.3}
    policy = v1_policy(key, action=action)
    chosen, state = act(policy, 500, explore=False)
    law = policy.actor(state.feat)
    expected = nn.functional.one_hot(law.logits.argmax(-1), 3).float() if action is DISCRETE else law.loc.tanh()
    assert torch.equal(chosen, expected), "no noise in evaluation"
    explored, same = act(policy, 500, explore=True)
    assert torch.equal(same.feat, state.feat), "one law of the latent in training and evaluation"
    random = generator(0)
    torch.randn(500, 4, generator=random)
    sample = law.sample(uniform(500, *policy.actor.noise_shape, generator=random))
    assert torch.equal(explored, policy.varied(sample, random))
    _, other = act(policy, 500, explore=False, seed=1)
    assert not torch.equal(other.stoch, state.stoch), "the latent is sampled in evaluation too"


def test_global_generator_is_not_touched():
    policy, before = v1_policy(action=CONTINUOUS), torch.get_rng_state()
    act(policy)
    assert torch.equal(before, torch.get_rng_state())


# Looking -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("obs", "action"), [(BOTH, DISCRETE), (VECTOR, CONTINUOUS), (VECTOR, MULTI)])
def test_a_look_is_what_each_network_says(obs, action):
    policy = v1_policy({"world_model.predict_discount": True, "world_model.obs_scale": 3.0, "gamma": 0.9}, obs, action)
    state = State(torch.randn(4, 8, generator=generator(1)), torch.randn(4, 4, generator=generator(2)))
    look, feat, model = policy.look(state), torch.cat([state.stoch, state.deter], -1), policy.world_model
    with torch.no_grad():
        assert look.obs.keys() == obs.keys()
        np.testing.assert_allclose(look.obs["state"], model.decoder(feat)["state"] * 3.0, rtol=1e-5)
        np.testing.assert_allclose(look.reward, model.reward(feat), rtol=1e-6)
        np.testing.assert_allclose(look.value, policy.critic(feat), rtol=1e-6)
        np.testing.assert_allclose(look.cont, (model.discount(feat) / 0.9).clamp(max=1), rtol=1e-6)
        np.testing.assert_allclose(look.entropy, policy.actor(feat).entropy(), rtol=1e-6)
        if action is CONTINUOUS:
            np.testing.assert_allclose(look.action, policy.actor(feat).loc.tanh(), rtol=1e-6)
    assert v1_policy().cont(feat).tolist() == [1.0] * 4, "without the head nothing ends"


def test_a_dreamt_step_is_the_priors_with_noise_of_the_given_generator():
    policy = v1_policy()
    state, action = State(torch.randn(4, 8), torch.randn(4, 4)), torch.eye(3)[[0, 1, 2, 0]]
    found = policy.dream(state, action, generator(5))
    with torch.no_grad():
        expected = policy.world_model.rssm.img_step(state, action, torch.randn(4, 4, generator=generator(5)))
    assert torch.equal(found.feat, expected.feat)
