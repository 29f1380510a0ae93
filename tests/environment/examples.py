"""Environments that the tests of this folder share, and short ways to configure and step them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from xrl.configs.schemas.dreamer_v2 import DreamerV2Config
from xrl.environment.vector import RowEnvs, make_vector
from xrl.environment.wrappers import CanonicalEnv


def config(env_name: str, env_id: str = "any-v0", **keys: Any) -> DreamerV2Config:
    return DreamerV2Config(method="DreamerV2", env_name=env_name, env_id=env_id, **keys)


@dataclass(frozen=True)
class Each:
    """What make_vector builds environment i from: ``make(seed)``, or ``make()`` where the seed is of no interest."""

    index: int
    make: Callable[..., gymnasium.Env]

    @property
    def label(self) -> str:
        return f"environment {self.index} (Mine/mine-v0)"

    def __call__(self, seed: int) -> CanonicalEnv:
        takes_seed = "seed" in inspect.signature(self.make).parameters
        return CanonicalEnv(self.make(seed=seed) if takes_seed else self.make(), self.label)


def row_envs(asynchronous: bool, *makes: Callable[..., gymnasium.Env], timeout: float = 20.0) -> RowEnvs:
    """Environment i, seeded i, is what ``makes[i]`` makes."""
    factories, seeds = [Each(index, make) for index, make in enumerate(makes)], range(len(makes))
    return RowEnvs(make_vector(factories, seeds, asynchronous, timeout), seeds)


def one_hot(indices: list[int], size: int) -> np.ndarray:
    return np.eye(size, dtype=np.float32)[indices]


class Numbered(gymnasium.Env):
    """Every frame is numbered: the observation is [episode, frame, action just taken].

    Episode k (from 0) has ``lengths[k]`` steps, the last repeated; even episodes terminate, odd ones are truncated.
    The reward of frame n in episode k is 10 k + n.
    """

    def __init__(self, lengths: tuple[int, ...] = (2, 3)) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = spaces.Discrete(5)
        self.lengths, self.episode, self.frame = lengths, -1, 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.episode, self.frame = self.episode + 1, 0
        return np.array([self.episode, 0, -1], np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.frame += 1
        over = self.frame == self.lengths[min(self.episode, len(self.lengths) - 1)]
        even = self.episode % 2 == 0
        obs = np.array([self.episode, self.frame, action], np.float32)
        return obs, 10.0 * self.episode + self.frame, over and even, over and not even, {}


class Misbehaving(gymnasium.Env):
    """Breaks its promise in the way ``how`` names at the third step."""

    def __init__(self, how: str) -> None:
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.how, self.steps = how, 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        if self.how == "raise in reset":
            raise KeyError("no level file")
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> Any:
        self.steps += 1
        good = np.zeros(2, np.float32)
        if self.steps < 3:
            return good, 0.0, False, False, {}
        if self.how == "raise":
            raise ZeroDivisionError("100 % 0")  # a percent sign: it must survive whatever formats the message
        if self.how == "exit":
            sys.exit(1)
        return {"nan": (np.array([0, np.nan], np.float32), 0.0, False, False, {}),
                "shape": (np.zeros(3, np.float32), 0.0, False, False, {}),
                "dtype": (np.array(["a", "b"]), 0.0, False, False, {}),
                "reward": (good, float("inf"), False, False, {}),
                "four values": (good, 0.0, False, {})}[self.how]


class Probe(gymnasium.Env):
    """Shows what reaches an environment: the observation is [number drawn from the seeded generator]."""

    def __init__(self, action_space: gymnasium.Space | None = None) -> None:
        self.observation_space = spaces.Box(0, 1, (1,), np.float32)
        self.action_space = action_space or spaces.Discrete(2)
        self.actions: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self.np_random.random(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.actions.append(action)
        return self.np_random.random(1, np.float32), 1.0, False, False, {}
