"""Small tasks that show in minutes whether a method learns from pixels."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.wrappers import HumanRendering

from xrl.configs.schemas.base import RunConfig
from xrl.environment.registry import Family, check_env_id
from xrl.environment.spaces import IMAGE_SIZE

ROWS, COLUMNS = 10, 5
_ROW_EDGES = np.linspace(0, IMAGE_SIZE, ROWS + 1).astype(int)
_COLUMN_EDGES = np.linspace(0, IMAGE_SIZE, COLUMNS + 1).astype(int)
_BALL, _PADDLE = 255, 160


class Catch(gymnasium.Env[np.ndarray, Any]):
    """A ball falls one row per step from a random column; move the paddle under it.

    Observation: (64, 64, 1) of uint8. Actions: 0 left, 1 stay, 2 right. An episode is 9 steps; the last one
    pays +1 if the ball is caught, else -1, all others 0. The random policy scores -0.6: the ball's column is
    uniform over 5 and independent of the paddle.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 1), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(3)
        self._ball_row = self._ball_column = 0
        self._paddle = COLUMNS // 2

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._ball_row, self._ball_column = 0, int(self.np_random.integers(COLUMNS))
        self._paddle = COLUMNS // 2
        return self._draw(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._paddle = min(max(self._paddle + int(action) - 1, 0), COLUMNS - 1)
        self._ball_row += 1
        landed = self._ball_row == ROWS - 1
        caught = self._paddle == self._ball_column
        return self._draw(), float(landed) * (1.0 if caught else -1.0), landed, False, {}

    def get_state(self) -> dict[str, Any]:
        return {"ball": [self._ball_row, self._ball_column], "paddle": self._paddle}

    def set_state(self, state: dict[str, Any]) -> None:
        (self._ball_row, self._ball_column), self._paddle = state["ball"], state["paddle"]

    def render(self) -> np.ndarray:
        """(256, 256, 3) of uint8."""
        return self._draw().repeat(4, axis=0).repeat(4, axis=1).repeat(3, axis=2)

    def _draw(self) -> np.ndarray:
        image = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 1), np.uint8)
        _fill(image, ROWS - 1, self._paddle, _PADDLE)
        _fill(image, self._ball_row, self._ball_column, _BALL)
        return image


def _fill(image: np.ndarray, row: int, column: int, value: int) -> None:
    image[_ROW_EDGES[row]:_ROW_EDGES[row + 1], _COLUMN_EDGES[column]:_COLUMN_EDGES[column + 1]] = value


_TOYS = {"Catch-v0": Catch}


def _make_toy(config: RunConfig, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    check_env_id(config.env_id, list(_TOYS), config.env_name)
    toy = _TOYS[config.env_id]
    if render_mode == "human":
        return HumanRendering(toy(render_mode="rgb_array", **config.env_kwargs))
    return toy(render_mode=render_mode, **config.env_kwargs)


TOY = Family(_make_toy)
