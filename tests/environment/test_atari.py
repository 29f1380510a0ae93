"""The law of the Atari environments, measured at the emulator."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from xrl.common.errors import ConfigError
from xrl.common.row import ObsSpec
from xrl.environment import make_envs

from .examples import config, one_hot


def atari(env_id="ALE/Pong-v5", env_kwargs=None, **environment):
    return make_envs(config("atari", env_id, env_kwargs=env_kwargs or {},
                            environment={"action_repeat": 4, **environment}))


def emulator(envs, index=0):
    return envs._vector.envs[index].unwrapped


def record(envs):
    """Every frame of the emulator from now on: (action, gray screen)."""
    base, frames = emulator(envs), []
    step = base.step

    def recording(action):
        result = step(action)
        frames.append((action, base.ale.getScreenGrayscale()))
        return result

    base.step = recording
    return frames


def test_the_emulator_is_left_to_the_wrappers():
    with atari() as envs:
        ale = emulator(envs).ale
        assert ale.getInt("max_num_frames_per_episode") == 0
        assert ale.getFloat("repeat_action_probability") == 0
        assert emulator(envs)._frameskip == 1
        assert envs.time_limit == 27_000 and envs.action_repeat == 4
        assert envs.obs_spec == {"image": ObsSpec("image", (64, 64, 1))}


@pytest.mark.parametrize(("full", "size"), [(False, 6), (True, 18)])
def test_action_sets(full, size):
    with atari(full_action_space=full) as envs:
        assert envs.action_spec.size == size


@pytest.mark.parametrize(("noop_max", "seen"), [(0, {0}), (1, {1}), (3, {1, 2, 3})])
def test_resets_are_followed_by_no_ops_within_the_range(noop_max, seen):
    with atari(noop_max=noop_max) as envs:
        frames = record(envs)
        counts = set()
        for _ in range(25):
            frames.clear()
            envs.reset()
            counts.add(len(frames))
            assert all(action == 0 for action, _ in frames)  # no fire
    assert counts == seen


def test_thirty_no_ops_are_the_default():
    with atari() as envs:
        counts = [(envs.reset(), emulator(envs).ale.getEpisodeFrameNumber())[1] for _ in range(60)]
    assert 1 <= min(counts) <= 4 and 27 <= max(counts) <= 30


@pytest.mark.parametrize(("repeat", "pooled"), [(4, 2), (2, 2), (1, 1)])
def test_observations_are_the_maximum_of_the_last_two_frames_resized_by_area(repeat, pooled):
    with atari(action_repeat=repeat, sticky=0) as envs:
        frames = record(envs)
        row = envs.reset()
        expected = cv2.resize(frames[-1][1], (64, 64), interpolation=cv2.INTER_AREA)  # alone: no earlier frame is seen
        np.testing.assert_array_equal(row.obs["image"][0, :, :, 0], expected)
        changed = 0
        for step in range(20):
            frames.clear()
            row = envs.step(one_hot([2 + step % 2], 6))
            assert len(frames) == repeat
            screens = [screen for _, screen in frames[-pooled:]]
            expected = cv2.resize(np.max(screens, axis=0), (64, 64), interpolation=cv2.INTER_AREA)
            np.testing.assert_array_equal(row.obs["image"][0, :, :, 0], expected)
            changed += (screens[0] != screens[-1]).any()
    assert changed > 0 or repeat < 4  # else the maximum would be no test


def test_colour():
    with atari(grayscale=False, sticky=0) as envs:
        assert envs.obs_spec == {"image": ObsSpec("image", (64, 64, 3))}
        envs.reset()
        image = envs.step(one_hot([0], 6)).obs["image"]
        assert image.shape == (1, 64, 64, 3) and (image[..., 0] != image[..., 2]).any()


def test_each_frame_repeats_the_last_action_with_probability_one_quarter():
    """Ask always for another action than the one in force: frames until it takes are geometric."""
    with atari() as envs:
        frames = record(envs)
        envs.reset()
        delays = []
        for _ in range(600):
            in_force = frames[-1][0]
            wanted = (in_force + 1) % 6
            frames.clear()
            row = envs.step(one_hot([wanted], 6))
            actions = [action for action, _ in frames]
            delays.append(sum(action == in_force for action in actions))
            assert actions == [in_force] * delays[-1] + [wanted] * (len(actions) - delays[-1])
            if row.is_last[0]:
                envs.step(one_hot([0], 6))
    delays = np.array(delays)
    assert (delays >= 1).mean() == pytest.approx(0.25, abs=0.06)  # standard error 0.018
    assert (delays >= 2).mean() == pytest.approx(0.0625, abs=0.03)


def test_without_stickiness_every_frame_obeys():
    with atari(sticky=0) as envs:
        frames = record(envs)
        envs.reset()
        for step in range(50):
            frames.clear()
            envs.step(one_hot([step % 6], 6))
            assert [action for action, _ in frames] == [step % 6] * 4


def test_the_seed_decides_no_ops_and_stickiness():
    def trajectory(seed):
        with make_envs(config("atari", "ALE/Pong-v5", env_seed=seed, environment={"action_repeat": 4})) as envs:
            frames = record(envs)
            rows = [envs.reset(), *(envs.step(one_hot([2 + step % 2], 6)) for step in range(40)), envs.reset()]
        return [action for action, _ in frames], np.stack([row.obs["image"] for row in rows])

    (actions, images), (again, images_again), (others, _) = trajectory(3), trajectory(3), trajectory(4)
    assert actions == again != others
    np.testing.assert_array_equal(images, images_again)


def test_the_time_limit_counts_agent_steps_without_the_no_ops_and_truncates():
    with atari(time_limit=6) as envs:
        envs.reset()
        rows = [envs.step(one_hot([0], 6)) for _ in range(7)]
    assert [bool(row.is_last[0]) for row in rows] == [False] * 5 + [True, False]
    assert not any(row.is_terminal[0] for row in rows) and rows[6].is_first[0]


def test_a_lost_game_is_terminal_and_its_last_picture_stale():
    with atari() as envs:
        rows = [envs.reset()]
        while not rows[-1].is_last[0] and len(rows) < 3000:
            rows.append(envs.step(one_hot([0], 6)))
        frames = emulator(envs).ale.getEpisodeFrameNumber()
        after = envs.step(one_hot([3], 6))
    assert rows[-1].is_last[0] and rows[-1].is_terminal[0] and sum(row.reward[0] for row in rows) <= -20
    assert not any(row.is_last[0] for row in rows[:-1])
    assert frames <= 30 + 4 * (len(rows) - 1)
    assert after.is_first[0] and not after.action.any() and after.reward[0] == 0
    # The game ended within the repeat, before a screen was read: the row shows the one before it.
    np.testing.assert_array_equal(rows[-1].obs["image"], rows[-2].obs["image"])


def test_a_lost_life_ends_nothing():
    with atari("ALE/Breakout-v5") as envs:
        envs.reset()
        lives, ale = [], emulator(envs).ale
        row = envs.step(one_hot([1], 4))
        while not row.is_last[0] and len(lives) < 2000:
            lives.append(ale.lives())
            row = envs.step(one_hot([1 + 2 * (len(lives) % 2)], 4))  # fire, left, fire, left
    assert set(lives) >= {5, 4, 3, 2, 1} and row.is_terminal[0] and ale.lives() == 0


def test_what_the_law_fixes_cannot_be_set_from_outside():
    with pytest.raises(ConfigError, match="frameskip"):
        atari(env_kwargs={"frameskip": 4})
    with atari(env_kwargs={"difficulty": 1}) as envs:
        assert emulator(envs)._game_difficulty == 1


@pytest.mark.parametrize("vectorize", ["sync", "async"])
def test_two_games_side_by_side(vectorize):
    keys = config("atari", "ALE/Pong-v5", parallels=2, vectorize=vectorize, environment={"action_repeat": 4})
    with make_envs(keys) as envs:
        envs.reset()
        for _ in range(25):
            row = envs.step(one_hot([2, 3], 6))
        assert row.obs["image"].shape == (2, 64, 64, 1) and row.obs["image"].dtype == np.uint8
        assert (row.obs["image"][0] != row.obs["image"][1]).any()
