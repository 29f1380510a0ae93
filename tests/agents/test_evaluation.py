"""Playing whole episodes: how many, of which environment, what an endless one does; and which rows are kept of them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from xrl.agents import evaluation
from xrl.agents.evaluation import Recorder
from xrl.common.callback import Evaluation
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


def play(envs, episodes, watch=lambda row: None):
    seen = []

    def act(row, state, generator, explore):
        assert explore is False
        seen.append((row, state))
        return np.zeros((envs.num_envs, 2), np.float32), state + 1

    result = evaluation.play(act, 0, envs, episodes, torch.Generator(), watch, max_failures=1)
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
    rows = []

    def interrupt(row):
        rows.append(row)
        if len(rows) == 3:
            raise KeyboardInterrupt

    envs = Scripted([10])
    with pytest.raises(KeyboardInterrupt):
        play(envs, 1, interrupt)
    assert envs.steps == 2  # the row of the reset is watched too


def test_a_known_limit_is_waited_for(monkeypatch, recwarn):
    monkeypatch.setattr(evaluation, "LONGEST_EPISODE", 6)
    envs = Scripted([9], truncated=True)
    envs.time_limit = 9
    assert play(envs, 2).result.lengths == (9, 9) and not recwarn.list


# Episodes that are held out ----------------------------------------------------------------------------------------


def recorded(envs, episodes):
    recorder, rows = Recorder(), []

    def watch(row):
        rows.append(row)
        recorder(row)

    play(envs, episodes, watch)
    return recorder.episodes(), rows


def test_the_first_episode_of_each_environment_is_kept_whole():
    """With its reset row, and without anything of the next one."""
    kept, rows = recorded(Scripted([3, 5, 1]), 7)
    assert [len(episode.reward) for episode in kept] == [4, 6, 2]
    for env, episode in enumerate(kept):
        assert episode.is_first.tolist() == [True] + [False] * (len(episode.reward) - 1)
        assert episode.is_last.tolist() == [False] * (len(episode.reward) - 1) + [True]
        assert episode.reward.tolist() == [0.0] + [env + 1.0] * (len(episode.reward) - 1)
        for name in ("action", "is_terminal"):
            expected = np.stack([getattr(row, name)[env] for row in rows[:len(episode.reward)]])
            assert np.array_equal(getattr(episode, name), expected)


def test_no_more_is_kept_than_the_limits(monkeypatch):
    monkeypatch.setattr(Recorder, "EPISODES", 2)
    monkeypatch.setattr(Recorder, "ROWS", 4)
    kept, _ = recorded(Scripted([9, 2, 5]), 3)
    assert [len(episode.reward) for episode in kept] == [4, 3]
    assert not kept[0].is_last.any() and kept[1].is_last[-1]
    assert kept[0].reward.tolist() == [0, 1, 1, 1]  # what comes after the limit is not begun again


def test_an_episode_whose_environment_fails_begins_again():
    """The row of the restart is a reset row: what came before it was no whole episode."""
    rows = [one_row(is_first=True), one_row(reward=1.0), one_row(reward=2.0), one_row(is_first=True),
            one_row(reward=3.0, is_last=True), one_row(is_first=True), one_row(reward=4.0)]
    recorder = Recorder()
    for row in rows:
        recorder(row)
    (episode,) = recorder.episodes()
    assert episode.reward.tolist() == [0.0, 3.0] and episode.is_first.tolist() == [True, False]


def one_row(reward=0.0, is_first=False, is_last=False):
    def flag(value):
        return np.array([value])

    return Row({"x": np.array([[reward]], np.float32)}, np.zeros((1, 2), np.float32), np.array([reward], np.float32),
               flag(is_first), flag(is_last), flag(is_last))


def test_a_reset_row_alone_is_no_episode():
    recorder = Recorder()
    assert recorder.episodes() == ()
    recorder(one_row(is_first=True))
    assert recorder.episodes() == ()


def test_what_is_kept_is_what_the_environments_showed(workshop, watched):
    """With environments that may write into the same memory again and again."""
    agent = workshop.agent(env_kwargs={"length": 6, "spread": 3}, test_parallels=3)
    found = agent.evaluate(5)
    made = watched.made[1:]
    assert len(found.held_out) == 3 and len(found.scores) == 5
    for episode, env in zip(found.held_out, made, strict=True):
        (obs,) = episode.obs.values()
        np.testing.assert_allclose(obs[:, 0], np.arange(env.length + 1) / 10, rtol=1e-6)
        assert episode.action[1:].argmax(-1).tolist() == [int(action) for action in env.actions[:env.length]]
        assert not episode.action[0].any()
        assert episode.reward.sum() == pytest.approx(
            sum(range(1, env.length + 1)) + 0.5 * sum(int(action) == 0 for action in env.actions[:env.length]))


def test_held_out_rows_are_no_part_of_the_comparison_of_evaluations():
    row = one_row()
    assert Evaluation((1.0,), (2,), (row,)) == Evaluation((1.0,), (2,)) and "Row" not in repr(
        Evaluation((1.0,), (2,), (row,)))
