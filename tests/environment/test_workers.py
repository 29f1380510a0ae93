"""Processes that die, hang or are left alone, for real."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from xrl.common.errors import ConfigError, EnvironmentFault
from xrl.environment import RowEnvs, make_envs
from xrl.environment.workers import Workers

from .examples import Each, Probe, config, one_hot, row_envs
from .restoring import ROOT, same_rows
from .test_restarting import ACTION, rows_of, the_others_go_on
from .troubles import Troubled, first_seen, troubled

SHORT = 0.8  # seconds that an environment has to answer where one hangs


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def pids(envs: RowEnvs) -> list[int]:
    return [worker.process.pid for worker in envs._vector._workers]


@pytest.mark.parametrize(("how", "kind", "detail", "timeout"), [
    ("os._exit", "died", "its process ended with exit code 7", 20),
    ("sys.exit", "died", "its process ended with exit code 3", 20),
    ("kill", "died", "its process was killed by SIGKILL (out of memory?)", 20),
    ("kill, leaving a child", "died", "its process was killed by SIGKILL (out of memory?)", 20),
    ("hang", "hung", f"its process did not answer within env_timeout: {SHORT:g} s and was killed", SHORT),
    ("sleep", "hung", f"its process did not answer within env_timeout: {SHORT:g} s and was killed", SHORT),
])
def test_a_process_that_is_lost_is_replaced_alone(how, kind, detail, timeout):
    with row_envs(True, *troubled(how), timeout=timeout) as envs:
        rows, before = [envs.reset()], pids(envs)
        for step in range(6):
            start = time.monotonic()
            rows.append(envs.step(ACTION))
            # The end of a process is the end of its pipe, unless a child of its own holds that open.
            assert time.monotonic() - start < (3 if how in ("kill, leaving a child", "hang", "sleep") else 0.9)
            assert len(envs.failed) == (step == 2)
            if step == 2:
                failure = envs.failed[0]
        after = pids(envs)
        assert before[0] == after[0] and before[2] == after[2] and not alive(before[1]) and alive(after[1])
    assert (failure.env, failure.label, failure.kind) == (1, "environment 1 (Mine/mine-v0)", kind)
    assert failure.detail == f"environment 1 (Mine/mine-v0): {detail}" and envs.failures == 1
    cut = rows[3]
    assert cut.is_first.tolist() == [False, True, False] and not cut.is_last.any() and not cut.is_terminal.any()
    assert cut.action[:, 1].tolist() == [1, 0, 1] and cut.reward.tolist() == [1, 0, 1]
    assert cut.obs["vector"][1].tolist() == [np.float32(first_seen(1, 1)), 0] and rows[4].obs["vector"][1, 1] == 1
    the_others_go_on(rows)


def test_two_runs_with_the_same_deaths_are_the_same_and_restarts_of_both_kinds_count_on():
    one, other = (rows_of(True, troubled("kill", always=True), steps=10) for _ in range(2))
    assert all(map(same_rows, one[0], other[0])) and one[1] == other[1] and one[2] == 3
    drawn = [row.obs["vector"][1, 0] for row in one[0] if row.is_first[1]]
    assert drawn[1:] == [np.float32(first_seen(1, number)) for number in (1, 2, 3)]
    with row_envs(True, partial(Troubled, how="raise", always=True)) as envs:
        envs.reset()
        for step in range(9):
            if step == 4:  # after one restart inside, one of the whole process
                os.kill(pids(envs)[0], signal.SIGKILL)
            row = envs.step(ACTION[:1])
            if row.is_first[0]:
                assert row.obs["vector"][0, 0] == np.float32(first_seen(0, envs.failures))
                assert envs.get_state()["environments"][0]["restarts"] == envs.failures
        assert envs.failures == 3


def test_a_restored_process_that_dies_is_restarted_with_the_seed_of_its_state():
    with row_envs(True, Troubled) as envs, row_envs(False, partial(Troubled, how="raise", always=True)) as earlier:
        earlier.reseed(9)
        earlier.reset()
        for _ in range(4):
            earlier.step(ACTION[:1])
        state = earlier.get_state()
        assert state["environments"][0]["restarts"] == 1
        envs.set_state(state)
        os.kill(pids(envs)[0], signal.SIGKILL)
        row = envs.step(ACTION[:1])
        assert row.is_first[0] and envs.failures == 2
        assert row.obs["vector"][0, 0] == np.float32(first_seen(state["environments"][0]["seed"], 2))


def test_a_death_in_a_later_reset_of_all():
    with row_envs(True, *troubled("")) as envs:
        envs.reset()
        os.kill(pids(envs)[1], signal.SIGKILL)
        row = envs.reset()
        assert [(failure.env, failure.kind) for failure in envs.failed] == [(1, "died")] and row.is_first.all()
        assert row.obs["vector"][1].tolist() == [np.float32(first_seen(1, 1)), 0]


def test_an_episode_that_was_over_when_its_process_died_is_not_reset_twice():
    with row_envs(True, partial(Troubled, length=2)) as envs:
        envs.reset()
        assert [bool(envs.step(ACTION[:1]).is_last[0]) for _ in range(2)] == [False, True]
        os.kill(pids(envs)[0], signal.SIGKILL)
        rows = [envs.step(ACTION[:1]) for _ in range(3)]
        assert [row.obs["vector"][0, 1] for row in rows] == [0, 1, 2]
        assert [bool(row.is_first[0]) for row in rows] == [True, False, False] and rows[2].is_last[0]


@pytest.mark.parametrize("how", ["kill", "hang"])
def test_the_first_reset_is_fatal(how):
    class AtReset(Troubled):
        def reset(self, *, seed=None, options=None):
            return self.step(0)

    makes = [Troubled, partial(AtReset, how=how, at=1)]
    with row_envs(True, *makes, timeout=20 if how == "kill" else SHORT) as envs, \
            pytest.raises(EnvironmentFault, match=r"environment 1 \(Mine/mine-v0\): reset: its process (was|did)"):
        envs.reset()


def test_what_dies_again_ends_the_run_with_both_reasons():
    with row_envs(True, *troubled("dies again")) as envs:
        envs.reset()
        with pytest.raises(EnvironmentFault, match=r"(?s)environment 1 .* cannot be restarted: its process ended with "
                                                   r"exit code 4.*It had failed: its process ended with exit code 7"):
            for _ in range(3):
                envs.step(ACTION)


def test_a_death_between_a_step_and_a_save_is_survived():
    with row_envs(True, *troubled("")) as envs:
        envs.reset()
        os.kill(pids(envs)[1], signal.SIGKILL)
        assert envs.get_state() is None
        assert envs.unsaveable.startswith("environment 1 (Mine/mine-v0) is lost: its process was killed by SIGKILL")
        row = envs.step(ACTION)
        assert row.is_first.tolist() == [False, True, False] and envs.failed[0].kind == "died"
        assert envs.get_state() is not None and envs.unsaveable == ""


def test_a_save_that_hangs_is_survived():
    class Hanging(Troubled):
        def get_state(self):
            time.sleep(60)

    with row_envs(True, Hanging, Troubled, timeout=SHORT) as envs:
        envs.reset()
        assert envs.get_state() is None and "is lost: its process did not answer" in envs.unsaveable
        assert envs.step(ACTION[:2]).is_first.tolist() == [True, False] and envs.failed[0].kind == "hung"


@pytest.mark.parametrize(("how", "message"), [
    ("hang", f"its constructor did not return: its process did not answer within env_timeout: {SHORT:g} s and was "
             f"killed; set env_timeout higher"),
    ("os._exit", "its constructor did not return: its process ended with exit code 7$"),
    ("config", "^not the environment's fault$")])
def test_constructors_that_do_not_return(how, message):
    class Constructed(Troubled):
        def __init__(self, seed):
            super().__init__(seed, how, at=1)
            self.step(0)

    start = time.monotonic()
    with pytest.raises(ConfigError, match=message):
        row_envs(True, Troubled, Constructed, timeout=SHORT if how == "hang" else 20)
    assert time.monotonic() - start < 5


def test_the_time_limit_is_the_configs(registered):
    registered["Slow"] = lambda: Troubled(0, "sleep", always=True)
    with make_envs(config("Slow", vectorize="async", env_timeout=SHORT)) as envs:
        envs.reset()
        for _ in range(3):
            envs.step(ACTION[:1])
        assert "env_timeout: 0.8 s" in envs.failed[0].detail


def test_descriptors_and_processes_do_not_pile_up():
    with row_envs(True, partial(Troubled, how="kill", always=True, at=1), Troubled) as envs:
        envs.reset()
        envs.step(ACTION[:2])
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            envs.step(ACTION[:2])
        gc.collect()
        assert envs.failures == 11 and len(os.listdir("/proc/self/fd")) <= before + 1
        everyone = pids(envs)
    assert not any(alive(pid) for pid in everyone)


# Signals, closing, and parents that are gone --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_workers_leave_such_signals_to_the_run(registered, name):
    registered["Mine"] = Probe
    handler = signal.getsignal(getattr(signal, name))
    with make_envs(config("Mine", vectorize="async", parallels=2)) as envs:
        envs.reset()
        for pid in pids(envs):
            os.kill(pid, getattr(signal, name))
        time.sleep(0.05)
        assert envs.step(one_hot([0, 0], 2)).reward.tolist() == [1, 1] and envs.failed == ()
    assert signal.getsignal(getattr(signal, name)) is handler


def test_programs_that_an_environment_starts_can_be_terminated():
    class Starting(Troubled):
        def step(self, action):
            with subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(20)"],
                                  stdout=subprocess.PIPE) as program:
                program.stdout.readline()
                program.terminate()
                assert program.wait(5) == -signal.SIGTERM
            return super().step(action)

    with row_envs(True, Starting) as envs:
        envs.reset()
        envs.step(ACTION[:1])
        assert envs.failed == ()


def test_closing_in_the_middle_of_a_step_does_not_wait_for_it(monkeypatch):
    monkeypatch.setattr("xrl.environment.workers._PATIENCE", 0.1)
    vector = Workers([Each(0, partial(Troubled, how="hang", at=1))], [0], 20)
    vector.reset(seed=[0])
    process = vector._workers[0].process
    vector._workers[0].send("step", (ACTION[0],))
    start = time.monotonic()
    vector.close()
    vector.close()
    assert time.monotonic() - start < 5 and not process.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        vector.step(ACTION[:1])


def test_after_an_interrupt_in_the_middle_of_a_call_no_answer_is_taken_for_another(monkeypatch):
    with row_envs(True, Troubled, Troubled) as envs:
        envs.reset()
        with monkeypatch.context() as patch:
            patch.setattr(envs._vector._workers[1], "answer", interrupt)
            with pytest.raises(KeyboardInterrupt):
                envs.step(ACTION[:2])
        with pytest.raises(RuntimeError, match="interrupted"):
            envs.get_state()


def interrupt(asked):
    raise KeyboardInterrupt


def test_what_nobody_closes_is_closed_when_it_is_collected():
    envs = row_envs(True, Troubled, Troubled)
    everyone = pids(envs)
    assert all(map(alive, everyone))
    del envs
    gc.collect()
    assert not any(map(alive, everyone))


SCRIPT = """
import os, sys, time
from functools import partial
from tests.environment.examples import row_envs
from tests.environment.test_restarting import ACTION
from tests.environment.troubles import Troubled
one = row_envs(True, Troubled, partial(Troubled, how="hang", at=3))
other = row_envs(True, Troubled)  # holds the parent's side of the others' pipes
one.reset(); other.reset()
print(*[worker.process.pid for envs in (one, other) for worker in envs._vector._workers], flush=True)
"""


def start(rest: str) -> tuple[subprocess.Popen, list[int]]:
    process = subprocess.Popen([sys.executable, "-c", SCRIPT + rest], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return process, [int(pid) for pid in process.stdout.readline().split()]


def test_a_parent_that_is_killed_leaves_nobody_behind():
    """Neither those that wait for a command nor one in an endless loop."""
    process, everyone = start("for _ in range(3): one.step(ACTION[:2])")
    with process:
        time.sleep(0.5)
        assert len(everyone) == 3 and all(map(alive, everyone))
        process.kill()
        process.wait()
        deadline = time.monotonic() + 5
        while any(map(alive, everyone)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(alive, everyone))


def test_a_script_that_forgets_to_close_ends():
    process, everyone = start("one.step(ACTION[:2]); sys.exit(5)")
    with process:
        assert process.wait(10) == 5
    assert len(everyone) == 3 and not any(map(alive, everyone))
