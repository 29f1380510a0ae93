"""The DeepMind Control Suite: MuJoCo's bodies, seen from a camera or through their joints."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import HumanRendering

from xrl.configs.schemas.base import RunConfig
from xrl.environment.opengl import choose_renderer, need_renderer, using_renderer
from xrl.environment.registry import Family, check_env_id
from xrl.environment.replayed import Replayed
from xrl.environment.spaces import IMAGE_SIZE

CAMERAS = {"quadruped": 2}  # by domain, as the published agents have them; 0 for all others
_FRAME = 240, 320  # height and width of a film


class Suite(gymnasium.Env[Any, Any]):
    """One task, as vectors: an entry for each of its observations.

    Everything random of an episode is drawn from a seed that Gymnasium's generator gives at its reset; ``model_seed``
    is for the few tasks whose bodies are random (lqr). An action is held for ``repeat`` frames.
    """

    def __init__(self, domain: str, task: str, model_seed: int, repeat: int, render_mode: str | None) -> None:
        self._env = _suite().load(domain, task, task_kwargs={"random": model_seed})
        self._repeat, self.render_mode = repeat, render_mode
        self.camera = CAMERAS.get(domain, 0)
        self.metadata = {"render_modes": ["human", "rgb_array"] if choose_renderer() else [],
                         "render_fps": max(1, round(1 / self._env.control_timestep()))}
        limit = self._env._step_limit  # frames; infinite for a few tasks
        self.spec = EnvSpec(f"{domain}_{task}", max_episode_steps=int(limit) if np.isfinite(limit) else None)
        self.observation_space = spaces.Dict({
            name: spaces.Box(-np.inf, np.inf, part.shape, np.float64)
            for name, part in self._env.observation_spec().items()})
        action = self._env.action_spec()
        low, high = (np.broadcast_to(bound, action.shape) for bound in (action.minimum, action.maximum))
        self.action_space = spaces.Box(low.astype(np.float64), high.astype(np.float64), dtype=np.float64)

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self._env.task.random.seed(int(self.np_random.integers(2**32)))
        return _arrays(self._env.reset().observation), {}

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """A last step whose discount is 0 is the task's own end; with any other it is the time limit."""
        reward = 0.0
        for _ in range(self._repeat):
            frame = self._env.step(action)
            reward += frame.reward
            if frame.last():
                break
        over = frame.last()
        return _arrays(frame.observation), reward, over and frame.discount == 0, over and frame.discount != 0, {}

    def picture(self, height: int, width: int) -> np.ndarray:
        return self._env.physics.render(height, width, camera_id=self.camera)

    def render(self) -> np.ndarray | None:
        return self.picture(*_FRAME) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self._env.close()
        self._env.physics.free()  # its OpenGL context


def _suite() -> Any:
    with using_renderer():
        from absl import logging
        from dm_control import suite
    logging.set_verbosity(logging.ERROR)  # its own bodies use what MuJoCo calls deprecated
    return suite


def _arrays(observation: Any) -> dict[str, np.ndarray]:
    """Some tasks observe a bare number."""
    return {name: np.asarray(value, np.float64) for name, value in observation.items()}


class Pixels(gymnasium.Wrapper[Any, Any, Any, Any]):
    """The camera's picture (64, 64, 3) in place of the vectors, drawn once for each agent step."""

    def __init__(self, env: gymnasium.Env[Any, Any], suite: Suite) -> None:
        super().__init__(env)
        self._suite = suite
        self.observation_space = spaces.Box(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        _, info = self.env.reset(seed=seed, options=options)
        return self._suite.picture(IMAGE_SIZE, IMAGE_SIZE), info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        _, reward, terminated, truncated, info = self.env.step(action)
        return self._suite.picture(IMAGE_SIZE, IMAGE_SIZE), reward, terminated, truncated, info


def _prepare(config: RunConfig, render_mode: str | None) -> None:
    """Here and not in every worker; and before anything imports dm_control."""
    choose_renderer()


def _make_dmc(config: RunConfig, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    return _build(config, render_mode, **config.env_kwargs)


def _build(config: RunConfig, render_mode: str | None, *, vision: bool = True) -> gymnasium.Env[Any, Any]:
    """``env_kwargs``: ``vision`` for the camera's picture, as published; without it the vectors."""
    if vision:
        need_renderer(f"env_id: {config.env_id}", "env_kwargs.vision=false observes vectors")
    elif render_mode is not None:
        need_renderer(f"render_mode: {render_mode}", "leave render out")
    tasks = {f"{domain}_{task}": (domain, task) for domain, task in _suite().ALL_TASKS}
    check_env_id(config.env_id, list(tasks), config.env_name)
    body = Suite(*tasks[config.env_id], config.env_seed, config.environment.action_repeat, render_mode and "rgb_array")
    env: gymnasium.Env[Any, Any] = Replayed(body)
    if vision:
        env = Pixels(env, body)
    return HumanRendering(env) if render_mode == "human" else env


DMC = Family(_make_dmc, repeats=True, prepare=_prepare)
