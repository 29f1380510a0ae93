"""Atari 2600 as DreamerV2 plays it (Machado et al. 2018): sticky actions, four frames per action, no other help."""

from __future__ import annotations

from typing import Any

import ale_py
import gymnasium
from gymnasium.wrappers import AtariPreprocessing, StickyAction

from xrl.configs.schemas.base import RunConfig
from xrl.environment.native import THREADS, AtariVector
from xrl.environment.registry import Family, check_env_id
from xrl.environment.spaces import IMAGE_SIZE

gymnasium.register_envs(ale_py)
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner for every emulator


def _make_atari(config: RunConfig, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    """Emulator -> StickyAction per emulator frame -> AtariPreprocessing; the time limit follows in the builder.

    The emulator's own stickiness is off because it remembers the last action outside its saveable state, and its
    own limit because it counts the no-ops in frames.
    """
    _check_env_id(config)
    settings, kwargs = config.environment, config.env_kwargs
    if config.vectorize == "native":  # and there is a window to draw: it does without threads
        kwargs = {name: value for name, value in kwargs.items() if name not in THREADS}
    env = gymnasium.make(
        config.env_id, frameskip=1, repeat_action_probability=0.0, max_num_frames_per_episode=0,
        full_action_space=settings.full_action_space, render_mode=render_mode, disable_env_checker=True,
        # AtariPreprocessing reads the screen itself; the emulator's own observation should at least be the small one.
        obs_type="grayscale" if settings.grayscale else "rgb", **kwargs)
    return AtariPreprocessing(
        StickyAction(env, settings.sticky), noop_max=settings.noop_max, frame_skip=settings.action_repeat,
        screen_size=IMAGE_SIZE, grayscale_obs=settings.grayscale, grayscale_newaxis=True,
        terminal_on_life_loss=False)


def _make_native(config: RunConfig, num_envs: int) -> AtariVector:
    _check_env_id(config)
    game = gymnasium.spec(config.env_id).kwargs["game"]
    return AtariVector(game, num_envs, config, config.environment.time_limit or ATARI.time_limit)


def _check_env_id(config: RunConfig) -> None:
    check_env_id(config.env_id, [name for name in gymnasium.registry if name.startswith("ALE/")], config.env_name)


ATARI = Family(_make_atari, repeats=True, time_limit=27_000, make_native=_make_native)
