"""Playing whole episodes: how many, of which environment, and what an endless one does."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from xrl.agents import evaluation
from xrl.common.row import Row


class Scripted:
    """Environment i has episodes of ``lengths[i]`` steps (None: without end); every step pays i + 1."""

    def __init__(self, lengths, truncated=False):
        self.lengths, self.num_envs, self.truncated = lengths, len(lengths), truncated
        self.frame = np.zeros(self.num_envs, int)
        self.last = np.zeros(self.num_envs, bool)
        self.steps = 0
        self.time_limit = None
        self.failed, self.failures = (), 0

    def _row(self, is_first):
        reward = np.where(is_first, 0, np.arange(1, self.num_envs + 1)).astype(np.float32)
        self.last = np.array([length is not None and frame == length
                              for frame, length in zip(self.frame, self.lengths, strict=True)])
        terminal = self.last & (not self.truncated)
        return Row({}, np.zeros((self.num_envs, 2), np.float32), reward, is_first, self.last.copy(), terminal)

    def reset(self):
        self.frame[:] = 0
        return self._row(np.ones(self.num_envs, bool))

    def step(self, action):
        self.steps += 1
        is_first = self.last.copy()
        self.frame = np.where(is_first, 0, self.frame + 1)
        return self._row(is_first)


def play(envs, episodes, between_steps=lambda: None):
    seen = []

    def act(row, state, generator, explore):
        assert explore is False
        seen.append((row, state))
        return np.zeros((envs.num_envs, 2), np.float32), state + 1

    result = evaluation.play(act, 0, envs, episodes, torch.Generator(), between_steps, max_failures=1)
    return SimpleNamespace(result=result, seen=seen)


@pytest.mark.parametrize("truncated", [False, True])
def test_every_environment_plays_its_share(truncated):
    """7 episodes of 3 environments, one of them 40 times quicker: taking whichever ends first would be 7 of that."""
    result = play(Scripted([1, 5, 40], truncated), 7).result
    assert sorted(zip(result.lengths, result.scores, strict=True)) == [
        (1, 1.0), (1, 1.0), (1, 1.0), (5, 10.0), (5, 10.0), (40, 120.0), (40, 120.0)]
    assert result.mean == pytest.approx(263 / 7) and result.std == pytest.approx(np.std([1, 1, 1, 10, 10, 120, 120]))


def test_nothing_is_played_beyond_the_last_episode():
    envs = Scripted([5, 5])
    assert play(envs, 4).result.lengths == (5, 5, 5, 5)
    assert envs.steps == 5 + 1 + 5  # with the reset between the two


def test_more_environments_than_episodes():
    result = play(Scripted([2, 3, 4]), 2).result
    assert result.lengths == (2, 3)


def test_the_state_is_handed_on_and_the_first_row_is_a_reset():
    seen = play(Scripted([3]), 1).seen
    assert [state for _, state in seen] == [0, 1, 2]
    assert [row.is_first.tolist() for row, _ in seen] == [[True], [False], [False]]


def test_an_endless_episode_counts_once_with_what_it_has(monkeypatch):
    monkeypatch.setattr(evaluation, "LONGEST_EPISODE", 20)
    with pytest.warns(UserWarning, match="not ended after 20 agent steps.*set environment.time_limit") as caught:
        result = play(Scripted([None, 6]), 10).result
    # The second environment still plays its five, all of them.
    assert sorted(zip(result.lengths, result.scores, strict=True)) == [(6, 12.0)] * 5 + [(20, 20.0)]
    assert len(caught) == 1


def test_an_episode_of_exactly_the_longest_length_is_no_endless_one(monkeypatch, recwarn):
    monkeypatch.setattr(evaluation, "LONGEST_EPISODE", 6)
    assert play(Scripted([6, 6]), 4).result.lengths == (6, 6, 6, 6)
    assert not recwarn


def test_what_goes_on_after_the_quota_is_no_business_of_the_evaluation(monkeypatch, recwarn):
    """The second environment is done after one episode; its next one, without end, neither counts nor warns."""
    monkeypatch.setattr(evaluation, "LONGEST_EPISODE", 20)
    envs = Scripted([15, 2])
    step = envs.step

    def then_endless(action):
        if envs.steps == 3:
            envs.lengths[1] = None
        return step(action)

    envs.step = then_endless
    assert sorted(play(envs, 3).result.lengths) == [2, 15, 15]
    assert envs.frame[1] > 20 and not recwarn


def test_an_interrupt_between_two_steps_goes_through():
    calls = []

    def interrupt():
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    envs = Scripted([10])
    with pytest.raises(KeyboardInterrupt):
        play(envs, 1, interrupt)
    assert envs.steps == 3


def test_a_known_limit_is_waited_for(monkeypatch, recwarn):
    monkeypatch.setattr(evaluation, "LONGEST_EPISODE", 6)
    envs = Scripted([9], truncated=True)
    envs.time_limit = 9
    assert play(envs, 2).result.lengths == (9, 9) and not recwarn.list
