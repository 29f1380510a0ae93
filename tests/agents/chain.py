"""An environment whose values are known by hand, ended by a time limit or by itself."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

LENGTH, GAMMA = 4, 0.8


class Chain(gymnasium.Env):
    """Every step pays 1, whatever is done. An episode is LENGTH steps; ``ends``: "truncated" or "terminated".

    The observation is one-hot the number of the step modulo LENGTH, so that the last one of an episode looks as the
    first, and a value that is learned there is there to be bootstrapped from.
    """

    def __init__(self, ends: str = "truncated", continuous: bool = False) -> None:
        self.observation_space = spaces.Box(0, 1, (LENGTH,), np.float32)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32) if continuous else spaces.Discrete(2)
        self.ends, self.number = ends, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.number = 0
        return self._look(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.number += 1
        over = self.number == LENGTH
        return self._look(), 1.0, over and self.ends == "terminated", over and self.ends == "truncated", {}

    def _look(self) -> np.ndarray:
        return np.eye(LENGTH, dtype=np.float32)[self.number % LENGTH]


def values(ends: str) -> np.ndarray:
    """Of each observation, by hand: a time limit takes nothing away, sum_{k>=0} gamma^k = 1 / (1 - gamma); an end
    does, sum_{k < left} gamma^k = (1 - gamma^left) / (1 - gamma)."""
    left = LENGTH - np.arange(LENGTH)
    return np.full(LENGTH, 1 / (1 - GAMMA)) if ends == "truncated" else (1 - GAMMA**left) / (1 - GAMMA)


def forget_the_difference(agent: Any) -> None:
    """The mistake that all this is about: a truncated episode stored as a terminated one."""
    observe = agent.observe

    def mistaken(row: Any) -> None:
        row.is_terminal = row.is_last.copy()
        observe(row)

    agent.observe = mistaken
