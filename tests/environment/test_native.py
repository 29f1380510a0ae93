"""`vectorize: native` against the Gymnasium path, and where its generators differ against the bare emulator."""

from __future__ import annotations

import time
from pathlib import Path

import ale_py
import cv2
import numpy as np
import pytest
from scipy import stats

import xrl
from tests.agents.examples import records
from xrl.common.errors import ConfigError
from xrl.common.row import ObsSpec
from xrl.environment import make_envs

from .examples import Probe, config, one_hot

CERTAIN = {"sticky": 0, "noop_max": 0}
THREADS = Path("/proc/self/task")


def atari(vectorize="native", env_id="ALE/Pong-v5", parallels=2, env_seed=1, env_kwargs=None, **environment):
    return make_envs(config("atari", env_id, vectorize=vectorize, parallels=parallels, env_seed=env_seed,
                            env_kwargs=env_kwargs or {}, environment={"action_repeat": 4, **environment}))


def assert_same(left, right):
    for name in ("action", "reward", "is_first", "is_last", "is_terminal"):
        one, other = getattr(left, name), getattr(right, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, err_msg=name)
    assert left.obs.keys() == right.obs.keys() == {"image"}
    assert left.obs["image"].dtype == right.obs["image"].dtype == np.uint8
    np.testing.assert_array_equal(left.obs["image"], right.obs["image"])


# The same as Gymnasium's path, to the bit --------------------------------------------------------------------------


@pytest.mark.parametrize(("game", "steps", "endings", "environment"), [
    ("Breakout", 250, (2, 2), {"grayscale": False}),
    ("Freeway", 100, (6, 0), {"time_limit": 23}),
    ("Qbert", 150, (2, 0), {"action_repeat": 3, "full_action_space": True, "time_limit": 70}),
    ("Assault", 50, (14, 0), {"action_repeat": 1, "grayscale": False, "time_limit": 6}),
    ("SpaceInvaders", 60, (8, 0), {"action_repeat": 2, "time_limit": 11}),
])
def test_without_chance_every_row_is_that_of_gymnasiums_path(game, steps, endings, environment):
    """With random actions, through endings of both kinds, and with resets in the middle and right after an ending."""
    names = {"env_id": f"ALE/{game}-v5", **CERTAIN, **environment}
    with atari("sync", **names) as expected, atari("native", **names) as envs:
        for name in ("num_envs", "action_repeat", "obs_spec", "action_spec", "time_limit"):
            assert getattr(envs, name) == getattr(expected, name), name
        random, last, terminal = np.random.default_rng(0), 0, 0
        assert_same(expected.reset(), envs.reset())
        for step in range(steps):
            action = one_hot(random.integers(envs.action_spec.size, size=2), envs.action_spec.size)
            row = expected.step(action)
            assert_same(row, envs.step(action))
            last, terminal = last + row.is_last.sum(), terminal + row.is_terminal.sum()
            if step == 20 or (row.is_last.any() and last == endings[0]):
                assert_same(expected.reset(), envs.reset())
    assert (last, terminal) == endings  # else the boundary would not have been seen


def test_a_game_that_ends_with_the_time_limit_is_terminal():
    fire, rows = one_hot([1], 4), []
    with atari("sync", "ALE/Breakout-v5", 1, **CERTAIN) as envs:
        envs.reset()
        while not rows or not rows[-1].is_last[0]:
            rows.append(envs.step(fire))
    length = len(rows)
    for limit, terminal in ((length, True), (length - 1, False)):
        with atari("sync", "ALE/Breakout-v5", 1, **CERTAIN, time_limit=limit) as expected, \
                atari("native", "ALE/Breakout-v5", 1, **CERTAIN, time_limit=limit) as envs:
            assert_same(expected.reset(), envs.reset())
            for number in range(length + 5):
                row = envs.step(fire)
                assert_same(expected.step(fire), row)
                assert row.is_last[0] == (number + 1 == limit) and row.is_terminal[0] == (row.is_last[0] and terminal)


