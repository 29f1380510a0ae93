"""The families of environments by name. Entries written as strings load on first use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xrl.common.errors import ConfigError
from xrl.common.registry import load, suggestion

if TYPE_CHECKING:
    import gymnasium

    from xrl.configs.schemas.base import RunConfig
    from xrl.environment.vector import Vector

# A user adds REGISTRY_ENV["MyEnv"] = MyEnv: a RawEnvironment, any class with __init__(self, env_config),
# a gymnasium.Env class, or a function that returns one.
REGISTRY_ENV: dict[str, Any] = {
    "classic_control": "xrl.environment.families:CLASSIC_CONTROL",
    "gymnasium": "xrl.environment.families:GYMNASIUM",
    "atari": "xrl.environment.atari:ATARI",
    "toy": "xrl.environment.toy:TOY",
}


@dataclass(frozen=True)
class Family:
    """A set of environments that ``env_id`` chooses from.

    ``make(config, render_mode)`` builds one. ``repeats``: it applies ``environment.action_repeat`` itself.
    ``time_limit``: where the config sets none, an episode is truncated after this many agent steps (0: never).
    ``make_native(config, num_envs)`` builds what `vectorize: native` steps; families without one refuse it.
    """

    make: Callable[[RunConfig, str | None], gymnasium.Env[Any, Any]]
    repeats: bool = False
    time_limit: int = 0
    make_native: Callable[[RunConfig, int], Vector] | None = None


def find_entry(env_name: str) -> Any:
    """The entry of REGISTRY_ENV for ``env_name``, loaded. Raises ConfigError with the nearest name if unknown."""
    if env_name not in REGISTRY_ENV:
        raise ConfigError(f"env_name: {env_name!r} is unknown.{suggestion(env_name, REGISTRY_ENV)} Known: "
                          f"{', '.join(REGISTRY_ENV)}; add your own with REGISTRY_ENV[{env_name!r}] = YourEnv "
                          f"(on the command line --import the module that does)")
    entry = REGISTRY_ENV[env_name]
    return load(entry) if isinstance(entry, str) else entry


def check_env_id(env_id: str, known: list[str], env_name: str) -> None:
    """Raise ConfigError with the nearest id unless ``env_id`` is one of ``known``."""
    if env_id not in known:
        raise ConfigError(f"env_id: {env_id!r} is unknown in {env_name}."
                          f"{suggestion(env_id, known) or ' Known: ' + ', '.join(known[:8])}")
