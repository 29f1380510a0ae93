"""What acts: laws, noise, and the observations that are carried along."""

from __future__ import annotations

import pytest
import torch

from tests.builders import BOTH, CONTINUOUS, DISCRETE, VECTOR, generator
from tests.learners.test_ppo import MULTI, config_of
from xrl.policies.ppo import PPOPolicy

ACTIONS = pytest.mark.parametrize("action", [DISCRETE, MULTI, CONTINUOUS], ids=lambda spec: spec.kind)


def policy_of(obs=VECTOR, action=DISCRETE, **changes):
    torch.manual_seed(0)
    return PPOPolicy(obs, action, config_of(**changes))


def look(policy, seed=0, batch=4):
    torch.manual_seed(seed)
    return {name: torch.randint(0, 256, (batch, *spec.shape), dtype=torch.uint8) if spec.kind == "image"
            else torch.randn(batch, *spec.shape) for name, spec in policy.obs_spec.items()}


@ACTIONS
def test_at_first_all_actions_are_about_as_likely(action):
    policy = policy_of(action=action)
    law, value = policy(look(policy))
    assert value.shape == (4,) and value.dtype == torch.float32
    if action.kind == "continuous":
        assert law.mean.abs().max() < 0.05 and torch.equal(law.log_std, torch.zeros(2))
    else:
        sizes = action.choices or (action.size,)
        uniform = sum(torch.log(torch.tensor(float(size))) for size in sizes)
        torch.testing.assert_close(law.entropy(), uniform.expand(4), atol=1e-3, rtol=0)


@ACTIONS
@pytest.mark.parametrize("frames", [1, 3])
def test_acts_by_chance_or_by_the_mode(action, frames):
    policy = policy_of(BOTH, action, frame_stack=frames)
    state = policy.initial(4, torch.device("cpu"))
    first = torch.ones(4, dtype=torch.bool)
    sampled, after = policy.act(state, look(policy), first, generator(1), explore=True)
    again, _ = policy.act(state, look(policy), first, generator(1), explore=True)
    mode, _ = policy.act(state, look(policy), first, generator(2), explore=False)
    assert sampled.shape == mode.shape == (4, action.size) and torch.equal(sampled, again)
    assert not torch.equal(sampled, mode)
    assert {name: value.shape[-1] for name, value in after.items()} == (
        {} if frames == 1 else {name: 3 * spec.shape[-1] for name, spec in BOTH.items()})
    seen = look(policy) if frames == 1 else after
    torch.testing.assert_close(mode, policy(seen)[0].mode())


def test_the_value_alone_is_the_value():
    for shared in (True, False):
        policy = policy_of(network__shared=shared)
        torch.testing.assert_close(policy.value(look(policy)), policy(look(policy))[1])
        assert len(policy.trunks) == (1 if shared else 2)
