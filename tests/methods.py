"""What tests over METHODS share: each method's debug preset, the tasks that it takes, training until it learns.

A method that is registered is tested by them without a line here; an environment family that ships a YAML file of its
own needs an example in FAMILIES.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import xrl.configs
from xrl.agents.base import Agent
from xrl.common.config_files import read_yaml
from xrl.common.config_keys import keys_of, make_layer
from xrl.common.registry import load
from xrl.methods import METHODS

CONFIGS = Path(next(iter(xrl.configs.__path__)))
# One step of everything, whatever the method; on top of its debug preset, which has the sizes.
QUICK: dict[str, Any] = {"device": "cpu", "logger": "none", "test_episode": 1, "eval_interval": 50, "log_interval": 20,
                         "environment.time_limit": 15}
# A task for each kind of observation and action that a family of ours has: (env, env_id).
TASKS = {("vector", "discrete"): ("classic_control", "CartPole-v1"),
         ("vector", "continuous"): ("classic_control", "Pendulum-v1"),
         ("image", "discrete"): ("toy", "Catch-v0")}
# Environments for files that name a family only, by the actions that they take, and the module that must be there.
FAMILIES: dict[str, tuple[str | None, dict[str, str]]] = {
    "classic_control": (None, {"discrete": "Acrobot-v1", "continuous": "Pendulum-v1"}),
    "gymnasium": (None, {"discrete": "MountainCar-v0", "continuous": "MountainCarContinuous-v0"}),
    "toy": (None, {"discrete": "Catch-v0"}),
    "atari": ("ale_py", {"discrete": "ALE/Pong-v5"}),
    "dmc": ("dm_control", {"continuous": "walker_walk"}),
    "minigrid": ("minigrid", {"discrete": "MiniGrid-Empty-5x5-v0"}),
    "box2d": ("Box2D", {"discrete": "LunarLander-v3", "continuous": "BipedalWalker-v3"}),
}


@cache
def debug(method: str) -> dict[str, Any]:
    """The debug preset of a method, which every method ships, by dotted key."""
    path = CONFIGS / METHODS[method].configs / "presets" / "debug.yaml"
    return dict(make_layer(str(path), read_yaml(path), load(METHODS[method].schema)).values)


def quick(method: str, **keys: Any) -> dict[str, Any]:
    """Overrides that make a run of ``method`` take about a second: its debug preset, QUICK, ``keys``."""
    known = keys_of(load(METHODS[method].schema)).leaves
    return {**debug(method), **{key: value for key, value in QUICK.items() if key in known}, **keys}


def takes(method: str, observation: str, action: str) -> bool:
    return observation in METHODS[method].observations and action in METHODS[method].actions


def task_of(method: str) -> tuple[str, str]:
    """The first of TASKS that the method takes."""
    return next(task for kinds, task in TASKS.items() if takes(method, *kinds))


def tasks() -> list[tuple[str, str, str]]:
    """(method, env, env_id) for every method and each of TASKS that it takes."""
    return [(method, *task) for method in METHODS for kinds, task in TASKS.items() if takes(method, *kinds)]


def example_of(method: str, family: str) -> tuple[str, str]:
    """An environment of a family whose actions the method takes; "default" stands for families without a file."""
    family = "gymnasium" if family == "default" else family
    assert family in FAMILIES, f"configs of {family} ship: name an example of it in {__name__}.FAMILIES"
    return family, next(env_id for action, env_id in FAMILIES[family][1].items() if action in METHODS[method].actions)


def missing(family: str) -> str | None:
    """The module that environments of the family need and that is not installed."""
    module = FAMILIES[family][0] if family in FAMILIES else None
    return module if module and importlib.util.find_spec(module) is None else None


def learn(agent: Agent[Any], updates: int = 2) -> None:
    """Train until so many updates are made; no debug preset needs more than 400 agent steps for them."""
    goal, steps = agent.updates + updates, 0
    while agent.updates < goal:
        agent.train(10)
        steps += 10 * agent.envs.num_envs
        assert steps <= 400, f"{agent.updates} updates in {steps} agent steps of the debug preset"


def dreams(method: str) -> bool:
    """Whether the method has a world model to look into."""
    return load(METHODS[method].agent).look is not Agent.look
