"""The boundary of episodes, flags, faults and closing, in this process and in workers."""

from __future__ import annotations

import gc
from functools import partial

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from xrl.common.errors import ConfigError, EnvironmentFault
from xrl.environment.build import make_envs
from xrl.environment.vector import RowEnvs
from xrl.environment.wrappers import CanonicalEnv

from .examples import Misbehaving, Numbered, Probe, config, one_hot, row_envs

BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


def numbered_envs(asynchronous: bool, *lengths: tuple[int, ...]) -> RowEnvs:
    return row_envs(asynchronous, *(partial(Numbered, each) for each in lengths))


@BOTH
def test_every_frame_across_the_boundary(asynchronous):
    """Written by hand. Columns: episode, frame, action that the environment saw; then the row's action, reward, flags
    (first, last, terminal). Environment 0 has episodes of 2 (terminated) and 1 (truncated) steps, environment 1 of 3.
    """
    expected_0 = [(0, 0, -1, None, 0, "F.."), (0, 1, 0, 0, 1, "..."), (0, 2, 1, 1, 2, ".LT"),
                  (1, 0, -1, None, 0, "F.."), (1, 1, 3, 3, 11, ".L."), (2, 0, -1, None, 0, "F..")]
    expected_1 = [(0, 0, -1, None, 0, "F.."), (0, 1, 0, 0, 1, "..."), (0, 2, 1, 1, 2, "..."),
                  (0, 3, 2, 2, 3, ".LT"), (1, 0, -1, None, 0, "F.."), (1, 1, 4, 4, 11, "...")]
    with numbered_envs(asynchronous, (2, 1), (3,)) as envs:
        rows = [envs.reset()]
        rows += [envs.step(one_hot([action, action], 5)) for action in range(5)]
    for number, row in enumerate(rows):
        for env, expected in enumerate((expected_0[number], expected_1[number])):
            *frame, action, reward, flags = expected
            assert row.obs["vector"][env].tolist() == frame
            assert row.action[env].tolist() == [float(action == index) for index in range(5)]
            assert row.reward[env] == reward
            seen = [row.is_first[env], row.is_last[env], row.is_terminal[env]]
            assert seen == [flag != "." for flag in flags], (number, env)


@BOTH
def test_a_later_reset_cuts_running_episodes(asynchronous):
    with numbered_envs(asynchronous, (2,), (3,)) as envs:
        envs.reset()
        envs.step(one_hot([1, 1], 5))
        assert envs.step(one_hot([1, 1], 5)).is_last.tolist() == [True, False]
        row = envs.reset()
        assert row.is_first.all() and not row.is_last.any() and not row.action.any() and not row.reward.any()
        assert row.obs["vector"].tolist() == [[1, 0, -1], [1, 0, -1]]
        row = envs.step(one_hot([1, 1], 5))  # env 0 was over before the reset: it must not be reset twice
        assert row.obs["vector"].tolist() == [[1, 1, 1], [1, 1, 1]] and not row.is_first.any()


@BOTH
def test_rows_own_their_arrays(asynchronous):
    with numbered_envs(asynchronous, (9,)) as envs:
        action = one_hot([2], 5)
        first = envs.reset()
        second = envs.step(action)
        action[:] = 7
        third = envs.step(one_hot([3], 5))
        assert first.obs["vector"].tolist() == [[0, 0, -1]]
        assert second.obs["vector"].tolist() == [[0, 1, 2]] and second.action.tolist() == [[0, 0, 1, 0, 0]]
        assert second.reward.tolist() == [1] and not second.is_first.any()
        for array in (second.action, second.reward, second.obs["vector"]):
            assert array.dtype == np.float32
        third.is_last[:] = True  # what a reader does to a row must not reach the environments
        assert not envs.step(one_hot([3], 5)).is_first.any()


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_other_autoreset_modes_are_refused(mode):
    vector = SyncVectorEnv([lambda: CanonicalEnv(Numbered(), "environment 0")], autoreset_mode=mode)
    with pytest.raises(ConfigError, match=r"autoreset_mode.*NEXT_STEP"):
        RowEnvs(vector, [0])


def test_step_needs_a_reset_and_the_right_shape():
    with numbered_envs(False, (2,), (2,)) as envs:
        with pytest.raises(RuntimeError, match="reset"):
            envs.step(one_hot([0, 0], 5))
        envs.reset()
        with pytest.raises(ValueError, match=r"\(1, 5\).*\(2, 5\)"):
            envs.step(one_hot([0], 5))


@BOTH
def test_a_wrong_action_is_the_callers_fault_not_the_environments(asynchronous):
    with numbered_envs(asynchronous, (2,)) as envs:
        envs.reset()
        with pytest.raises(ValueError, match="one-hot") as caught:
            envs.step(np.full((1, 5), 0.2, np.float32))
        assert not isinstance(caught.value, EnvironmentFault)


@BOTH
def test_the_first_reset_is_fatal_and_names_environment_id_and_cause(asynchronous):
    envs = row_envs(asynchronous, partial(Misbehaving, "never"), partial(Misbehaving, "raise in reset"))
    with envs, pytest.raises(EnvironmentFault, match=r"environment 1 .*: reset raised KeyError: 'no l") as told:
        envs.reset()
    assert told.value.__cause__ is not None
    if asynchronous:
        assert 'raise KeyError("no level file")' in str(told.value.__cause__)


def test_of_several_faults_the_first_environments_is_told():
    envs = row_envs(True, *3 * [partial(Misbehaving, "raise in reset")])
    with envs, pytest.raises(EnvironmentFault, match="environment 0"):
        envs.reset()


@BOTH
def test_environments_of_different_spaces_are_refused(asynchronous):
    with pytest.raises(ConfigError, match="same spaces"):
        row_envs(asynchronous, Probe, lambda: Probe(spaces.Discrete(3)))
    gc.collect()


@BOTH
def test_frames_come_in_rgb_array_only(asynchronous):
    vectorize = "async" if asynchronous else "sync"
    with make_envs(config("toy", "Catch-v0", parallels=2, vectorize=vectorize), render_mode="rgb_array") as envs:
        envs.reset()
        frames = envs.render()
        assert len(frames) == 2 and frames[0].shape == (256, 256, 3) and frames[0].dtype == np.uint8
        assert np.array_equal(envs.picture(), frames[0]) and not np.array_equal(frames[0], frames[1])
    with make_envs(config("toy", "Catch-v0", vectorize=vectorize)) as envs:
        envs.reset()
        assert envs.render() is None
