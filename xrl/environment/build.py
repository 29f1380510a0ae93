"""From a configuration to one canonical environment, and to the vector of them that agents step."""

from __future__ import annotations

import inspect
import os
import sys
import tempfile
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
from gymnasium.wrappers import HumanRendering, RepeatAction, TimeLimit

from xrl.common.config import as_config
from xrl.common.errors import ConfigError, XrlError
from xrl.configs.schemas.base import RunConfig
from xrl.environment.raw import RawEnvironment
from xrl.environment.registry import Family, find_entry
from xrl.environment.vector import RowEnvs, Vector, make_vector
from xrl.environment.wrappers import CanonicalEnv, Pace, RawAdapter


def make_envs(config: RunConfig | Mapping[str, Any] | Namespace, *, seed_offset: int = 0,
              parallels: int | None = None, render_mode: str | None = None) -> RowEnvs:
    """The environments of a run, stepped together; environment i is seeded env_seed + seed_offset + i.

    ``parallels`` overrides the config's; ``render_mode`` is "human", "rgb_array" or None (the config's own is for
    test mode, so whoever tests passes it); environments to look at are stepped in this process where the config says
    native. Raises ConfigError if the environment is unknown, cannot be constructed, has spaces that are not supported,
    or is to open a window where there is no display.
    """
    config = as_config(config)
    entry = find_entry(config.env_name)
    if render_mode == "human" and _opens_window(entry) and not has_display():
        raise ConfigError("render_mode: human opens a window, but this machine has no display (neither DISPLAY nor "
                          "WAYLAND_DISPLAY is set); write a video instead with render=true, or put xvfb-run -a "
                          "before the command")
    if render_mode == "rgb_array":
        quiet_drawing()
    count = config.parallels if parallels is None else parallels
    if count < 1:
        raise ConfigError(f"parallels: {count} is too few; use at least 1")
    if isinstance(entry, Family) and entry.prepare is not None:
        entry.prepare(config, render_mode)
    seeds = [config.env_seed + seed_offset + index for index in range(count)]
    kind = "environment" if seed_offset == 0 else "evaluation environment"
    if config.vectorize == "native":
        make_native = _native_maker(entry, config)
        if render_mode is None:
            with _constructing(f"{kind}s ({config.env_name}/{config.env_id})", config):
                return RowEnvs(make_native(config, count), seeds, config.environment.action_repeat)
    factories = [EnvFactory(entry, config, f"{kind} {index} ({config.env_name}/{config.env_id})", render_mode)
                 for index in range(count)]
    vector = make_vector(factories, seeds, config.vectorize == "async", config.env_timeout)
    envs = RowEnvs(vector, seeds, config.environment.action_repeat)
    if unbounded := vector.get_attr("unbounded_actions")[0]:
        warnings.warn(f"{factories[0].label}: {unbounded} of {envs.action_spec.size} action entries have infinite "
                      f"bounds; they are given actions in [-1, 1]. Set finite bounds to use another range.",
                      stacklevel=2)
    return envs


