"""The families of Gymnasium's registry, and the window of test mode."""

from __future__ import annotations

import time

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv

from xrl.common.row import ActionSpec, ObsSpec
from xrl.environment import make_envs

from .examples import config, one_hot
from .test_build import MyDuck, MyRaw, base


def test_cartpole_is_gymnasiums_cartpole():
    reference = gymnasium.make("CartPole-v1")
    expected, _ = reference.reset(seed=6)
    with make_envs(config("classic_control", "CartPole-v1", env_seed=6)) as envs:
        assert envs.obs_spec == {"vector": ObsSpec("vector", (4,))} and envs.action_spec == ActionSpec("discrete", 2)
        row = envs.reset()
        for step in range(200):
            np.testing.assert_array_equal(row.obs["vector"][0], expected)
            if row.is_last[0]:
                break
            action = int(step % 3 > 0)
            row = envs.step(one_hot([action], 2))
            expected, reward, terminated, *_ = reference.step(action)
            assert row.reward[0] == reward and row.is_terminal[0] == terminated
        else:
            pytest.fail("the episode should have ended")


def test_pendulum_torque_is_rescaled_and_the_normalised_action_is_kept():
    reference = gymnasium.make("Pendulum-v1")
    reference.reset(seed=1)
    with make_envs(config("classic_control", "Pendulum-v1", env_seed=1)) as envs:
        assert envs.action_spec == ActionSpec("continuous", 1)
        envs.reset()
        row = envs.step(np.full((1, 1), 0.25, np.float32))
        assert row.action.tolist() == [[0.25]]
    expected, reward, *_ = reference.step(np.array([0.5], np.float32))  # bounds are -2 and 2
    np.testing.assert_array_equal(row.obs["vector"][0], expected)
    np.testing.assert_allclose(row.reward[0], reward, rtol=1e-6)


def test_any_gymnasium_id_with_keyword_arguments():
    with make_envs(config("gymnasium", "FrozenLake-v1", env_kwargs={"map_name": "8x8", "is_slippery": False})) as envs:
        assert envs.obs_spec == {"vector": ObsSpec("vector", (64,))} and envs.action_spec.size == 4
        assert envs.reset().obs["vector"][0].argmax() == 0
        assert envs.step(one_hot([2], 4)).obs["vector"][0].argmax() == 1


def test_a_window_keeps_the_pace_and_draws_every_frame(headless, monkeypatch):
    drawn = []
    render = CartPoleEnv.render
    monkeypatch.setattr(CartPoleEnv, "render", lambda env: drawn.append(env.metadata["render_fps"]) or render(env))
    metadata = dict(CartPoleEnv.metadata)
    with make_envs(config("classic_control", "CartPole-v1", fps=200), render_mode="human") as envs:
        envs.reset()
        assert envs.render() is None
        envs.step(one_hot([0], 2))
        start = time.monotonic()
        for _ in range(6):
            envs.step(one_hot([0], 2))
        assert 6 / 200 * 0.7 < time.monotonic() - start < 1.0
    assert drawn == [200] * 8  # once each: Gymnasium's environments draw themselves
    assert CartPoleEnv.metadata == metadata


def test_raw_environments_are_asked_to_draw_at_the_pace(registered):
    registered["Mine"] = MyRaw
    with pytest.warns(UserWarning, match="infinite bounds"):
        envs = make_envs(config("Mine", fps=100), render_mode="human")
    with envs:
        envs.reset()
        start = time.monotonic()
        for _ in range(3):
            envs.step(np.ones((1, 1), np.float32))
        assert 0.03 * 0.9 < time.monotonic() - start < 1.0
        assert base(envs).calls == ["reset", "render", *[[1.0], "render"] * 3]
        assert base(envs).config.render_mode == "human"


def test_what_cannot_draw_still_runs_in_a_window(registered):
    registered["Duck"] = MyDuck
    with make_envs(config("Duck", fps=1000), render_mode="human") as envs:
        envs.reset()
        assert envs.step(one_hot([0], 2)).reward.tolist() == [1]


def test_an_environment_that_gives_frames_gets_a_window(headless):
    with make_envs(config("toy", "Catch-v0", fps=500), render_mode="human") as envs:
        envs.reset()
        start = time.monotonic()
        for _ in range(5):
            envs.step(one_hot([1], 3))
        assert time.monotonic() - start < 0.4  # Catch's own 10 frames per second would take 0.5