def test_the_time_limit_is_the_familys_where_none_is_set():
    with atari() as envs:
        assert envs.time_limit == 27_000 and envs.obs_spec == {"image": ObsSpec("image", (64, 64, 1))}


def test_rows_own_their_arrays():
    with atari(**CERTAIN, time_limit=2) as envs:
        action = one_hot([2, 3], 6)
        rows = [envs.reset(), envs.step(action), envs.step(action)]
        before = [row.obs["image"].copy() for row in rows]
        rows[-1].is_last[:] = rows[-1].is_terminal[:] = False  # what a reader does to a row must not reach the vector
        assert envs.step(action).is_first.all()
        for row, image in zip(rows, before, strict=True):
            np.testing.assert_array_equal(row.obs["image"], image)


# Chance ------------------------------------------------------------------------------------------------------------


def emulate(game, actions):
    """The game from its start, frame by frame: every picture (64, 64), the first before any action."""
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(ale_py.roms.get_rom_path(game))
    ale.reset_game()
    legal, screens = ale.getMinimalActionSet(), [ale.getScreenGrayscale()]
    for action in actions:
        ale.act(legal[action])
        screens.append(ale.getScreenGrayscale())
    return screens


def resized(screen):
    return cv2.resize(screen, (64, 64), interpolation=cv2.INTER_AREA)


def index_of(picture, pictures):
    """The place of the one among ``pictures`` that equals ``picture``."""
    (index,) = [i for i, each in enumerate(pictures) if np.array_equal(each, picture)]
    return index


def test_every_frame_repeats_the_last_action_with_the_probability_of_the_config():
    """After a no-op ask for fire: the frames until a shot is seen are geometric."""
    before, after, most = 4, 12, 8
    references = []
    for delay in range(most + 1):
        screens = emulate("carnival", [0] * (before + delay) + [1] * (after - delay))
        pairs = [np.maximum(screens[frame - 1], screens[frame]) for frame in range(before + 4, before + after + 1, 4)]
        references.append(np.stack([resized(pair) for pair in pairs]))
    delays = []
    with atari(env_id="ALE/Carnival-v5", parallels=4, sticky=0.25, noop_max=0) as envs:
        for _ in range(100):
            envs.reset()
            envs.step(one_hot([0] * 4, 6))
            seen = np.stack([envs.step(one_hot([1] * 4, 6)).obs["image"][..., 0] for _ in range(after // 4)], axis=1)
            delays += [index_of(each, references) for each in seen]
    expected = len(delays) * np.array([0.75, 0.75 / 4, 0.75 / 16, 1 / 64])  # 0, 1, 2, 3 or more
    assert stats.chisquare(np.bincount(np.minimum(delays, 3), minlength=4), expected).pvalue > 0.01


@pytest.mark.parametrize(("noop_max", "resets"), [(0, 2), (1, 2), (5, 30), (30, 15)])
def test_a_reset_is_followed_by_fewer_no_ops_than_noop_max_each_number_as_likely(noop_max, resets):
    pictures = [resized(screen) for screen in emulate("freeway", [0] * 31)]
    with atari(env_id="ALE/Freeway-v5", parallels=3, noop_max=noop_max) as envs:
        counts = [index_of(image, pictures) for _ in range(resets) for image in envs.reset().obs["image"][..., 0]]
    possible = max(noop_max, 1)
    assert set(counts) <= set(range(possible))
    if possible > 1:
        assert len(set(counts)) > 0.6 * possible
    if possible == 5:
        assert stats.chisquare(np.bincount(counts, minlength=5)).pvalue > 0.01


def rows_of(parallels=2, env_seed=1, steps=40, **env_kwargs):
    with atari(env_id="ALE/Freeway-v5", parallels=parallels, env_seed=env_seed, env_kwargs=env_kwargs,
               time_limit=9) as envs:
        rows = [envs.reset()]
        rows += [envs.step(one_hot([step % 3] * parallels, 3)) for step in range(steps)]
        rows.append(envs.reset())
    return rows


def test_the_seeds_decide_whatever_the_threads_do():
    alone, together, others = rows_of(num_threads=1), rows_of(num_threads=2), rows_of(env_seed=2)
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)
    images, shifted = (np.stack([row.obs["image"] for row in rows]) for rows in (alone, others))
    np.testing.assert_array_equal(images[:, 1:], shifted[:, :-1])  # environment i has seed env_seed + i
    assert (images[:, 0] != images[:, 1]).any()


@pytest.mark.parametrize("env_seed", [0, 2**31 + 7])
def test_every_seed_that_the_config_allows_is_one(env_seed):
    for one, other in zip(rows_of(1, env_seed, 12), rows_of(1, env_seed, 12), strict=True):
        assert_same(one, other)


# Errors and ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), [("frameskip", 4), ("stack_num", 4), ("reward_clipping", True),
                                             ("continuous", True), ("difficulty", 1)])
