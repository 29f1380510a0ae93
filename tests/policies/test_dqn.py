"""What acts: values, duels, chance."""

from __future__ import annotations

import pytest
import torch

from tests.builders import BOTH, DISCRETE, VECTOR, generator, parameter_count
from tests.learners.test_dqn import config_of
from tests.policies.test_ppo import look
from xrl.policies.dqn import DQNPolicy

ROWS = 4


def policy_of(obs=VECTOR, **changes):
    torch.manual_seed(0)
    return DQNPolicy(obs, DISCRETE, config_of(**changes))


def act(policy, epsilon, explore, rows=ROWS, seed=1):
    policy.epsilon.fill_(epsilon)
    first = torch.ones(rows, dtype=torch.bool)
    return policy.act(policy.initial(rows, torch.device("cpu")), look(policy, batch=rows), first, generator(seed),
                      explore)


@pytest.mark.parametrize("frames", [1, 3])
def test_takes_the_largest_value_unless_chance_decides(frames):
    policy = policy_of(BOTH, frame_stack=frames)
    greedy, after = act(policy, 1.0, explore=False)
    seen = look(policy) if frames == 1 else after
    assert torch.equal(greedy.argmax(-1), policy.q(seen).argmax(-1)) and greedy.dtype == torch.float32
    assert torch.equal(act(policy, 0.0, explore=True)[0], greedy)


def test_chance_has_the_share_of_epsilon_and_treats_all_actions_alike():
    policy = policy_of()
    rows = 6000
    greedy, _ = act(policy, 0.0, explore=False, rows=rows)
    random, _ = act(policy, 1.0, explore=True, rows=rows)
    assert ((random.mean(0) - 1 / 3).abs() < 5 * (2 / 9 / rows) ** 0.5).all()
    some, _ = act(policy, 0.3, explore=True, rows=rows)
    same = (some == greedy).all(-1).float().mean().item()
    assert same == pytest.approx(1 - 0.3 * 2 / 3, abs=0.03)


def test_epsilon_begins_where_it_should_and_is_saved_with_the_weights():
    policy = policy_of(exploration__start=0.7)
    assert policy.epsilon.item() == pytest.approx(0.7) and "epsilon" in policy.state_dict()


def test_a_duel_is_a_value_and_advantages_without_their_mean():
    policy = policy_of(dueling=True, network__layers=1)
    obs = look(policy)
    feat = policy.q.trunk(obs)
    assert torch.equal(feat, obs["state"]), "its one layer is in the streams"
    value, advantage = policy.q.value(feat), policy.q.out(feat)
    found = policy.q(obs)
    torch.testing.assert_close(found, value + advantage - advantage.mean(-1, keepdim=True))
    torch.testing.assert_close(found.mean(-1), value.squeeze(-1))
    assert parameter_count(policy.q) == (3 + 1) * 8 * 2 + (8 + 1) * (3 + 1)


def test_the_slow_copy_begins_equal():
    policy = policy_of()
    obs = look(policy)
    assert torch.equal(policy.q(obs), policy.target_q(obs))
