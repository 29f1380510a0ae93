"""The boundary of episodes, flags, faults and closing, in this process and in workers."""

from __future__ import annotations

import gc
import os
import signal
import time

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from xrl.common.errors import ConfigError, EnvironmentFault
from xrl.environment.build import make_envs
from xrl.environment.vector import RowEnvs, make_vector
from xrl.environment.wrappers import CanonicalEnv

from .examples import Misbehaving, Numbered, Probe, config, one_hot

BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


def numbered_envs(asynchronous: bool, *lengths: tuple[int, ...]) -> RowEnvs:
    factories = [lambda each=each, i=i: CanonicalEnv(Numbered(each), f"environment {i}")
                 for i, each in enumerate(lengths)]
    return RowEnvs(make_vector(factories, asynchronous), seeds=range(len(lengths)))


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


@pytest.mark.parametrize(("how", "message"), [
    ("nan", "step returned an observation whose 'vector' holds nan at flat index 1"),
    ("shape", r"step returned an observation whose 'vector' is float32 of shape \(3,\)"),
    ("dtype", "step returned an observation whose 'vector' is <U1"),
    ("reward", "step returned a reward of inf"),
    ("raise", "step raised ZeroDivisionError: 100 % 0"),
    ("raise in reset", "reset raised KeyError: 'no level file'"),
    ("four values", "step raised ValueError: not enough values to unpack"),
])
@BOTH
def test_a_fault_names_environment_id_and_cause(asynchronous, how, message, recwarn):
    factories = [lambda: CanonicalEnv(_Good(), "environment 0 (Mine/mine-v0)"),
                 lambda: CanonicalEnv(Misbehaving(how), "environment 1 (Mine/mine-v0)")]
    envs = RowEnvs(make_vector(factories, asynchronous), [0, 1])
    with pytest.raises(EnvironmentFault, match=rf"environment 1 \(Mine/mine-v0\): {message}") as caught:
        envs.reset()
        for _ in range(3):
            envs.step(one_hot([0, 0], 2))
    assert caught.value.__cause__ is not None
    if asynchronous and how == "raise":
        assert 'raise ZeroDivisionError("100 % 0")' in str(caught.value.__cause__)
    _closes_quickly(envs)
    assert not [warning for warning in recwarn if "Worker" in str(warning.message)]


class _Good(Misbehaving):
    def __init__(self) -> None:
        super().__init__("never")

    def reset(self, *, seed=None, options=None):
        self.steps = -1000
        return super().reset(seed=seed)


def _closes_quickly(envs: RowEnvs) -> None:
    workers = envs._vector.processes if hasattr(envs._vector, "processes") else []
    start = time.monotonic()
    envs.close()
    envs.close()
    assert time.monotonic() - start < 1.5
    assert not any(worker.is_alive() for worker in workers)


def test_of_several_faults_the_first_environments_is_told():
    factories = [lambda label=f"environment {i}": CanonicalEnv(Misbehaving("nan"), label) for i in range(3)]
    envs = RowEnvs(make_vector(factories, asynchronous=True), [0, 1, 2])
    envs.reset()
    with pytest.raises(EnvironmentFault, match="environment 0"):
        for _ in range(3):
            envs.step(one_hot([0, 0, 0], 2))
    _closes_quickly(envs)


def test_a_worker_that_dies_is_a_fault():
    factories = [lambda: CanonicalEnv(_Good(), "environment 0"),
                 lambda: CanonicalEnv(Misbehaving("exit"), "environment 1")]
    envs = RowEnvs(make_vector(factories, asynchronous=True), [0, 1])
    envs.reset()
    with pytest.raises(EnvironmentFault, match="ended without a word"):
        for _ in range(3):
            envs.step(one_hot([0, 0], 2))
    _closes_quickly(envs)


class _Slow(Probe):
    def step(self, action):
        time.sleep(60)
        return super().step(action)


def test_closing_in_the_middle_of_a_step_does_not_wait_for_it(monkeypatch):
    monkeypatch.setattr("xrl.environment.vector._PATIENCE", 0.1)
    vector = make_vector([lambda: CanonicalEnv(_Slow(), "environment 0")], asynchronous=True)
    vector.reset()
    vector.step_async(one_hot([0], 2))
    start = time.monotonic()
    vector.close()
    assert time.monotonic() - start < 5 and not vector.processes[0].is_alive()


def test_workers_leave_ctrl_c_to_the_run(registered):
    registered["Mine"] = Probe
    with make_envs(config("Mine", vectorize="async", parallels=2)) as envs:
        envs.reset()
        for worker in envs._vector.processes:
            os.kill(worker.pid, signal.SIGINT)
        time.sleep(0.05)
        assert envs.step(one_hot([0, 0], 2)).reward.tolist() == [1, 1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@BOTH
def test_environments_of_different_spaces_are_refused(asynchronous):
    factories = [lambda: CanonicalEnv(Probe(), "environment 0"),
                 lambda: CanonicalEnv(Probe(spaces.Discrete(3)), "environment 1")]
    with pytest.raises(ConfigError, match="same spaces"):
        make_vector(factories, asynchronous)
    gc.collect()


@BOTH
def test_frames_come_in_rgb_array_only(asynchronous):
    vectorize = "async" if asynchronous else "sync"
    with make_envs(config("toy", "Catch-v0", parallels=2, vectorize=vectorize), render_mode="rgb_array") as envs:
        envs.reset()
        frames = envs.render()
        assert len(frames) == 2 and frames[0].shape == (256, 256, 3) and frames[0].dtype == np.uint8
    with make_envs(config("toy", "Catch-v0", vectorize=vectorize)) as envs:
        envs.reset()
        assert envs.render() is None
