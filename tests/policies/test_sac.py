"""What acts: a squashed normal law."""

from __future__ import annotations

import math

import pytest
import torch

from tests.builders import BOTH, CONTINUOUS, VECTOR, generator
from tests.learners.test_sac import config_of
from tests.policies.test_ppo import look
from xrl.policies.sac import LOG_STD, SACPolicy


def policy_of(obs=VECTOR, **changes):
    torch.manual_seed(0)
    return SACPolicy(obs, CONTINUOUS, config_of(**changes))


@pytest.mark.parametrize("frames", [1, 3])
def test_acts_by_chance_or_by_the_mode(frames):
    policy = policy_of(BOTH, frame_stack=frames)
    state, first = policy.initial(4, torch.device("cpu")), torch.ones(4, dtype=torch.bool)
    sampled, after = policy.act(state, look(policy), first, generator(1), explore=True)
    mode, _ = policy.act(state, look(policy), first, generator(2), explore=False)
    assert sampled.shape == mode.shape == (4, 2) and (sampled.abs() < 1).all() and not torch.equal(sampled, mode)
    seen = look(policy) if frames == 1 else after
    torch.testing.assert_close(mode, policy.actor(seen).mean.tanh())
    assert {name: value.shape[-1] for name, value in after.items()} == (
        {} if frames == 1 else {name: 3 * spec.shape[-1] for name, spec in BOTH.items()})


def test_the_deviation_is_bounded():
    policy = policy_of()
    with torch.no_grad():
        policy.actor.out.bias[2:] = torch.tensor([-100.0, 100.0])
    assert policy.actor(look(policy)).log_std.tolist() == [list(LOG_STD)] * 4


def test_values_are_of_both_critics_and_read_the_action():
    policy = policy_of()
    obs, action = look(policy), torch.rand(4, 2)
    value = policy.critics(obs, action)
    assert value.shape == (2, 4) and not torch.allclose(value[0], value[1])
    assert torch.equal(value, policy.target_q(obs, action)) and not torch.equal(value, policy.critics(obs, -action))
    assert policy.log_alpha.item() == pytest.approx(math.log(0.5))
