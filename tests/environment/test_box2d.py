"""CarRacing and LunarLander are Gymnasium's own, and go on where they were saved."""

from __future__ import annotations

import cv2
import gymnasium
import numpy as np
import pytest

from xrl.common.errors import ConfigError
from xrl.common.row import ActionSpec, ObsSpec
from xrl.environment import check_env, make_envs

from .examples import config, one_hot
from .restoring import elsewhere, reference


def test_lunar_lander_is_gymnasiums():
    expected = gymnasium.make("LunarLander-v3")
    obs, _ = expected.reset(seed=4)
    with make_envs(config("box2d", "LunarLander-v3", env_seed=4)) as envs:
        assert envs.obs_spec == {"vector": ObsSpec("vector", (8,))} and envs.action_spec == ActionSpec("discrete", 4)
        assert envs.time_limit == 1000
        row = envs.reset()
        while not row.is_last[0]:
            np.testing.assert_array_equal(row.obs["vector"][0], obs)
            row = envs.step(one_hot([2], 4))
            obs, reward, terminated, *_ = expected.step(2)
            assert row.reward[0] == np.float32(reward) and row.is_terminal[0] == terminated
        assert row.is_terminal[0]


def test_lunar_lander_is_continuous_if_asked():
    with make_envs(config("box2d", "LunarLander-v3", env_kwargs={"continuous": True})) as envs:
        assert envs.action_spec == ActionSpec("continuous", 2)


def test_car_racing_is_seen_in_colour_at_64():
    expected = gymnasium.make("CarRacing-v3")
    obs, _ = expected.reset(seed=1)
    with make_envs(config("box2d", "CarRacing-v3")) as envs:
        assert envs.obs_spec == {"image": ObsSpec("image", (64, 64, 3))}
        assert envs.action_spec == ActionSpec("continuous", 3)
        row = envs.reset()
        for action in np.random.default_rng(0).uniform(-1, 1, (4, 3)).astype(np.float32):
            assert obs.shape == (96, 96, 3)
            np.testing.assert_array_equal(row.obs["image"][0], cv2.resize(obs, (64, 64), interpolation=cv2.INTER_AREA))
            row = envs.step(action[None])
            obs, reward, *_ = expected.step(np.array([action[0], *(action[1:] + 1) / 2], np.float32))  # gas, brake
            np.testing.assert_allclose(row.reward[0], reward, rtol=1e-6)


def test_car_racing_is_discrete_if_asked():
    with make_envs(config("box2d", "CarRacing-v3", env_kwargs={"continuous": False})) as envs:
        assert envs.action_spec == ActionSpec("discrete", 5)
        envs.reset()
        assert envs.step(one_hot([3], 5)).obs["image"].shape == (1, 64, 64, 3)


def test_another_id_is_refused():
    with pytest.raises(ConfigError, match=r"unknown in box2d. Did you mean 'LunarLander-v3'\?"):
        make_envs(config("box2d", "LunarLandr-v3"))


def test_lunar_landers_state_goes_on(tmp_path):
    both = [reference({"env_name": "box2d", "env_id": "LunarLander-v3", "parallels": 2, **keys}, 6, 150, 60)
            for keys in ({}, {"env_kwargs": {"continuous": True, "enable_wind": True}})]
    for found in elsewhere(both, tmp_path / "played"):
        assert found["points"] >= 6 and not found["wrong"]


def test_car_racings_state_goes_on(tmp_path):
    keys = {"env_name": "box2d", "env_id": "CarRacing-v3", "environment.time_limit": 15}
    (found,) = elsewhere([reference(keys, 3, 20, 12)], tmp_path / "played")
    assert found["points"] >= 3 and not found["wrong"]


def test_bipedal_walker_says_why_its_state_does_not():
    """Its world remembers earlier episodes: the same episode played in a new one goes another way."""
    with make_envs(config("box2d", "BipedalWalker-v3")) as envs:
        envs.reset()
        assert envs.get_state() is None and envs.unsaveable == "BipedalWalker implements no get_state/set_state"


@pytest.mark.parametrize("vectorize", ["sync", "async"])
def test_workers_and_films(headless, vectorize):
    with make_envs(config("box2d", "LunarLander-v3", parallels=2, vectorize=vectorize),
                   render_mode="rgb_array") as envs:
        envs.reset()
        assert envs.step(one_hot([1, 2], 4)).obs["vector"].shape == (2, 8)
        assert envs.picture().shape == (400, 600, 3) and envs.picture().std() > 0


def test_the_doctor_finds_nothing(headless):
    assert not [each for each in check_env(config("box2d", "LunarLander-v3"), 60)
                if each.status in ("failed", "warning")]
