"""Gymnasium's Box2D environments: CarRacing from pixels, LunarLander, BipedalWalker."""

from __future__ import annotations

from typing import Any

import gymnasium

from xrl.configs.schemas.base import RunConfig
from xrl.environment.registry import Family, check_env_id
from xrl.environment.replayed import Replayed


def _make_box2d(config: RunConfig, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    """Box2D keeps the impulses of its joints and contacts to itself, so a state is the episode played again.

    Not for BipedalWalker, whose world goes on from one episode to the next and remembers the earlier ones.
    """
    known = [spec.id for spec in gymnasium.registry.values()
             if str(spec.entry_point).startswith("gymnasium.envs.box2d")]
    check_env_id(config.env_id, known, config.env_name)
    env = gymnasium.make(config.env_id, render_mode=render_mode, disable_env_checker=True, **config.env_kwargs)
    return env if config.env_id.startswith("BipedalWalker") else Replayed(env)


BOX2D = Family(_make_box2d)
