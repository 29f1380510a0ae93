"""MiniGrid: small worlds of doors, keys and balls, seen as pictures or as the codes of their cells."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import gymnasium
import minigrid
import numpy as np
from gymnasium import spaces
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX
from minigrid.wrappers import RGBImgObsWrapper, RGBImgPartialObsWrapper

from xrl.common.errors import ConfigError
from xrl.configs.schemas.base import RunConfig
from xrl.environment.registry import Family, check_env_id
from xrl.environment.replayed import Replayed

gymnasium.register_envs(minigrid)
_VIEWS: dict[str, Any] = {"pixels": RGBImgPartialObsWrapper, "full_pixels": RGBImgObsWrapper, "codes": lambda env: env}


class View(gymnasium.Wrapper[Any, Any, Any, Any]):
    """MiniGrid's dict in spaces that say what its entries are.

    ``image``: the picture; or instead ``cells``: what is in each cell of the agent's view, its colour and its state,
    as three choices each, and ``direction``: where the agent looks. ``mission``: what stands in the blanks of the
    sentence, a choice each; left out where there are no blanks, because the sentence is always the same.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], codes: bool) -> None:
        super().__init__(env)
        self._codes = codes
        given: Any = env.observation_space
        if codes:
            height, width, _ = given["image"].shape
            kinds = [len(OBJECT_TO_IDX), len(COLOR_TO_IDX), len(STATE_TO_IDX)]
            parts = {"cells": spaces.MultiDiscrete(np.tile(kinds, height * width)), "direction": given["direction"]}
        else:
            parts = {"image": given["image"]}
        self._missions, choices = _read_missions(given["mission"])
        if choices:
            parts["mission"] = spaces.MultiDiscrete(choices)
        self._entries = list(parts)
        self.observation_space = spaces.Dict(parts)

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        return self._seen(obs), info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._seen(obs), reward, terminated, truncated, info

    def _seen(self, obs: dict[str, Any]) -> dict[str, Any]:
        seen = {"cells": obs["image"].reshape(-1), **obs, "mission": self._missions.get(obs["mission"])}
        return {key: seen[key] for key in self._entries}


def _read_missions(space: Any) -> tuple[dict[str, list[int]], list[int]]:
    """Sentence -> which word stands in each blank that has a choice, and how many words each of these has."""
    words = [range(len(each)) for each in space.ordered_placeholders or ()]
    sentences = {}
    for chosen in product(*words):
        sentence = space.mission_func(*(space.ordered_placeholders[blank][i] for blank, i in enumerate(chosen)))
        sentences[sentence] = [i for i, each in zip(chosen, words, strict=True) if len(each) > 1]
    return sentences, [len(each) for each in words if len(each) > 1]


def _make_minigrid(config: RunConfig, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    return _build(config, render_mode, **config.env_kwargs)


def _build(config: RunConfig, render_mode: str | None, *, view: str = "pixels",
           **kwargs: Any) -> gymnasium.Env[Any, Any]:
    """``env_kwargs``: ``view`` is pixels (what the agent sees, as published), full_pixels (the whole grid) or codes;
    the others go to the environment's constructor."""
    check_env_id(config.env_id, [name for name in gymnasium.registry if name.startswith("MiniGrid-")], config.env_name)
    if view not in _VIEWS:
        raise ConfigError(f"env_kwargs.view: {view!r} is unknown; use one of {', '.join(_VIEWS)}")
    env = gymnasium.make(config.env_id, render_mode=render_mode, disable_env_checker=True, **kwargs)
    seen = Replayed(View(_VIEWS[view](env), codes=view == "codes"))
    seen.spec = copy.copy(env.spec)
    if seen.spec is not None:
        seen.spec.max_episode_steps = env.unwrapped.max_steps  # type: ignore[attr-defined]
    return seen


MINIGRID = Family(_make_minigrid)
