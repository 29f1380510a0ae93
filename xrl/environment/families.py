"""Families whose environments come from Gymnasium's own registry."""

from __future__ import annotations

from typing import Any

import gymnasium

from xrl.common.errors import ConfigError
from xrl.common.registry import suggestion
from xrl.configs.schemas.base import RunConfig
from xrl.environment.registry import Family, check_env_id


def _make_classic_control(config: RunConfig, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    known = [spec.id for spec in gymnasium.registry.values()
             if str(spec.entry_point).startswith("gymnasium.envs.classic_control")]
    check_env_id(config.env_id, known, config.env_name)
    return _make(config, render_mode)


def _make_any(config: RunConfig, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    try:
        return _make(config, render_mode)
    except gymnasium.error.UnregisteredEnv as error:
        raise ConfigError(f"env_id: {config.env_id!r} is unknown to Gymnasium."
                          f"{suggestion(config.env_id, gymnasium.registry)} An id that a package registers is written "
                          f"'package:Name-v0'; Atari games have env_name: atari") from error


def _make(config: RunConfig, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    # The checker is off because CanonicalEnv checks every step, and raises where the checker only warns.
    return gymnasium.make(config.env_id, render_mode=render_mode, disable_env_checker=True, **config.env_kwargs)


CLASSIC_CONTROL = Family(_make_classic_control)
GYMNASIUM = Family(_make_any)
