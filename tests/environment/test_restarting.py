"""Environments that raise or return nonsense are restarted, alone; in this process and in workers."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from xrl.common.errors import ConfigError, EnvironmentFault
from xrl.environment import RawEnvironment, make_envs
from xrl.environment.restarting import Failure, Restarting

from .examples import Each, Probe, config, one_hot, row_envs
from .restoring import same_rows
from .troubles import FIRST, Troubled, first_seen, troubled

BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
ACTION = one_hot([1, 1, 1], 2)


def rows_of(asynchronous, makes, steps=6, **keys):
    """The rows, the failures after each, and how many there were."""
    with row_envs(asynchronous, *makes, **keys) as envs:
        rows, failed = [envs.reset()], []
        for _ in range(steps):
            rows.append(envs.step(ACTION))
            failed.append(envs.failed)
        return rows, failed, envs.failures


def the_others_go_on(rows, asynchronous=False):
    expected, *_ = rows_of(asynchronous, 3 * [Troubled], len(rows) - 1)
    for row, good in zip(rows, expected, strict=True):
        for name in ("action", "reward", "is_first", "is_last", "is_terminal"):
            np.testing.assert_array_equal(getattr(row, name)[[0, 2]], getattr(good, name)[[0, 2]])
        np.testing.assert_array_equal(row.obs["vector"][[0, 2]], good.obs["vector"][[0, 2]])


@pytest.mark.parametrize(("how", "kind", "message"), [
    ("nan", "returned", "step returned an observation whose 'vector' holds nan at flat index 1"),
    ("shape", "returned", "step returned an observation whose 'vector' is float32 of shape (3,)"),
    ("dtype", "returned", "step returned an observation whose 'vector' is <U1"),
    ("reward", "returned", "step returned a reward of inf"),
    ("nan reward", "returned", "step returned a reward of nan"),
    ("raise", "raised", "step raised ZeroDivisionError: 100 % 0"),
    ("four values", "raised", "step raised ValueError: not enough values to unpack"),
])
@BOTH
def test_a_fault_cuts_its_own_episode_only(asynchronous, how, kind, message, recwarn):
    rows, failed, failures = rows_of(asynchronous, troubled(how))
    assert [len(each) for each in failed] == [0, 0, 1, 0, 0, 0] and failures == 1
    failure = failed[2][0]
    assert (failure.env, failure.label, failure.kind) == (1, "environment 1 (Mine/mine-v0)", kind)
    assert failure.detail.startswith(f"environment 1 (Mine/mine-v0): {message}")
    assert how != "raise" or 'raise ZeroDivisionError("100 % 0")' in failure.detail  # its own traceback
    cut = rows[3]
    assert cut.is_first.tolist() == [False, True, False] and not cut.is_last.any() and not cut.is_terminal.any()
    assert cut.action[:, 1].tolist() == [1, 0, 1] and cut.reward.tolist() == [1, 0, 1]
    assert cut.obs["vector"][1].tolist() == [np.float32(first_seen(1, 1)), 0]
    assert not rows[2].is_last.any() and rows[4].obs["vector"][1, 1] == 1 and not rows[4].is_first.any()
    the_others_go_on(rows)
    assert not recwarn


@BOTH
def test_two_runs_with_the_same_faults_are_the_same(asynchronous):
    one, other = (rows_of(asynchronous, troubled("raise", always=True), steps=20) for _ in range(2))
    assert all(map(same_rows, one[0], other[0])) and one[1] == other[1]
    assert one[2] == 20 // 3  # it fails at every third step, with another seed each time
    drawn = [row.obs["vector"][1].tolist() for row in one[0] if row.is_first[1]]
    assert drawn[1:] == [[np.float32(first_seen(1, number)), 0] for number in range(1, 7)]
    assert len({tuple(each) for each in drawn}) == 7


@BOTH
def test_a_fault_in_an_automatic_reset(asynchronous):
    rows, failed, _ = rows_of(asynchronous, troubled("reset", length=2), steps=5)
    assert [bool(row.is_last[1]) for row in rows] == [False, False, True, False, False, True]
    assert [bool(row.is_first[1]) for row in rows] == [True, False, False, True, False, False]
    assert failed[2][0].kind == "raised" and "reset raised KeyError: 'no level file'" in failed[2][0].detail
    assert rows[3].obs["vector"][1].tolist() == [np.float32(first_seen(1, 1)), 0] and rows[2].is_terminal[1]
    the_others_go_on(rows)


@BOTH
def test_a_fault_in_a_later_reset_of_all(asynchronous):
    with row_envs(asynchronous, *troubled("reset")) as envs:
        envs.reset()
        envs.step(ACTION)
        row = envs.reset()
        assert [failure.env for failure in envs.failed] == [1] and envs.failures == 1
        assert row.is_first.all() and row.obs["vector"][1].tolist() == [np.float32(first_seen(1, 1)), 0]
        envs.reset()
        assert envs.failed == () and envs.failures == 1


@BOTH
def test_several_may_fail_at_once(asynchronous):
    makes = [partial(Troubled, how="raise"), Troubled, partial(Troubled, how="nan")]
    rows, failed, failures = rows_of(asynchronous, makes)
    assert [(failure.env, failure.kind) for failure in failed[2]] == [(0, "raised"), (2, "returned")] and failures == 2
    assert rows[3].is_first.tolist() == [True, False, True]
    assert rows[3].obs["vector"][[0, 2], 0].tolist() == [np.float32(first_seen(0, 1)), np.float32(first_seen(2, 1))]


@pytest.mark.parametrize(("how", "message"), [
    ("again", "reset raised KeyError: 'no level file'"), ("other spaces", "has other spaces than before")])
@BOTH
def test_what_cannot_be_restarted_ends_the_run_with_both_reasons(asynchronous, how, message):
    cannot_be_restarted(row_envs(asynchronous, *troubled(how)), message)


@pytest.mark.parametrize("vectorize", ["sync", "async"])
def test_a_constructor_that_fails_at_a_restart(vectorize, registered):
    registered["Brittle"] = Brittle
    cannot_be_restarted(make_envs(config("Brittle", "once-v0", vectorize=vectorize)), "OSError: no licence left")


def cannot_be_restarted(envs, message):
    with envs:
        envs.reset()
        with pytest.raises(EnvironmentFault) as told:
            for _ in range(3):
                envs.step(ACTION[:envs.num_envs])
    assert "cannot be restarted: " in str(told.value) and message in str(told.value)
    assert "It had failed: environment" in str(told.value) and "step raised ZeroDivisionError" in str(told.value)


class Brittle(RawEnvironment):
    """Learns its seed at construction, from which it draws all; fails at its third step."""

    def __init__(self, env_config):
        super().__init__(env_config)
        if env_config.env_seed >= FIRST and env_config.env_id == "once-v0":
            raise OSError("no licence left")
        inner = Troubled(env_config.env_seed, "raise", always=True)
        inner.reset(seed=env_config.env_seed)
        self.inner, self.observation_space, self.action_space = inner, inner.observation_space, inner.action_space

    def reset(self):
        return self.inner.reset()

    def step(self, action):
        return self.inner.step(action)


@BOTH
def test_an_error_that_is_not_the_environments_passes(asynchronous):
    with row_envs(asynchronous, *troubled("config")) as envs:
        envs.reset()
        with pytest.raises(ConfigError, match="not the environment's fault"):
            rows = [envs.step(ACTION) for _ in range(3)]
            assert not rows


def test_the_broken_instance_is_closed_once_and_its_error_in_closing_is_ignored():
    made = []

    def make(seed):
        made.append(Troubled(seed, "raise", close_fails=True))
        return made[-1]

    with row_envs(False, make) as envs:
        envs.reset()
        for _ in range(3):
            envs.step(ACTION[:1])
        assert [env.closed for env in made] == [1, 0]
    assert [env.closed for env in made] == [1, 1]


def test_what_could_not_be_built_anew_is_not_closed_again():
    made = []

    def make(seed):
        if made:
            raise ConfigError("no licence left")
        made.append(Troubled(seed, "raise", close_fails=True))
        return made[-1]

    cannot_be_restarted(row_envs(False, make), "no licence left")
    assert made[0].closed == 1


def test_a_raw_environment_is_built_anew_with_another_seed(registered):
    registered["Brittle"] = Brittle
    with make_envs(config("Brittle", env_seed=5)) as envs:
        envs.reset()
        rows = [envs.step(ACTION[:1]) for _ in range(6)]
        assert envs._vector.envs[0].unwrapped.raw.env_config.env_seed == envs._vector.envs[0].seed >= FIRST
        assert rows[2].is_first[0] and rows[5].is_first[0] and envs.failures == 2


# The restarts are part of the state ---------------------------------------------------------------------------------


@BOTH
def test_restarts_and_failures_are_part_of_the_state(asynchronous):
    makes = troubled("raise", always=True)
    with row_envs(asynchronous, *makes) as envs, row_envs(asynchronous, *makes) as other:
        envs.reset()
        for _ in range(7):  # two restarts, and one step
            envs.step(ACTION)
        state = envs.get_state()
        assert state["failures"] == 2 and state["environments"][1]["restarts"] == 2
        other.set_state(state)
        assert other.failures == 2 and other.failed == ()
        for _ in range(5):
            assert same_rows(envs.step(ACTION), other.step(ACTION))
            assert envs.failed == other.failed
        assert envs.failures == 4 == other.failures


# Other episodes for a run that goes on --------------------------------------------------------------------------------


@pytest.mark.parametrize("vectorize", ["sync", "async"])
@pytest.mark.parametrize("name", ["Probe", "Brittle"])
def test_reseeded_environments_play_other_episodes_the_same_each_time(name, vectorize, registered):
    registered.update(Probe=Probe, Brittle=Brittle)

    def start(number):
        with make_envs(config(name, vectorize=vectorize, parallels=2)) as envs:
            if number is not None:
                envs.reseed(number)
            return envs.reset().obs["vector"][:, 0].tolist()

    seen = [start(number) for number in (None, 1, 2)]
    assert [start(number) for number in (None, 1, 2)] == seen
    numbers = [number for each in seen for number in each]
    assert len(set(numbers)) == 6
    assert not set(numbers) & {np.float32(first_seen(seed, 1)) for seed in (1, 2)}  # nor those of restarts


def test_a_reseeded_environment_that_fails_is_restarted_from_its_new_seed():
    with row_envs(False, partial(Troubled, how="raise", always=True)) as envs:
        envs.reseed(4)
        seed = envs._vector.envs[0].seed
        envs.reset()
        assert envs.get_state()["environments"][0]["seed"] == seed >= FIRST
        row = [envs.step(ACTION[:1]) for _ in range(3)][-1]
    assert row.obs["vector"][0, 0] == np.float32(first_seen(seed, 1))


@pytest.mark.parametrize("vectorize", ["sync", "native"])
def test_only_before_the_first_reset(vectorize):
    with make_envs(config("atari", "ALE/Pong-v5", vectorize=vectorize, env_seed=3)) as envs:
        envs.reseed(1)
        envs.reset()
        with pytest.raises(RuntimeError, match="before the first reset"):
            envs.reseed(2)


def test_the_attributes_of_a_failure():
    assert Failure(1, "a", "died", "b") == Failure(1, "a", "died", "b")
    env = Restarting(Each(0, Troubled), 3)
    assert env.seed == 3 and env.get_wrapper_attr("label") == "environment 0 (Mine/mine-v0)"
