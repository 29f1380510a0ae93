"""The families of environments by name. Entries written as strings load on first use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
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
    "box2d": "xrl.environment.box2d:BOX2D",
    "dmc": "xrl.environment.dmc:DMC",
    "minigrid": "xrl.environment.minigrid:MINIGRID",
}

# Families with an extra of their name in setup.py: a module that only it installs, and its name in a package registry.
EXTRAS = {"box2d": ("Box2D", "gymnasium[box2d]"), "dmc": ("dm_control", "dm_control"),
          "minigrid": ("minigrid", "minigrid")}


@dataclass(frozen=True)
class Family:
    """A set of environments that ``env_id`` chooses from.

    ``make(config, render_mode)`` builds one. ``repeats``: it applies ``environment.action_repeat`` itself.
    ``time_limit``: where the config sets none, an episode is truncated after this many agent steps (0: never).
    ``make_native(config, num_envs)`` builds what `vectorize: native` steps; families without one refuse it.
    ``prepare(config, render_mode)`` is called once before environments are built, here or in workers.
    """

    make: Callable[[RunConfig, str | None], gymnasium.Env[Any, Any]]
    repeats: bool = False
    time_limit: int = 0
    make_native: Callable[[RunConfig, int], Vector] | None = None
    prepare: Callable[[RunConfig, str | None], None] | None = None


def find_entry(env_name: str) -> Any:
    """The entry of REGISTRY_ENV for ``env_name``, loaded.

    Raises ConfigError with the nearest name if unknown, and with the command that installs what is missing.
    """
    if env_name not in REGISTRY_ENV:
        raise ConfigError(f"env_name: {env_name!r} is unknown.{suggestion(env_name, REGISTRY_ENV)} Known: "
                          f"{', '.join(REGISTRY_ENV)}; add your own with REGISTRY_ENV[{env_name!r}] = YourEnv "
                          f"(on the command line --import the module that does)")
    entry = REGISTRY_ENV[env_name]
    if not isinstance(entry, str):
        return entry
    module, package = EXTRAS.get(env_name, ("", ""))
    if module and find_spec(module) is None:
        raise ConfigError(f'env_name: {env_name} needs {package}, which is not installed; pip install '
                          f'"xrl[{env_name}]" (from a checkout: pip install -e ".[{env_name}]")')
    return load(entry)


def check_env_id(env_id: str, known: list[str], env_name: str) -> None:
    """Raise ConfigError with the nearest id unless ``env_id`` is one of ``known``."""
    if env_id not in known:
        raise ConfigError(f"env_id: {env_id!r} is unknown in {env_name}."
                          f"{suggestion(env_id, known) or ' Known: ' + ', '.join(known[:8])}")
