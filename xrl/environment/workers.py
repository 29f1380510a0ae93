"""``vectorize: async``: a process for each environment, one of which can die or hang while the others go on.

The parent sends a command with its arguments to each worker and reads the answers in the order of the environments,
so that nothing depends on which is faster. A worker steps a Restarting environment and so survives what its
environment raises or returns; what it cannot survive, the parent notices, and replaces that worker alone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import util
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from xrl.common.errors import ConfigError, EnvironmentFault, ModelFileError, XrlError
from xrl.common.row import ObsSpec
from xrl.environment.restarting import Factory, Kind, Restarting, derived_seed
from xrl.environment.state import Unsaveable

# A fork where there is one: environments that users register in a script, or as a function, cannot be sent elsewhere.
_CONTEXT = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)
_PATIENCE = 2.0  # seconds that all workers together have to close their environments before they are killed
_LOOK = 1.0      # seconds between two looks whether the other side is still there
_LEFT_TO_THE_PARENT = ("SIGINT", "SIGTERM", "SIGUSR1")


class Workers:
    """E environments with the interface that RowEnvs steps: NEXT_STEP, one process each, ``timeout`` seconds a call.

    Raises whatever a constructor raises, and ConfigError if one takes longer or if their spaces differ.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, factories: Sequence[Factory], seeds: Sequence[int], timeout: float) -> None:
        self.num_envs = len(factories)
        self._factories, self._seeds, self._timeout = list(factories), list(seeds), timeout
        self._restarts = [0] * self.num_envs
        self._asking = False
        self._workers: list[_Worker] = []
        # Also when nobody closes: at the interpreter's exit it comes before the wait for processes that are left.
        self._finalizer = util.Finalize(self, _close, args=(self._workers,), exitpriority=100)
        try:
            for factory, seed in zip(factories, seeds, strict=True):
                self._workers.append(_Worker(factory, seed, 0, timeout))
            self._await_construction()
            specs = list(zip(self.get_attr("obs_spec"), self.get_attr("action_spec"), strict=True))
            if any(spec != specs[0] for spec in specs):
                raise ConfigError(f"the environments of one run must have the same spaces: {specs}")
            self._obs_spec: dict[str, ObsSpec] = specs[0][0]
            self.render_mode: str | None = self.get_attr("render_mode")[0]
        except BaseException:
            self.close()
            raise

    def _await_construction(self) -> None:
        asked = time.monotonic()
        for worker in self._workers:
            try:
                worker.answer(asked)
            except _Lost as lost:
                remedy = "; set env_timeout higher if it takes longer" if lost.kind == "hung" else ""
                raise ConfigError(f"{worker.label}: its constructor did not return: {lost}{remedy}") from None

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """The attribute once per environment; "label" is known without asking."""
        if name == "label":
            return tuple(worker.label for worker in self._workers)
        return tuple(self._all("get_attr", [(name,)] * self.num_envs))

    def reset(self, *, seed: Sequence[int] | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode everywhere. With seeds it is the first reset, and a worker that is lost is fatal."""
        if seed is not None:
            return self._stacked([answer[0] for answer in self._all("reset", [(each,) for each in seed])]), {}
        answers = self._all_or_restarted("reset", [(None,)] * self.num_envs)
        return self._stacked([answer[0] for answer in answers]), _infos([answer[1] for answer in answers])

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray,
                                                dict[str, Any]]:
        """One agent step with ``action`` (E, A); an environment whose episode was over begins one instead."""
        answers = self._all_or_restarted("step", [(each.tobytes(),) for each in action.astype(np.float32, copy=False)])
        obs, reward, terminated, truncated, infos = zip(*answers, strict=True)
        return (self._stacked(obs), np.array(reward, np.float64), np.array(terminated, bool),
                np.array(truncated, bool), _infos(infos))

    def _stacked(self, packed: Sequence[list[bytes]]) -> dict[str, np.ndarray]:
        return {key: np.frombuffer(b"".join([each[place] for each in packed]), spec.dtype).reshape(-1, *spec.shape)
                for place, (key, spec) in enumerate(self._obs_spec.items())}

    def render(self) -> tuple[Any, ...]:
        """A frame of every environment."""
        return tuple(self._all("render", [()] * self.num_envs))

    def reseed(self, seeds: Sequence[int]) -> None:
        self._seeds, self._restarts = list(seeds), [0] * self.num_envs
        self._all("reseed", [(seed,) for seed in seeds])

    def get_states(self) -> list[dict[str, Any] | Unsaveable]:
        """A worker that is lost has no state; the next step replaces it."""
        states: list[dict[str, Any] | Unsaveable] = []
        for worker, answer in zip(self._workers, self._answers("get_state", [()] * self.num_envs), strict=True):
            states.append(Unsaveable(f"{worker.label} is lost: {answer}") if isinstance(answer, _Lost) else answer)
        return states

    def set_states(self, states: Sequence[Any], over: np.ndarray) -> None:
        self._all("set_state", [(state, bool(each)) for state, each in zip(states, over, strict=True)])
        try:
            self._seeds = [state["seed"] for state in states]
            self._restarts = [state["restarts"] for state in states]
        except (TypeError, KeyError) as error:
            raise ModelFileError(f"the saved state of the environments is damaged: {error!r}") from error

    def close(self) -> None:
        """Close the environments and end the processes, within seconds; a second call does nothing."""
        self._finalizer()

    # One command to all ----------------------------------------------------------------------------------------------

    def _answers(self, command: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The answers, or a _Lost in the place of one; raises the error of the first environment that sent one."""
        if not self._workers:
            raise RuntimeError("these environments are closed")
        if self._asking:
            raise RuntimeError("these environments were interrupted in the middle of a call; they can only be closed")
        self._asking = True
        for worker, each in zip(self._workers, arguments, strict=True):
            worker.send(command, each)
        asked = time.monotonic()
        answers: list[Any] = []
        errors = []
        for worker in self._workers:
            try:
                answers.append(worker.answer(asked))
            except _Lost as lost:
                answers.append(lost)
            except Exception as error:  # of an environment; the others' answers are read first, else they would wait
                errors.append(error)
        self._asking = False
        if errors:
            raise errors[0]
        return answers

    def _all(self, command: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        answers = self._answers(command, arguments)
        for worker, answer in zip(self._workers, answers, strict=True):
            if isinstance(answer, _Lost):
                raise EnvironmentFault(f"{worker.label}: {command}: {answer}")
        return answers

    def _all_or_restarted(self, command: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        answers = self._answers(command, arguments)
        for index, answer in enumerate(answers):
            if isinstance(answer, _Lost):
                obs, info = self._restart(index, answer)
                answers[index] = (obs, info) if command == "reset" else (obs, 0.0, False, False, info)
            elif answer[-1]:
                self._restarts[index] += 1
        return answers

    def _restart(self, index: int, lost: _Lost) -> tuple[list[bytes], dict[str, Any]]:
        """Another process for one environment, begun anew; raises EnvironmentFault if that one is lost, too."""
        self._restarts[index] += 1
        self._asking = True
        label = self._workers[index].label
        try:
            worker = _Worker(self._factories[index], self._seeds[index], self._restarts[index], self._timeout)
            self._workers[index] = worker
            worker.answer(time.monotonic())
            worker.send("reset", (derived_seed(self._seeds[index], self._restarts[index]),))
            obs, _ = worker.answer(time.monotonic())
        except (_Lost, XrlError, OSError) as error:
            raise EnvironmentFault(f"{label} cannot be restarted: {error}\nIt had failed: {lost}") from error
        self._asking = False
        return obs, {"failure": f"{label}: {lost}", "failure_kind": lost.kind}


def _infos(infos: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """As Gymnasium's vectors give them."""
    if not any(infos):
        return {}
    return {"failure": [info.get("failure") for info in infos],
            "failure_kind": [info.get("failure_kind") for info in infos],
            "_failure": np.array([bool(info) for info in infos])}


class _Lost(Exception):
    """A worker that died or hung; it is dead now."""

    def __init__(self, kind: Kind, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class _WorkerTraceback(Exception):
    """The traceback of a worker as text: the original exception stays in its process."""


class _Worker:
    """The parent's side of one process. Its first answer, without a question, says that the environment is built."""

    def __init__(self, factory: Factory, seed: int, restarts: int, timeout: float) -> None:
        self.label, self._timeout = factory.label, timeout
        self._lost: _Lost | None = None
        self._connection, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_work, args=(theirs, os.getpid(), factory, seed, restarts), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe

    def send(self, command: str, arguments: tuple[Any, ...]) -> None:
        with suppress(OSError):  # if it is gone, its answer will tell
            self._connection.send((command, arguments))

    def answer(self, asked: float) -> Any:
        """What the last command returned; raises what it raised, and _Lost if none comes in time.

        ``asked``: when, by time.monotonic().
        """
        if self._lost is not None:
            raise self._lost
        self._await(asked + self._timeout)
        try:
            result, error, trace = self._connection.recv()
        except (EOFError, OSError):
            raise self._lose("died") from None
        if error is not None:
            raise error from _WorkerTraceback(f"\n{trace}")
        return result

    def _await(self, deadline: float) -> None:
        """Until there is an answer or the end of the pipe, which its own children may keep open; or ``deadline``."""
        while not self._connection.poll(max(0.0, min(_LOOK, deadline - time.monotonic()))):
            if not self.process.is_alive() and not self._connection.poll():
                raise self._lose("died")
            if time.monotonic() > deadline:
                raise self._lose("hung")

    def _lose(self, kind: Kind) -> _Lost:
        if kind == "died":
            self.process.join(_LOOK)  # the pipe ends a moment before the process
        code = self.process.exitcode
        self.kill()
        if kind == "hung":
            how = f"did not answer within env_timeout: {self._timeout:g} s and was killed"
        elif code is None:
            how = "closed its pipe"
        elif code < 0:
            how = f"was killed by {signal.Signals(-code).name}{' (out of memory?)' if code == -signal.SIGKILL else ''}"
        else:
            how = f"ended with exit code {code}"
        self._lost = _Lost(kind, f"its process {how}")
        return self._lost

    def kill(self) -> None:
        self.process.kill()  # SIGTERM is left to the parent
        self.process.join()
        self._connection.close()


def _close(workers: list[_Worker]) -> None:
    """Ask all to close their environments, and kill those that do not."""
    deadline = time.monotonic() + _PATIENCE
    for worker in workers:
        worker.send("close", ())
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        worker.kill()
    workers.clear()


# In the worker's process ---------------------------------------------------------------------------------------------


def _work(connection: Connection, parent: int, factory: Factory, seed: int, restarts: int) -> None:
    # Such signals reach the whole process group; the run saves first and closes its workers itself. Heard and not
    # ignored, because programs that an environment starts would inherit that, and could not be terminated.
    for name in _LEFT_TO_THE_PARENT:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, frame: None)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    with suppress(EOFError, OSError):  # the parent is gone
        _serve(connection, factory, seed, restarts)


def _leave_with(parent: int) -> None:
    """End this process, whatever its environment is doing, when the parent has ended.

    The end of the pipe does not tell: processes that the parent started later hold its side open.
    """
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os._exit(1)


def _serve(connection: Connection, factory: Factory, seed: int, restarts: int) -> None:
    try:
        served = _Served(factory, seed, restarts)
    except Exception as error:
        return connection.send((None, error, traceback.format_exc()))
    connection.send((None, None, ""))
    while True:
        command, arguments = connection.recv()
        if command == "close":
            return served.env.close()
        try:
            result = getattr(served, command)(*arguments)
        except Exception as error:
            connection.send((None, error, traceback.format_exc()))
        else:
            connection.send((result, None, ""))


class _Served:
    """What the parent can ask for, by name. Observations and actions travel as bytes, which take least to pickle."""

    def __init__(self, factory: Factory, seed: int, restarts: int) -> None:
        self.env = Restarting(factory, seed, restarts)
        self._over = False

    def reset(self, seed: int | None) -> tuple[list[bytes], dict[str, Any]]:
        self._over = False
        obs, info = self.env.reset(seed=seed)
        return [value.tobytes() for value in obs.values()], info

    def step(self, action: bytes) -> tuple[list[bytes], float, bool, bool, dict[str, Any]]:
        if self._over:
            packed, info = self.reset(None)
            return packed, 0.0, False, False, info
        obs, reward, terminated, truncated, info = self.env.step(np.frombuffer(action, np.float32))
        self._over = terminated or truncated
        return [value.tobytes() for value in obs.values()], reward, terminated, truncated, info

    def get_attr(self, name: str) -> Any:
        return self.env.get_wrapper_attr(name)

    def render(self) -> Any:
        return self.env.render()

    def reseed(self, seed: int) -> None:
        self.env.reseed(seed)

    def get_state(self) -> dict[str, Any] | Unsaveable:
        return self.env.get_state()

    def set_state(self, state: Any, over: bool) -> None:
        self.env.set_state(state)
        self._over = over
