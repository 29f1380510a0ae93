"""Environments of users that save their state, in every way there is to write one."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.wrappers import TimeLimit

from xrl.environment import REGISTRY_ENV, RawEnvironment


class Wanderer(gymnasium.Env):
    """Draws from Gymnasium's generator and from one of its own; saves all but Gymnasium's, which is not its business.

    An episode ends when the walk is over 3 from 0.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space = spaces.Box(-2, 2, (1,), np.float32)
        self.own = np.random.default_rng(3)
        self.shared = None
        self.reset_was_seen = False

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.place, self.reset_was_seen = self.np_random.normal(size=1), True
        return self._seen(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.place += action + self.np_random.normal() + self.own.normal()
        return self._seen(), float(self.own.random()), bool(abs(self.place[0]) > 3), False, {}

    def _seen(self) -> np.ndarray:
        return np.array([self.place[0], self.own.random(), self.np_random.random()])

    def get_state(self) -> dict[str, Any]:
        return {"place": self.place, "own": self.own.bit_generator.state, "name": "wanderer", "none": None}

    def set_state(self, state: dict[str, Any]) -> None:
        self.reset()  # draws, which must not matter
        self.place, self.own.bit_generator.state = state["place"], state["own"]


class Echo(gymnasium.Wrapper):
    """A user's wrapper with a state of its own: the reward is the one before."""

    last = 0.0

    def step(self, action: Any) -> Any:
        obs, reward, *rest = self.env.step(action)
        reward, self.last = self.last, reward
        return obs, reward, *rest

    def get_state(self) -> dict[str, Any]:
        return {"last": self.last}

    def set_state(self, state: dict[str, Any]) -> None:
        self.last = state["last"]
        self.env.reset()  # moves the layers inside, which must not matter


class Dice(RawEnvironment):
    """Everything from a generator that is seeded by the run's own seed; the limit of the episode is the adapter's."""

    max_episode_steps = 7

    def __init__(self, env_config: Any) -> None:
        super().__init__(env_config)
        self.observation_space, self.action_space = spaces.Discrete(6), spaces.Discrete(2)
        self.rng = np.random.Generator(np.random.MT19937(env_config.env_seed))

    def reset(self) -> tuple[int, dict]:
        return int(self.rng.integers(6)), {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
        return int(self.rng.integers(6)), float(self.rng.normal()), False, False, {}

    def get_state(self) -> dict[str, Any]:
        return {"rng": self.rng.bit_generator.state}

    def set_state(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]


def echoing() -> gymnasium.Env:
    return Echo(TimeLimit(CartPoleEnv(), 12))


def register() -> None:
    REGISTRY_ENV.update(Wanderer=Wanderer, Echoing=echoing, Dice=Dice)
