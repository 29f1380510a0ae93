"""The Control Suite as DreamerV2 plays it, beside dm_control itself."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode

from xrl.common.errors import ConfigError
from xrl.common.row import ActionSpec, ObsSpec
from xrl.environment import check_env, make_envs
from xrl.environment.dmc import Suite
from xrl.environment.opengl import choose_renderer

from .examples import config
from .restoring import elsewhere, reference

VECTORS = {"env_kwargs": {"vision": False}}


def dmc(task="walker_walk", **keys):
    return config("dmc", task, **{"environment": {"action_repeat": 2}, **keys})


def oracle(domain, task, seed):
    """dm_control's own environment in the episode that ``seed`` begins."""
    choose_renderer()
    from dm_control import suite

    generator, _ = seeding.np_random(seed)
    return suite.load(domain, task, task_kwargs={"random": np.random.RandomState(generator.integers(2**32))})


def inner(envs) -> Suite:
    """The first environment's own layer."""
    return envs._vector.envs[0].unwrapped._env


def actions(count, size):
    return np.random.default_rng(0).uniform(-1, 1, (count, size)).astype(np.float32)


def test_vectors_are_those_of_dm_control_and_rewards_are_summed():
    expected = oracle("walker", "walk", 7)
    with make_envs(dmc(env_seed=7, **VECTORS)) as envs:
        assert envs.obs_spec == {"height": ObsSpec("vector", (1,)), "orientations": ObsSpec("vector", (14,)),
                                 "velocity": ObsSpec("vector", (9,))}
        assert envs.action_spec == ActionSpec("continuous", 6) and envs.time_limit == 500
        row, frame = envs.reset(), expected.reset()
        for action in actions(20, 6):
            for name, value in frame.observation.items():
                np.testing.assert_array_equal(row.obs[name][0], np.float32(value).reshape(-1))
            row = envs.step(action[None])
            frames = [expected.step(action) for _ in range(2)]
            frame = frames[-1]
            assert row.reward[0] == np.float32(frames[0].reward + frames[1].reward)


def test_the_bounds_of_actions_are_the_tasks_own():
    """[-1, 1] of the networks is what dm_control's specification says; quadruped's joints have several ranges."""
    with make_envs(dmc("quadruped_walk", **VECTORS)) as envs:
        wanted = oracle("quadruped", "walk", 1).action_spec()
        box = envs._vector.envs[0].unwrapped.action_space
        assert (box.low == wanted.minimum).all() and (box.high == wanted.maximum).all() and len({*box.high}) > 1


@pytest.mark.parametrize(("repeat", "steps"), [(2, 500), (3, 334)])
def test_the_time_limit_is_a_truncation(repeat, steps):
    """1,000 frames, the last action held for what is left of them."""
    with make_envs(dmc("cartpole_swingup", environment={"action_repeat": repeat}, **VECTORS)) as envs:
        assert envs.time_limit == steps
        row, count = envs.reset(), 0
        while not row.is_last[0]:
            row, count = envs.step(np.zeros((1, 1), np.float32)), count + 1
        assert count == steps and not row.is_terminal[0]
        assert envs.step(np.zeros((1, 1), np.float32)).is_first[0]


def test_a_discount_of_zero_is_terminal():
    with make_envs(dmc("cartpole_swingup", **VECTORS)) as envs:
        envs.reset()
        frame = envs.step(np.zeros((1, 1), np.float32))
        inner(envs)._env.task.get_termination = lambda physics: 0.0
        row = envs.step(np.zeros((1, 1), np.float32))
    assert not frame.is_last[0] and row.is_last[0] and row.is_terminal[0]
    assert row.reward[0] < 1.0  # of the one frame that there was


def test_seeds_are_episodes_and_copies_differ():
    first = []
    for seed in (3, 3, 4):
        with make_envs(dmc("reacher_easy", env_seed=seed, parallels=2, **VECTORS)) as envs:
            first.append(envs.reset().obs["to_target"])
            assert not np.array_equal(first[-1], envs.reset().obs["to_target"])
    np.testing.assert_array_equal(first[0], first[1])
    np.testing.assert_array_equal(first[0][1], first[2][0])  # env_seed + 1 is the next copy's
    assert not np.array_equal(first[0][0], first[0][1])


