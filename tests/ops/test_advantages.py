"""Advantages and n-step returns against their definitions, spelt out in float64 loops over episodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xrl.ops.returns import gae, lambda_return, n_step

GAMMA = 0.9


def life(seed, rows, envs=3):
    """Random rows (rows, E): episodes that terminate, are truncated, or are cut without a flag."""
    rng = np.random.default_rng(seed)
    first, last, terminal = np.zeros((3, rows, envs), bool)
    first[0] = True
    for env in range(envs):
        for row in range(1, rows):
            if last[row - 1, env] or rng.random() < 0.1:
                first[row, env] = True
            elif rng.random() < 0.3:
                last[row, env] = True
                terminal[row, env] = rng.random() < 0.5
    return first, last, terminal, rng.normal(size=(rows, envs)), rng.normal(size=(rows, envs))


def advantages_by_definition(first, terminal, reward, value, gamma, lambda_):
    """sum_l (gamma lambda)^l delta_{t+l}, over the steps of the episode that the rollout holds (GAE, eq. 16)."""
    transitions, envs = len(reward) - 1, reward.shape[1]
    found = np.full((transitions, envs), np.nan)
    for env in range(envs):
        for start in range(transitions):
            if first[start + 1, env]:
                continue
            total = 0.0
            for t in range(start, transitions):
                if first[t + 1, env]:
                    break
                after = 0.0 if terminal[t + 1, env] else gamma * value[t + 1, env]
                total += (gamma * lambda_) ** (t - start) * (reward[t + 1, env] + after - value[t, env])
            found[start, env] = total
    return found


def rollout_gae(first, terminal, reward, value, gamma, lambda_):
    """As a learner aligns them: transition k leads from row k to row k + 1."""
    first, terminal, reward, value = map(torch.tensor, (first, terminal, reward, value))
    valid = ~first[1:]
    follows = torch.cat([valid[1:], valid[:1]])
    return gae(reward[1:], value[:-1], value[1:], gamma * (~terminal[1:]).double(), follows, lambda_), valid


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_gae_equals_its_definition(gamma, lambda_):
    for seed in range(4):
        first, _, terminal, reward, value = life(seed, 24)
        found, valid = rollout_gae(first, terminal, reward, value, gamma, lambda_)
        expected = advantages_by_definition(first, terminal, reward, value, gamma, lambda_)
        assert (np.isnan(expected) == ~valid.numpy()).all()
        np.testing.assert_allclose(found.numpy()[valid.numpy()], expected[~np.isnan(expected)], atol=1e-12)


def test_gae_is_the_lambda_return_without_the_value():
    torch.manual_seed(0)
    reward, value, after = torch.rand(3, 8, 2, dtype=torch.float64)
    after[:-1] = value[1:]
    discount = torch.full((8, 2), GAMMA, dtype=torch.float64)
    everywhere = torch.ones(8, 2, dtype=torch.bool)
    expected = lambda_return(reward, after, discount, 0.7) - value
    torch.testing.assert_close(gae(reward, value, after, discount, everywhere, 0.7), expected)


def test_a_time_limit_bootstraps_and_an_end_does_not():
    """Three steps of reward 1 and values 5: at its end the episode is worth 5 more, or nothing."""
    def advantage(discount):
        ones = torch.ones(3, 1)
        return gae(ones, 5 * ones, 5 * ones, torch.tensor([[GAMMA], [GAMMA], [discount]]), torch.tensor(
            [[True], [True], [False]]), 1.0)[:, 0]

    truncated = [1 + GAMMA + GAMMA**2 + GAMMA**3 * 5 - 5, 1 + GAMMA + GAMMA**2 * 5 - 5, 1 + GAMMA * 5 - 5]
    assert advantage(GAMMA).tolist() == pytest.approx(truncated)
    assert advantage(0.0).tolist() == pytest.approx([1 + GAMMA + GAMMA**2 - 5, 1 + GAMMA - 5, 1 - 5])


def test_nothing_leaks_out_of_the_next_episode():
    first, _, terminal, reward, value = life(3, 24)
    found, valid = rollout_gae(first, terminal, reward, value, GAMMA, 0.95)
    for env in range(3):
        begin = int(np.flatnonzero(first[1:, env])[0]) + 1
        changed = reward.copy(), value.copy()
        for array in changed:
            array[begin:, env] += 100
        other, _ = rollout_gae(first, terminal, *changed, GAMMA, 0.95)
        torch.testing.assert_close(other[:begin - 1, env], found[:begin - 1, env])
        assert valid[:begin - 1, env].all()


def test_shapes_must_agree():
    ones = torch.ones(3, 1)
    with pytest.raises(ValueError, match=r"value \(2, 1\), next_value \(3, 1\)"):
        gae(ones, ones[:2], ones, ones, ones.bool(), 1.0)


def returns_by_definition(first, terminal, reward, start, env, n, gamma):
    total, factor, steps = 0.0, 1.0, 0
    for row in range(start + 1, start + 1 + n):
        if first[row, env]:
            break
        total, factor, steps = total + factor * reward[row, env], factor * gamma, steps + 1
        if terminal[row, env]:
            factor = 0.0
    return total, factor, steps


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_n_step_equals_its_definition(n, gamma):
    first, _, terminal, reward, _ = life(7, 40)
    for start in range(40 - n):
        rows = slice(start + 1, start + 1 + n)
        found = n_step(*map(torch.tensor, (reward[rows], first[rows], terminal[rows])), gamma)
        for env in range(3):
            if not first[start + 1, env]:
                expected = returns_by_definition(first, terminal, reward, start, env, n, gamma)
                assert [part[env].item() for part in found] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("first", "terminal", "expected"), [
    ([0, 0, 0], [0, 0, 0], (1 + 0.9 * 2 + 0.81 * 3, 0.729, 3)),
    ([0, 0, 0], [0, 0, 1], (1 + 0.9 * 2 + 0.81 * 3, 0.0, 3)),
    ([0, 0, 1], [0, 0, 0], (1 + 0.9 * 2, 0.81, 2)),  # truncated or cut: the value of row t + 2 stands for the rest
    ([0, 0, 1], [0, 1, 0], (1 + 0.9 * 2, 0.0, 2)),
    ([0, 1, 0], [0, 0, 1], (1.0, 0.9, 1)),  # the terminal row is of another episode
])
def test_n_steps_worked_by_hand(first, terminal, expected):
    reward = torch.tensor([[1.0], [2.0], [3.0]])
    found = n_step(reward, torch.tensor(first).bool()[:, None], torch.tensor(terminal).bool()[:, None], GAMMA)
    assert [part.item() for part in found] == pytest.approx(expected)


def test_one_step_of_gamma_zero_is_the_reward():
    found = n_step(torch.tensor([[2.5]]), torch.tensor([[False]]), torch.tensor([[False]]), 0.0)
    assert [part.item() for part in found] == [2.5, 0.0, 1]
