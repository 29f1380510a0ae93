"""Saves what cannot be read: an environment is brought to where it was by playing its episode again."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class Replayed(gymnasium.Env[Any, Any]):
    """An environment whose state is the beginning of its episode and every action since.

    For environments whose episode is decided by Gymnasium's generator as it was at the reset, or by the seed given
    there, and by the actions. Restoring takes as long as the episode has taken so far. It is no wrapper, so that
    nobody looks for the state of what is inside.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self._env = env
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.metadata, self.render_mode, self.spec = env.metadata, env.render_mode, env.spec
        self._seed: int | None = None
        self._generator: dict[str, Any] | None = None  # before the reset, where it was given no seed
        self._actions: list[Any] = []

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._seed, self._actions = seed, []
        if seed is None:
            self._generator = dict(self._env.unwrapped.np_random.bit_generator.state)
        return self._env.reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._actions.append(np.copy(action))
        return self._env.step(action)

    def render(self) -> Any:
        return self._env.render()

    def close(self) -> None:
        self._env.close()

    def get_state(self) -> dict[str, Any]:
        return {"seed": self._seed, "generator": None if self._seed is not None else self._generator,
                "actions": np.stack(self._actions) if self._actions else None}

    def set_state(self, state: dict[str, Any]) -> None:
        if state["seed"] is None:
            generator = np.random.Generator(np.random.PCG64())
            generator.bit_generator.state = state["generator"]
            self._env.unwrapped.np_random = generator
        self.reset(seed=state["seed"])
        for action in () if state["actions"] is None else state["actions"]:
            self.step(action if action.ndim else action.item())