def test_a_random_body_is_the_runs_own():
    """lqr draws its springs when it is made; training and evaluation should not have different ones."""
    bodies = []
    for seed, offset in ((1, 0), (1, 1000), (2, 0)):
        with make_envs(dmc("lqr_lqr_2_1", env_seed=seed, **VECTORS), seed_offset=offset) as envs:
            bodies.append(inner(envs)._env.physics.model.jnt_stiffness.copy())
    assert (bodies[0] == bodies[1]).all() and not (bodies[0] == bodies[2]).all()


@pytest.mark.parametrize(("task", "keys", "message"), [
    ("walker_wlk", VECTORS, r"env_id: 'walker_wlk' is unknown in dmc. Did you mean 'walker_walk'\?"),
    ("cup_catch", VECTORS, r"Did you mean 'ball_in_cup_catch'\?"),
    ("walker_walk", {"env_kwargs": {"visio": False}}, "unexpected keyword argument 'visio'"),
])
def test_what_there_is_not_is_refused(task, keys, message):
    with pytest.raises(ConfigError, match=message):
        make_envs(dmc(task, **keys))


def test_domains_with_underscores():
    with make_envs(dmc("ball_in_cup_catch", **VECTORS)) as envs:
        assert envs.reset().obs["position"].shape == (1, 4)


def test_a_saved_state_goes_on(tmp_path):
    """Reacher and point mass change their model at every reset. (All 51 tasks were tried once.)"""
    keys = {"env_name": "dmc", "env_seed": 2, "environment.action_repeat": 2, "environment.time_limit": 20,
            "parallels": 2, **VECTORS}
    played = [reference({**keys, "env_id": task}, 4, 50, 15) for task in ("walker_walk", "reacher_easy",
                                                                           "point_mass_hard")]
    for found in elsewhere(played, tmp_path / "played"):
        assert found["points"] >= 4 and not found["wrong"]


def test_the_doctor_finds_nothing():
    assert not [each for each in check_env(dmc(**VECTORS), 60) if each.status in ("failed", "warning")]


# Pictures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("domain", "task", "camera"), [("walker", "walk", 0), ("quadruped", "walk", 2)])
def test_a_picture_is_the_published_cameras(renderer, domain, task, camera):
    expected = oracle(domain, task, 1)
    with make_envs(dmc(f"{domain}_{task}")) as envs:
        assert envs.obs_spec == {"image": ObsSpec("image", (64, 64, 3))}
        row, bounds = envs.reset(), expected.action_spec()
        expected.reset()
        for action in [None, *actions(2, envs.action_spec.size)]:
            if action is not None:
                row = envs.step(action[None])
                for _ in range(2):
                    expected.step((bounds.minimum + bounds.maximum) / 2
                                  + (bounds.maximum - bounds.minimum) / 2 * action.astype(np.float64))
            np.testing.assert_array_equal(row.obs["image"][0], expected.physics.render(64, 64, camera_id=camera))
    expected.physics.free()


def test_a_picture_is_drawn_once_for_each_step(renderer, monkeypatch):
    drawn = []
    monkeypatch.setattr(Suite, "picture", lambda suite, *size: drawn.append(size) or np.zeros((*size, 3), np.uint8))
    with make_envs(dmc(environment={"action_repeat": 4})) as envs:
        envs.reset()
        envs.step(np.zeros((1, 6), np.float32))
    assert drawn == [(64, 64)] * 2


def test_pictures_go_on_from_a_saved_state(renderer, tmp_path):
    keys = {"env_name": "dmc", "env_id": "walker_walk", "environment.time_limit": 6}
    (found,) = elsewhere([reference(keys, 2, 8, 7)], tmp_path / "played")
    assert found["points"] >= 2 and not found["wrong"]


@pytest.mark.parametrize("vectorize", ["sync", "async"])
def test_a_film_of_vectors(renderer, vectorize):
    with make_envs(dmc(vectorize=vectorize, **VECTORS), render_mode="rgb_array") as envs:
        assert envs._vector.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
        envs.reset()
        assert envs.picture().shape == (240, 320, 3) and envs.picture().std() > 1
