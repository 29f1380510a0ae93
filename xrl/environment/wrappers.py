"""Wrappers around one environment: the adapter for raw ones, the canonical form with its checks, and the pace."""

from __future__ import annotations

import inspect
import time
from types import TracebackType
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from xrl.common.errors import ConfigError, EnvironmentFault, XrlError
from xrl.common.row import ObsSpec
from xrl.environment.spaces import Observations, Violation, read_action_space

_LARGEST_REWARD = float(np.finfo(np.float32).max)


class RawAdapter(gymnasium.Env[Any, Any]):
    """Gives a RawEnvironment, or any object with its methods, Gymnasium's interface."""

    def __init__(self, raw: Any, render_mode: str | None) -> None:
        missing = [name for name in ("observation_space", "action_space", "reset", "step") if not hasattr(raw, name)]
        if missing:
            raise ConfigError(f"{type(raw).__name__} has no {', '.join(missing)}; set it in its __init__(self, "
                              f"env_config), or derive the class from xrl.environment.RawEnvironment")
        self.raw = raw
        self.metadata = {"render_modes": ["human", "rgb_array"]}
        self.render_mode = render_mode
        self.observation_space, self.action_space = raw.observation_space, raw.action_space
        limit = raw.max_episode_steps if hasattr(raw, "max_episode_steps") else None
        self.max_episode_steps = int(limit) if isinstance(limit, (int, np.integer)) and limit > 0 else 0
        parameters = inspect.signature(raw.reset).parameters
        self._takes_seed = "seed" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        # Only a seed that is one: a raw environment may hand its keywords on to something that needs an int.
        result = self.raw.reset(seed=seed) if self._takes_seed and seed is not None else self.raw.reset()
        if not isinstance(result, tuple) or len(result) != 2:
            raise Violation("something else than (observation, info)")
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.raw.step(action)
        if not isinstance(result, tuple) or len(result) != 5:
            raise Violation("something else than (observation, reward, terminated, truncated, info)")
        return result

    def render(self) -> Any:
        return self.raw.render() if hasattr(self.raw, "render") else None

    def close(self) -> None:
        if hasattr(self.raw, "close"):
            self.raw.close()


class Pace(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Holds ``fps`` agent steps per second in a window, and draws for environments that do not do so themselves.

    Gymnasium's environments draw themselves in render mode "human"; raw ones wait to be asked.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], fps: int, action_repeat: int) -> None:
        super().__init__(env)
        self._period = 1.0 / fps
        self._due = 0.0
        self._draws = isinstance(env.unwrapped, RawAdapter)
        layer = env
        while True:  # those that draw themselves hold this pace per frame, whichever layer it is that draws
            layer.metadata = {**layer.metadata, "render_fps": fps * action_repeat}
            if not isinstance(layer, gymnasium.Wrapper):
                break
            layer = layer.env

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self._shown(super().reset(seed=seed, options=options))

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return self._shown(super().step(action))

    def _shown(self, result: Any) -> Any:
        if self._draws:
            self.env.render()
        time.sleep(max(0.0, self._due - time.monotonic()))
        self._due = time.monotonic() + self._period
        return result


class CanonicalEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Any environment in the one form that the rest of xrl knows, its promises checked at every step.

    Observations: name -> image (64, 64, C) of uint8 or vector (n,) of float32. Actions: (A,) float32, one-hots or
    in [-1, 1]. ``info`` is dropped. Raises ConfigError at construction for a space it cannot read, and EnvironmentFault
    when the environment raises or returns what its spaces or common sense (finite numbers) exclude.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], label: str, time_limit: int = 0) -> None:
        super().__init__(env)
        self.label = label
        self._observations = Observations(env.observation_space, label)
        self._actions = read_action_space(env.action_space, label)
        self.obs_spec, self.action_spec = self._observations.spec, self._actions.spec
        self.unbounded_actions = self._actions.unbounded  # entries without finite bounds
        self.time_limit = time_limit or None  # agent steps
        self.observation_space = spaces.Dict({key: _box(spec) for key, spec in self.obs_spec.items()})
        low = -1.0 if self.action_spec.kind == "continuous" else 0.0
        self.action_space = spaces.Box(low, 1.0, (self.action_spec.size,), np.float32)

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        with Faults(self.label, "reset"):
            obs, _ = self.env.reset(seed=seed, options=options)
            return self._observations.encode(obs), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        decoded = self._actions.decode(action)
        with Faults(self.label, "step"):
            obs, reward, terminated, truncated, _ = self.env.step(decoded)
            return self._observations.encode(obs), _checked_reward(reward), bool(terminated), bool(truncated), {}

    def render(self) -> Any:
        with Faults(self.label, "render"):
            return self.env.render()

    def close(self) -> None:
        with Faults(self.label, "close"):
            self.env.close()


class Faults:
    """``with Faults(label, "step"):`` is the border to code that is not ours: whatever it raises is its fault.

    A class, because it is entered at every step and a generator costs thrice as much.
    """

    __slots__ = ("_label", "_method")

    def __init__(self, label: str, method: str) -> None:
        self._label, self._method = label, method

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if isinstance(error, Violation):
            raise EnvironmentFault(f"{self._label}: {self._method} returned {error}") from error
        if isinstance(error, Exception) and not isinstance(error, XrlError):
            raise EnvironmentFault(f"{self._label}: {self._method} raised {type(error).__name__}: {error}") from error


def _box(spec: ObsSpec) -> spaces.Box:
    low, high = (0, 255) if spec.kind == "image" else (-np.inf, np.inf)
    return spaces.Box(low, high, spec.shape, spec.dtype.type)


def _checked_reward(reward: Any) -> float:
    value = np.asarray(reward, np.float64)
    if value.size != 1 or not abs(value.item()) <= _LARGEST_REWARD:  # written so that NaN fails, too
        raise Violation(f"a reward of {reward!r}; it must be one finite float32")
    return float(value.item())
