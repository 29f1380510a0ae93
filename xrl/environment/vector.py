"""The vector of environments that yields rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from xrl.common.errors import ConfigError, EnvironmentFault, ModelFileError, XrlError
from xrl.common.row import ActionSpec, ObsSpec, Row
from xrl.environment.restarting import Factory, Failure, Restarting, derived_seed
from xrl.environment.state import Unsaveable
from xrl.environment.workers import Workers


class Vector(Protocol):
    """What RowEnvs steps. The environments' attributes "obs_spec", "action_spec" and "time_limit" describe them.

    Environment i failed in the last call, and was restarted, where ``infos["_failure"][i]``; "failure" and
    "failure_kind" then say how. No failure, no key.
    """

    num_envs: int
    metadata: dict[str, Any]
    render_mode: str | None

    def get_attr(self, name: str) -> tuple[Any, ...]: ...
    def reset(self, *, seed: Any = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]: ...
    def step(self, action: np.ndarray, /) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray,
                                                   dict[str, Any]]: ...
    def render(self) -> tuple[Any, ...] | None: ...
    def close(self) -> None: ...
    def reseed(self, seeds: Sequence[int]) -> None: ...
    def get_states(self) -> list[dict[str, Any] | Unsaveable]: ...
    def set_states(self, states: Sequence[Any], over: np.ndarray) -> None: ...


class RowEnvs:
    """E environments stepped together; ``reset`` and ``step`` return a Row of leading shape (E,).

    An environment whose last row was ``is_last`` yields its reset row at the next step: the action given to it is
    ignored and stored as zero, and the reward is zero. One that fails is restarted and yields its reset row at once;
    ``failed`` tells those of the last call, ``failures`` counts all. ``time_limit``: the longest possible episode in
    agent steps, None where no limit is known. Raises ConfigError for a vector in another autoreset mode than NEXT_STEP.
    """

    def __init__(self, vector: Vector, seeds: Sequence[int], action_repeat: int = 1) -> None:
        mode = vector.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.NEXT_STEP:
            raise ConfigError(f"a vector environment with autoreset_mode {mode} cannot yield rows: the boundary of "
                              f"episodes would be misread; use {AutoresetMode.NEXT_STEP}")
        self._vector = vector
        self._seeds: list[int] | None = list(seeds)  # of the first reset; None after it
        self._is_last: np.ndarray | None = None
        self.num_envs: int = vector.num_envs
        self.action_repeat = action_repeat
        self.obs_spec: dict[str, ObsSpec] = vector.get_attr("obs_spec")[0]
        self.action_spec: ActionSpec = vector.get_attr("action_spec")[0]
        self.time_limit: int | None = vector.get_attr("time_limit")[0]
        self.failed: tuple[Failure, ...] = ()
        self.failures = 0
        self.unsaveable = ""  # why the last get_state returned None

    def reset(self) -> Row:
        """Begin an episode everywhere; running ones are cut. Only the first call seeds.

        Raises EnvironmentFault if an environment fails in the first call, or cannot be restarted in a later one.
        """
        obs, infos = self._vector.reset(seed=self._seeds)
        self._seeds = None
        self._note_failures(infos)
        nothing = np.zeros(self.num_envs, bool)
        self._is_last = nothing.copy()
        return Row(obs=_copied(obs), action=np.zeros((self.num_envs, self.action_spec.size), np.float32),
                   reward=np.zeros(self.num_envs, np.float32), is_first=~nothing, is_last=nothing.copy(),
                   is_terminal=nothing)

    def step(self, action: np.ndarray) -> Row:
        """One agent step with ``action`` (E, A), as the networks give it.

        Raises EnvironmentFault if an environment fails and cannot be restarted; the vector can then only be closed.
        """
        if self._is_last is None:
            raise RuntimeError("call reset() before step()")
        action = np.asarray(action, np.float32)
        if action.shape != (self.num_envs, self.action_spec.size):
            raise ValueError(f"action has shape {action.shape}, expected {(self.num_envs, self.action_spec.size)}")
        obs, reward, terminated, truncated, infos = self._vector.step(action)
        is_first, self._is_last = self._is_last, terminated | truncated
        self._note_failures(infos)
        if self.failed:
            is_first = is_first | infos["_failure"]
        return Row(obs=_copied(obs), action=np.where(is_first[:, None], np.float32(0), action),
                   reward=reward.astype(np.float32), is_first=is_first, is_last=self._is_last.copy(),
                   is_terminal=terminated)

    def _note_failures(self, infos: dict[str, Any]) -> None:
        if "failure" not in infos:
            self.failed = ()
            return
        labels = self._vector.get_attr("label")
        self.failed = tuple(Failure(int(env), labels[env], infos["failure_kind"][env], infos["failure"][env])
                            for env in np.flatnonzero(infos["_failure"]))
        self.failures += len(self.failed)

    def picture(self) -> np.ndarray:
        """What the first environment draws, RGB (height, width, 3) of uint8. Raises ConfigError if it draws nothing."""
        try:
            drawn = self._vector.render()
        except EnvironmentFault as error:
            raise ConfigError(f"render: {error}; leave render out, or give the environment a render() for render_mode "
                              "rgb_array") from error
        picture = np.asarray(drawn[0] if drawn else None)
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ConfigError("render: the environment gives no picture (height, width, 3) of uint8 for render_mode "
                              "rgb_array; leave render out, or give it such a render()")
        return picture

    def get_state(self) -> dict[str, Any] | None:
        """Everything that decides the rows to come; None where an environment cannot save (``unsaveable`` says why).

        Raises ConfigError or EnvironmentFault if a user's get_state returns what no state holds, or raises.
        """
        states = self._vector.get_states()
        self.unsaveable = next((state.reason for state in states if isinstance(state, Unsaveable)), "")
        if self.unsaveable:
            return None
        is_last = None if self._is_last is None else self._is_last.copy()
        return {"environments": states, "is_last": is_last, "started": self._seeds is None, "failures": self.failures}

    def set_state(self, state: Any) -> None:
        """Into newly constructed environments: the next call goes on as if nothing had happened.

        Raises ModelFileError if the state is of other environments or of another number of them.
        """
        try:
            states, is_last = list(state["environments"]), state["is_last"]
            started, failures = state["started"], int(state["failures"])
            over = np.zeros(self.num_envs, bool) if is_last is None else np.array(is_last, bool)
        except (TypeError, KeyError, ValueError) as error:
            raise ModelFileError(f"the saved state of the environments is damaged: {error!r}") from error
        if len(states) != self.num_envs or over.shape != (self.num_envs,):
            raise ModelFileError(f"the saved state is of {len(states)} environments, there are {self.num_envs}; set "
                                 f"parallels as it was")
        self._vector.set_states(states, over)
        self.failed, self.failures = (), failures
        self._is_last = None if is_last is None else over
        if started:
            self._seeds = None

    def reseed(self, number: int) -> None:
        """Before the first reset: other episodes than without, a function of the seeds and ``number`` alone.

        For a run that goes on at the boundary of an episode, and should not meet those again that it has seen.
        """
        if self._seeds is None:
            raise RuntimeError("call reseed() before the first reset()")
        self._seeds = [derived_seed(seed, 0, number) for seed in self._seeds]  # a restart's are (seed, 1 or more)
        self._vector.reseed(self._seeds)

    def render(self) -> tuple[Any, ...] | None:
        """A frame (H, W, 3) of every environment in render mode "rgb_array", else None: windows draw themselves."""
        return self._vector.render() if self._vector.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Close every environment; a second call does nothing."""
        self._vector.close()

    def __enter__(self) -> RowEnvs:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


