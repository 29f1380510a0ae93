"""What the wrappers promise on their own; their work inside a run is tested in test_build and test_vector."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from xrl.common.errors import EnvironmentFault
from xrl.environment.raw import RawEnvironment
from xrl.environment.wrappers import CanonicalEnv, RawAdapter

from .examples import Numbered, Probe, one_hot


class Minimal(RawEnvironment):
    def __init__(self, reset_result, step_result, limit=None):
        super().__init__()
        self.observation_space, self.action_space = spaces.Discrete(2), spaces.Discrete(2)
        self.max_episode_steps = limit
        self.results = reset_result, step_result

    def reset(self, seed=None):
        return self.results[0]

    def step(self, action):
        return self.results[1]


def canonical(*results):
    return CanonicalEnv(RawAdapter(Minimal(*results), None), "environment 7 (A/b)")


def test_the_canonical_form_keeps_its_own_spaces_and_drops_info():
    env = canonical((1, {"big": 1}), (0, 2, np.True_, False, {"bigger": 2}))
    obs, info = env.reset()
    assert env.observation_space.contains(obs) and info == {}
    obs, reward, terminated, truncated, info = env.step(np.array([0, 1], np.float32))
    assert (reward, terminated, truncated, info) == (2.0, True, False, {}) and type(terminated) is bool
    assert obs["vector"].tolist() == [1, 0]


@pytest.mark.parametrize(("results", "message"), [
    ((1, (0, 0, False, False, {})), "reset returned something else than \\(observation, info\\)"),
    (((1, {}), (0, 0, False, {})), "step returned something else than \\(observation, reward, terminated"),
    (((1, {}), (0, None, False, False, {})), "step returned a reward of None"),
    (((1, {}), (0, float("nan"), False, False, {})), "step returned a reward of nan"),
    (((1, {}), (0, 1e39, False, False, {})), "step returned a reward of 1e\\+39"),
    (((1, {}), (0, np.zeros(2), False, False, {})), "step returned a reward of array"),
    (((2, {}), (0, 0, False, False, {})), "reset returned an observation whose 'vector' is 2"),
])
def test_faults_of_raw_environments(results, message):
    env = canonical(*results)
    with pytest.raises(EnvironmentFault, match=rf"environment 7 \(A/b\): {message}"):
        env.reset()
        env.step(np.array([0, 1], np.float32))


def test_a_reward_may_be_an_array_of_one_entry():
    env = canonical((1, {}), (0, np.array([3]), False, False, {}))
    env.reset()
    assert env.step(np.array([0, 1], np.float32))[1] == 3.0


@pytest.mark.parametrize(("limit", "expected"), [(None, 0), (0, 0), (-1, 0), (9, 9), (np.int64(9), 9), ("9", 0)])
def test_only_a_positive_number_is_a_limit(limit, expected):
    assert RawAdapter(Minimal(None, None, limit), None).max_episode_steps == expected


def test_render_and_close_are_optional_and_their_errors_are_faults():
    env = canonical((1, {}), None)
    assert env.render() is None
    env.close()

    def fail():
        raise OSError("no display")

    env.unwrapped.raw.render = env.unwrapped.raw.close = fail
    for method in (env.render, env.close):
        with pytest.raises(EnvironmentFault, match=f"{method.__name__} raised OSError: no display"):
            method()


def test_actions_arrive_decoded():
    probe = Probe(spaces.Box(np.array([0., 10.], np.float32), np.array([1., 20.], np.float32)))
    env = CanonicalEnv(probe, "environment 0")
    env.reset()
    env.step(np.array([-1, 0], np.float32))
    assert probe.actions[0].tolist() == [0, 15] and env.action_space == spaces.Box(-1, 1, (2,))
    numbered = CanonicalEnv(Numbered(), "environment 0")
    numbered.reset()
    assert numbered.step(one_hot([3], 5)[0])[0]["vector"].tolist() == [0, 1, 3]