def test_what_the_law_fixes_or_the_vector_does_not_know_is_refused(name, value):
    with pytest.raises(ConfigError, match=rf"env_kwargs: {name} .*num_threads.*vectorize: sync"):
        atari(env_kwargs={name: value})


def test_a_wrong_number_of_threads_is_a_config_error():
    with pytest.raises(ConfigError, match=r"environments \(atari/ALE/Pong-v5\).*env_kwargs: {'num_threads': 'many'}"):
        atari(env_kwargs={"num_threads": "many"})


def test_an_unknown_game_is_suggested():
    with pytest.raises(ConfigError, match="ALE/Pong-v5"):
        atari(env_id="ALE/Pongg-v5")


def test_families_without_a_vector_of_their_own_refuse_it(registered):
    registered["Mine"] = Probe
    for names in (("classic_control", "CartPole-v1"), ("toy", "Catch-v0"), ("Mine", "any-v0")):
        with pytest.raises(ConfigError, match=rf"vectorize: native .*{names[0]}.*use sync or async"):
            make_envs(config(*names, vectorize="native"), render_mode="rgb_array")


def test_actions_must_be_one_hot_where_they_count():
    wrong = np.array([[0, 0, 1, 0, 0, 0], [0, 0, 0.5, 0.5, 0, 0]], np.float32)
    with atari(**CERTAIN, time_limit=1) as envs:
        envs.reset()
        for bad in (wrong, wrong * np.nan):
            with pytest.raises(ValueError, match="one-hot"):
                envs.step(bad)
        assert envs.step(one_hot([2, 2], 6)).is_last.all()
        assert not envs.step(wrong).action.any()  # ignored by the reset


def test_what_is_looked_at_is_stepped_in_this_process():
    keys = config("atari", "ALE/Pong-v5", vectorize="native", env_kwargs={"num_threads": 1})
    with make_envs(keys, render_mode="rgb_array") as envs:
        envs.reset()
        assert envs.render()[0].shape == (210, 160, 3)
    with make_envs(keys) as envs:
        assert envs.render() is None


@pytest.mark.skipif(not THREADS.exists(), reason="counts threads in /proc")
def test_closing_ends_the_threads_and_steps():
    before = len(list(THREADS.iterdir()))
    envs = atari(env_kwargs={"num_threads": 2})
    envs.reset()
    assert len(list(THREADS.iterdir())) > before
    envs.close()
    envs.close()
    deadline = time.monotonic() + 2
    while len(list(THREADS.iterdir())) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(list(THREADS.iterdir())) == before
    with pytest.raises(RuntimeError, match="closed"):
        envs.step(one_hot([0, 0], 6))


def test_a_run_trains_and_evaluates_with_it(tmp_path):
    runner = xrl.get_runner("DreamerV2", "atari", "ALE/Pong-v5", preset="debug", device="cpu", logger="none",
                            vectorize="native", parallels=2, running_steps=80, eval_interval=80, test_parallels=2,
                            model_dir=str(tmp_path), environment={"time_limit": 15})
    folder = runner.run()
    evaluations = [record for record in records(folder / "metrics.jsonl") if "eval/return" in record]
    assert [record["updates"] for record in evaluations] == [5] and (folder / "best_model.pth").exists()