class SyncVector(SyncVectorEnv[Any, Any]):
    """Gymnasium's vector over environments that restart themselves, with what saving them needs."""

    envs: list[Any]  # Restarting

    def reseed(self, seeds: Sequence[int]) -> None:
        for env, seed in zip(self.envs, seeds, strict=True):
            env.reseed(seed)

    def get_states(self) -> list[dict[str, Any] | Unsaveable]:
        return [env.get_state() for env in self.envs]

    def set_states(self, states: Sequence[Any], over: np.ndarray) -> None:
        for env, state in zip(self.envs, states, strict=True):
            env.set_state(state)
        self._autoreset_envs = over.copy()


def make_vector(factories: Sequence[Factory], seeds: Sequence[int], asynchronous: bool,
                timeout: float = 60.0) -> Vector:
    """The environments in this process, or in one process each with ``timeout`` seconds to answer.

    Their buffers may be handed out uncopied: RowEnvs copies. Raises ConfigError if their spaces differ.
    """
    if asynchronous:
        return Workers(factories, seeds, timeout)
    return _sync_vector(factories, seeds)


def _sync_vector(factories: Sequence[Factory], seeds: Sequence[int]) -> SyncVector:
    """If one environment cannot be built, those before it are closed."""
    made: list[Restarting] = []

    def build(factory: Factory, seed: int) -> Restarting:
        made.append(Restarting(factory, seed))
        return made[-1]

    makers: list[Callable[[], Restarting]] = [partial(build, *each) for each in zip(factories, seeds, strict=True)]
    try:
        return SyncVector(makers, copy=False, autoreset_mode=AutoresetMode.NEXT_STEP)
    except BaseException as error:
        for env in made:
            env.close()
        if isinstance(error, RuntimeError) and not isinstance(error, XrlError):  # what Gymnasium raises for this
            raise ConfigError(f"the environments of one run must have the same spaces: {error}") from error
        raise


def _copied(obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: value.copy() for key, value in obs.items()}
