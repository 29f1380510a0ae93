"""The vector of environments that yields rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.async_vector_env import AsyncState

from xrl.common.errors import ConfigError, EnvironmentFault
from xrl.common.row import ActionSpec, ObsSpec, Row


class Vector(Protocol):
    """What RowEnvs steps. The environments' attributes "obs_spec", "action_spec" and "time_limit" describe them."""

    num_envs: int
    metadata: dict[str, Any]
    render_mode: str | None

    def get_attr(self, name: str) -> tuple[Any, ...]: ...
    def reset(self, *, seed: Any = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]: ...
    def step(self, action: np.ndarray, /) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray,
                                                   dict[str, Any]]: ...
    def render(self) -> tuple[Any, ...] | None: ...
    def close(self) -> None: ...


_PATIENCE = 2.0  # seconds that a worker has to close its environment before it is terminated


class RowEnvs:
    """E environments stepped together; ``reset`` and ``step`` return a Row of leading shape (E,).

    An environment whose last row was ``is_last`` yields its reset row at the next step: the action given to it is
    ignored and stored as zero, and the reward is zero. ``time_limit``: the longest possible episode in agent steps,
    None where no limit is known. Raises ConfigError for a vector in another autoreset mode than NEXT_STEP.
    """

    def __init__(self, vector: Vector, seeds: Sequence[int], action_repeat: int = 1) -> None:
        mode = vector.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.NEXT_STEP:
            raise ConfigError(f"a vector environment with autoreset_mode {mode} cannot yield rows: the boundary of "
                              f"episodes would be misread; use {AutoresetMode.NEXT_STEP}")
        self._vector = vector
        self._seeds: list[int | None] | None = list(seeds)
        self._is_last: np.ndarray | None = None
        self.num_envs: int = vector.num_envs
        self.action_repeat = action_repeat
        self.obs_spec: dict[str, ObsSpec] = vector.get_attr("obs_spec")[0]
        self.action_spec: ActionSpec = vector.get_attr("action_spec")[0]
        self.time_limit: int | None = vector.get_attr("time_limit")[0]

    def reset(self) -> Row:
        """Begin an episode everywhere; running ones are cut. Only the first call seeds."""
        with _worker_deaths():
            obs, _ = self._vector.reset(seed=self._seeds)
        self._seeds = None
        nothing = np.zeros(self.num_envs, bool)
        self._is_last = nothing.copy()
        return Row(obs=_copied(obs), action=np.zeros((self.num_envs, self.action_spec.size), np.float32),
                   reward=np.zeros(self.num_envs, np.float32), is_first=~nothing, is_last=nothing.copy(),
                   is_terminal=nothing)

    def step(self, action: np.ndarray) -> Row:
        """One agent step with ``action`` (E, A), as the networks give it.

        Raises EnvironmentFault if an environment breaks its promise; the vector can then only be closed.
        """
        if self._is_last is None:
            raise RuntimeError("call reset() before step()")
        action = np.asarray(action, np.float32)
        if action.shape != (self.num_envs, self.action_spec.size):
            raise ValueError(f"action has shape {action.shape}, expected {(self.num_envs, self.action_spec.size)}")
        with _worker_deaths():
            obs, reward, terminated, truncated, _ = self._vector.step(action)
        is_first, self._is_last = self._is_last, terminated | truncated
        return Row(obs=_copied(obs), action=np.where(is_first[:, None], np.float32(0), action),
                   reward=reward.astype(np.float32), is_first=is_first, is_last=self._is_last.copy(),
                   is_terminal=terminated)

    def render(self) -> tuple[Any, ...] | None:
        """A frame (H, W, 3) of every environment in render mode "rgb_array", else None: windows draw themselves."""
        if self._vector.render_mode != "rgb_array":
            return None
        with _worker_deaths():
            return self._vector.render()

    def close(self) -> None:
        """Close every environment; a second call does nothing."""
        self._vector.close()

    def __enter__(self) -> RowEnvs:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def make_vector(factories: Sequence[Callable[[], gymnasium.Env[Any, Any]]],
                asynchronous: bool) -> SyncVectorEnv[Any, Any] | AsyncVectorEnv[Any, Any]:
    """The environments in this process or in one process each.

    Their buffers are handed out uncopied: RowEnvs copies. Raises ConfigError if their spaces differ.
    """
    try:
        with _worker_deaths():
            if asynchronous:
                return _Workers(factories, copy=False, autoreset_mode=AutoresetMode.NEXT_STEP)
            return _sync_vector(factories)
    except EnvironmentFault:
        raise
    except RuntimeError as error:  # what Gymnasium raises for this; everything of the environments is XrlError by now
        raise ConfigError(f"the environments of one run must have the same spaces: {error}") from error


def _sync_vector(factories: Sequence[Callable[[], gymnasium.Env[Any, Any]]]) -> SyncVectorEnv[Any, Any]:
    """A SyncVectorEnv; if one environment cannot be built, those before it are closed."""
    made: list[gymnasium.Env[Any, Any]] = []

    def build(factory: Callable[[], gymnasium.Env[Any, Any]]) -> gymnasium.Env[Any, Any]:
        made.append(factory())
        return made[-1]

    try:
        return SyncVectorEnv([partial(build, factory) for factory in factories], copy=False,
                             autoreset_mode=AutoresetMode.NEXT_STEP)
    except BaseException:
        for env in made:
            env.close()
        raise


def _copied(obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: value.copy() for key, value in obs.items()}


@contextmanager
def _worker_deaths() -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise EnvironmentFault("a worker process of vectorize: async ended without a word; it was killed (out of "
                               "memory?) or its environment called sys.exit; try vectorize: sync") from error


class _WorkerTraceback(Exception):
    """The traceback of a worker as text: the original exception stays in its process."""


class _Workers(AsyncVectorEnv[Any, Any]):
    """AsyncVectorEnv that passes on the environments' own errors, silently, and whose close cannot hang."""

    def _raise_if_errors(self, successes: Iterable[bool]) -> None:
        failures = [self.error_queue.get() for success in successes if not success]
        if not failures:
            return
        self._state = AsyncState.DEFAULT
        _, _, error, trace = min(failures, key=lambda failure: failure[0])
        raise error from _WorkerTraceback(f"\n{trace}")

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        for pipe in self.parent_pipes:
            if not pipe.closed:
                try:
                    pipe.send(("close", None))
                except ConnectionError:
                    continue  # that worker is gone already
        for process in self.processes:
            process.join(_PATIENCE)
            if process.is_alive():
                process.terminate()
                process.join()
        for pipe in self.parent_pipes:
            pipe.close()
