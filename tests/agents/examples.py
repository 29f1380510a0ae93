"""Environments that note what is done to them, and agents small enough for a whole run in a test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from xrl.agents.base import Agent
from xrl.agents.dreamer_v2 import DreamerV2Agent
from xrl.common.callback import Callback
from xrl.common.config import as_config
from xrl.environment import REGISTRY_ENV, RawEnvironment, make_envs


class Watched(gymnasium.Env):
    """An episode is ``length`` steps (plus seed modulo ``spread``); the reward of its n-th step is n, for action 0
    another 0.5. Every instance is kept in ``made`` with what was done to it.

    From its step ``trouble_at`` on (counted over episodes) it does what ``trouble`` says: a function of the
    environment and of what the step would have returned.
    """

    made: ClassVar[list[Watched]] = []
    trouble: ClassVar[Any] = None
    trouble_at: ClassVar[int] = 0

    def __init__(self, length: int = 7, spread: int = 1, continuous: bool = False) -> None:
        self.observation_space = spaces.Box(-10, 10, (2,), np.float32)
        self.action_space = spaces.Box(-2, 2, (2,), np.float32) if continuous else spaces.Discrete(2)
        self.length, self.spread = length, spread
        self.frame = self.steps = self.resets = self.closed = 0
        self.seeds: list[int | None] = []
        self.actions: list[np.ndarray] = []
        self.made.append(self)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        if len(self.seeds) == 1:
            self.length += (seed or 0) % self.spread
        self.resets, self.frame = self.resets + 1, 0
        return self._look(), {}

    def step(self, action: Any) -> Any:
        self.actions.append(np.copy(action))
        self.steps, self.frame = self.steps + 1, self.frame + 1
        result = (self._look(), self.frame + 0.5 * float(np.all(action == 0)), self.frame >= self.length, False, {})
        if self.trouble is not None and self.steps >= self.trouble_at:
            return type(self).trouble(self, result)
        return result

    def close(self) -> None:
        self.closed += 1

    def _look(self) -> np.ndarray:
        return np.array([self.frame / 10, self.np_random.normal()], np.float32)


class WatchedRaw(RawEnvironment):
    """The same as a RawEnvironment; ``length`` comes from env_kwargs, as the other run keys do."""

    def __init__(self, env_config: Any) -> None:
        super().__init__(env_config)
        self._env = Watched(env_config.length)
        self.observation_space, self.action_space = self._env.observation_space, self._env.action_space
        self.max_episode_steps = 100

    def reset(self) -> Any:
        return self._env.reset(seed=self.env_config.env_seed)

    def step(self, action: Any) -> Any:
        return self._env.step(action)

    def close(self) -> None:
        self._env.close()


class Recorder(Callback):
    """Every event as (name, agent_steps, updates, argument)."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int, int, Any]] = []

    def _note(self, name: str, agent: Agent, argument: Any = None) -> None:
        self.events.append((name, agent.agent_steps, agent.updates, argument))

    def on_train_begin(self, agent: Agent, target_steps: int) -> None:
        self._note("train_begin", agent, target_steps)

    def on_step(self, agent: Agent) -> None:
        self._note("step", agent)

    def on_episode_end(self, agent: Agent, episode: Any) -> None:
        self._note("episode_end", agent, episode)

    def on_update(self, agent: Agent, metrics: Any) -> None:
        self._note("update", agent, {name: float(value) for name, value in metrics.items()})

    def on_evaluation(self, agent: Agent, evaluation: Any) -> None:
        self._note("evaluation", agent, evaluation)

    def on_failure(self, agent: Agent, failure: Any) -> None:
        self._note("failure", agent, failure)

    def on_pause(self, agent: Agent) -> None:
        self._note("pause", agent)

    def on_train_end(self, agent: Agent) -> None:
        self._note("train_end", agent)

    def on_finish(self, agent: Agent) -> None:
        self._note("finish", agent)

    def named(self, name: str) -> list[tuple[str, int, int, Any]]:
        return [event for event in self.events if event[0] == name]


@contextmanager
def watched_environments() -> Iterator[type[Watched]]:
    """Watched and WatchedRaw registered; nothing noted yet, no trouble set."""
    before, threads = dict(REGISTRY_ENV), torch.get_num_threads()
    torch.set_num_threads(1)  # such tiny networks only lose time to more
    Watched.made.clear()
    Watched.trouble, Watched.trouble_at = None, 0
    REGISTRY_ENV.update(watched=Watched, watched_raw=WatchedRaw)
    try:
        yield Watched
    finally:
        REGISTRY_ENV.clear()
        REGISTRY_ENV.update(before)
        Watched.trouble = None
        torch.set_num_threads(threads)


def tiny(model_dir: Path, env: str = "watched", env_id: str = "any-v0", **keys: Any) -> dict[str, Any]:
    """A configuration that runs in well under a second; ``keys`` may be dotted."""
    return {"method": "DreamerV2", "env_name": env, "env_id": env_id, "preset": "debug", "device": "cpu",
            "logger": "none", "model_dir": str(model_dir), "start_training": 20, **keys}


class Workshop:
    """Makes agents with environments of their own, and closes everything in the end."""

    def __init__(self, model_dir: Path) -> None:
        self.model_dir = model_dir
        self.agents: list[DreamerV2Agent] = []

    def agent(self, callbacks: Any = (), **keys: Any) -> DreamerV2Agent:
        config = as_config(tiny(self.model_dir, **keys))
        agent = DreamerV2Agent(config, make_envs(config), callbacks)
        self.agents.append(agent)
        return agent

    def close(self) -> None:
        for agent in self.agents:
            agent.finish()
            agent.envs.close()


def weights(agent: Agent) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in agent.policy.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def untimed(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl without what depends on the clock."""
    return [{key: value for key, value in record.items() if not key.startswith("time/")} for record in records(path)]


def stored_rows(replay):
    """Every row that a replay holds, oldest first: entry -> (rows, E, *shape)."""
    segments = replay._stored
    envs = np.arange(replay._num_envs)
    numbers = np.arange(segments.end - len(replay) // len(envs), segments.end)
    return segments.gather(np.repeat(numbers[:, None], len(envs), axis=1), envs)