def has_display() -> bool:
    """Whether a window can open. Only Linux can be without a display, and there SDL_VIDEODRIVER may name a way out."""
    if not sys.platform.startswith("linux"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"))


def quiet_drawing() -> None:
    """Without a display SDL, which pygame draws with, looks for Wayland's socket and prints an error where
    XDG_RUNTIME_DIR names no folder to look in. Any folder will do; worker processes inherit it."""
    if not has_display() and not os.environ.get("XDG_RUNTIME_DIR"):
        os.environ["XDG_RUNTIME_DIR"] = tempfile.gettempdir()


def _opens_window(entry: Any) -> bool:
    """Raw environments draw as they like, or not at all. Without a display SDL would draw where nobody sees it."""
    if isinstance(entry, Family):
        return True
    is_raw = inspect.isclass(entry) and not issubclass(entry, gymnasium.Env)
    return not is_raw and callable(entry) and _takes_render_mode(entry)


def _native_maker(entry: Any, config: RunConfig) -> Callable[[RunConfig, int], Vector]:
    if not isinstance(entry, Family) or entry.make_native is None:
        raise ConfigError(f"vectorize: native is for emulators with a vector of their own, which env_name: "
                          f"{config.env_name} has not (atari has); use sync or async")
    return entry.make_native


@contextmanager
def _constructing(label: str, config: RunConfig) -> Iterator[None]:
    """Raises whatever a constructor that is not ours raises as a ConfigError."""
    try:
        yield
    except XrlError:
        raise
    except Exception as error:
        raise ConfigError(f"{label} cannot be constructed with env_kwargs: {config.env_kwargs}: "
                          f"{type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class EnvFactory:
    """Builds one environment of a run, in this process or in a worker's; ``label`` is what errors call it."""

    entry: Any
    config: RunConfig
    label: str
    render_mode: str | None

    def __call__(self, seed: int) -> CanonicalEnv:
        """``seed`` is for environments that take theirs at construction."""
        with _constructing(self.label, self.config):
            return self._build(seed)

    def _build(self, seed: int) -> CanonicalEnv:
        """Innermost first: the environment and its own limit (frames), action repeat, time limit (agent steps)."""
        family = self.entry if isinstance(self.entry, Family) else Family(partial(self._from_user, seed))
        env = family.make(self.config, self.render_mode)
        try:
            return self._wrap(env, family)
        except BaseException:
            env.close()
            raise

    def _wrap(self, env: gymnasium.Env[Any, Any], family: Family) -> CanonicalEnv:
        settings = self.config.environment
        own_limit = 0
        if isinstance(env, RawAdapter) and env.max_episode_steps:
            own_limit = env.max_episode_steps
            env = TimeLimit(env, own_limit)
        elif env.spec is not None:
            own_limit = env.spec.max_episode_steps or 0
        if settings.action_repeat > 1 and not family.repeats:
            env = RepeatAction(env, settings.action_repeat)
        limit = settings.time_limit or family.time_limit
        if limit:
            env = TimeLimit(env, limit)
        if self.render_mode == "human":
            env = Pace(env, self.config.fps, settings.action_repeat)
        limits = [value for value in (limit, -(-own_limit // settings.action_repeat)) if value]
        return CanonicalEnv(env, self.label, min(limits, default=0))

    def _from_user(self, seed: int, config: RunConfig, render_mode: str | None) -> gymnasium.Env[Any, Any]:
        entry = self.entry
        if not callable(entry) or isinstance(entry, gymnasium.Env):
            raise ConfigError(f"REGISTRY_ENV[{config.env_name!r}] is {entry!r}; register a class, or a function that "
                              f"returns an environment, so that every one of `parallels` is its own")
        is_class = inspect.isclass(entry)
        if is_class and (issubclass(entry, RawEnvironment) or not issubclass(entry, gymnasium.Env)):
            env = entry(_env_config(config, seed, render_mode))
        else:
            env = _call(entry, config.env_kwargs, render_mode)
        return env if isinstance(env, gymnasium.Env) else RawAdapter(env, render_mode)


def _env_config(config: RunConfig, seed: int, render_mode: str | None) -> Namespace:
    """What a raw environment receives: the run keys, its own seed and render mode, and env_kwargs as attributes."""
    run_keys = {key: value for key, value in config.model_dump().items() if key in RunConfig.model_fields}
    return Namespace(**{**run_keys, "env_seed": seed, "render_mode": render_mode, **config.env_kwargs})


def _call(make: Callable[..., Any], kwargs: dict[str, Any], render_mode: str | None) -> Any:
    """``make(**kwargs)``, with ``render_mode`` where it is wanted and accepted.

    As in gymnasium.make, an environment that can only give frames gets a window around it.
    """
    if render_mode is None or not _takes_render_mode(make):
        return make(**kwargs)
    modes = make.metadata.get("render_modes", []) if hasattr(make, "metadata") else []
    if render_mode == "human" and "human" not in modes and "rgb_array" in modes:
        return HumanRendering(make(**{"render_mode": "rgb_array", **kwargs}))
    return make(**{"render_mode": render_mode, **kwargs})


def _takes_render_mode(make: Callable[..., Any]) -> bool:
    parameters = inspect.signature(make).parameters
    return "render_mode" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
