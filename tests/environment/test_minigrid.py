"""MiniGrid's three views, beside MiniGrid's own wrappers."""

from __future__ import annotations

import cv2
import gymnasium
import minigrid
import numpy as np
import pytest
from minigrid.wrappers import OneHotPartialObsWrapper, RGBImgObsWrapper, RGBImgPartialObsWrapper

from xrl.common.errors import ConfigError
from xrl.common.row import ActionSpec, ObsSpec
from xrl.environment import check_env, make_envs

from .examples import config, one_hot
from .restoring import elsewhere, reference

DOOR = "MiniGrid-DoorKey-6x6-v0"
gymnasium.register_envs(minigrid)


def grid(env_id=DOOR, **keys):
    return config("minigrid", env_id, **keys)


def played(envs, env, count=60):
    """Rows, and what MiniGrid's own environment observes after the same actions."""
    obs, _ = env.reset(seed=1)
    yield envs.reset(), obs
    for action in np.random.default_rng(0).integers(7, size=count):
        row = envs.step(one_hot([action], 7))
        obs, reward, terminated, truncated, _ = env.step(action)
        assert (row.reward[0], row.is_terminal[0]) == (np.float32(reward), terminated)
        yield row, obs
        if terminated or truncated:
            return


@pytest.mark.parametrize(("keys", "wrapper"), [
    ({}, RGBImgPartialObsWrapper), ({"env_kwargs": {"view": "full_pixels"}}, RGBImgObsWrapper)])
def test_pixels(keys, wrapper):
    with make_envs(grid(**keys)) as envs:
        assert envs.obs_spec == {"image": ObsSpec("image", (64, 64, 3))}  # this mission is always the same
        assert envs.action_spec == ActionSpec("discrete", 7)
        for row, obs in played(envs, wrapper(gymnasium.make(DOOR))):
            expected = cv2.resize(obs["image"], (64, 64), interpolation=cv2.INTER_AREA)
            np.testing.assert_array_equal(row.obs["image"][0], expected)


def test_codes():
    with make_envs(grid(env_kwargs={"view": "codes"})) as envs:
        assert envs.obs_spec == {"cells": ObsSpec("vector", (7 * 7 * 20,)), "direction": ObsSpec("vector", (4,))}
        for row, obs in played(envs, OneHotPartialObsWrapper(gymnasium.make(DOOR))):
            np.testing.assert_array_equal(row.obs["cells"][0], obs["image"].reshape(-1))
            assert row.obs["direction"][0].argmax() == obs["direction"] and row.obs["direction"].sum() == 1


@pytest.mark.parametrize("view", ["pixels", "codes"])
def test_what_varies_in_a_mission_is_seen(view):
    """Fetch: one of 5 ways to begin, 6 colours, 2 kinds."""
    ways = ["get a", "go get a", "fetch a", "go fetch a", "you must fetch a"]
    colours, kinds = ["red", "green", "blue", "purple", "yellow", "grey"], ["key", "ball"]
    env = gymnasium.make("MiniGrid-Fetch-5x5-N2-v0")
    missions = set()
    for seed in range(12):
        mission = env.reset(seed=seed)[0]["mission"]
        with make_envs(grid("MiniGrid-Fetch-5x5-N2-v0", env_seed=seed, env_kwargs={"view": view})) as envs:
            parts = np.split(envs.reset().obs["mission"][0], [5, 11])
        way, colour, kind = (part.argmax() for part in parts)
        assert all(part.sum() == 1 for part in parts)
        assert mission == f"{ways[way]} {sorted(colours)[colour]} {kinds[kind]}"
        missions.add(mission)
    assert len(missions) > 5


def test_max_steps_is_a_truncation():
    with make_envs(grid(env_kwargs={"max_steps": 5})) as envs:
        assert envs.time_limit == 5
        envs.reset()
        rows = [envs.step(one_hot([0], 7)) for _ in range(5)]
    assert [row.is_last[0] for row in rows] == [False] * 4 + [True] and not rows[-1].is_terminal[0]


@pytest.mark.parametrize(("env_id", "keys", "message"), [
    ("MiniGrid-DoorKey-6x7-v0", {}, r"unknown in minigrid. Did you mean 'MiniGrid-DoorKey-6x6-v0'\?"),
    ("CartPole-v1", {}, "unknown in minigrid"),
    (DOOR, {"env_kwargs": {"view": "words"}}, "env_kwargs.view: 'words' is unknown; use one of pixels, full_pixels, "),
    (DOOR, {"env_kwargs": {"size": "x"}}, "cannot be constructed with env_kwargs"),
])
def test_what_there_is_not_is_refused(env_id, keys, message):
    with pytest.raises(ConfigError, match=message):
        make_envs(grid(env_id, **keys))


def test_a_saved_state_goes_on(tmp_path):
    keys = {"env_name": "minigrid", "environment.time_limit": 40, "parallels": 2}
    played = [reference({**keys, "env_id": env_id, "env_kwargs": {"view": view}}, 4, 90, 20) for env_id, view in (
        (DOOR, "pixels"), ("MiniGrid-Dynamic-Obstacles-5x5-v0", "codes"), ("MiniGrid-LockedRoom-v0", "codes"))]
    for found in elsewhere(played, tmp_path / "played"):
        assert found["points"] >= 4 and not found["wrong"]


@pytest.mark.parametrize("vectorize", ["sync", "async"])
def test_workers_and_films(vectorize):
    with make_envs(grid(parallels=2, vectorize=vectorize), render_mode="rgb_array") as envs:
        envs.reset()
        assert envs.step(one_hot([1, 2], 7)).obs["image"].std() > 0 and envs.picture().shape == (192, 192, 3)


def test_the_doctor_finds_nothing():
    assert not [each for each in check_env(grid(), 60) if each.status in ("failed", "warning")]
