"""What faults.py has a run import: an environment that goes wrong, and a signal at a chosen moment. Every fault comes
once: the environment's own at step AT of the first one, the signal's in the process that has XRL_MOMENT.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import numpy as np
from gymnasium import spaces

import xrl.agents.base as base
from xrl.agents.base import Agent
from xrl.common.checkpoint import Checkpoints
from xrl.environment import REGISTRY_ENV, RawEnvironment

AT = 30
PRETRAINING, ACTING = 3, 5  # updates and evaluation steps before the signal
SLOW = float(os.environ.get("XRL_SLOW", "0"))  # seconds that a step takes


class Faulty(RawEnvironment):
    """Episodes of 20 steps; the first of them breaks as env_id says, unless it has been restarted."""

    def __init__(self, env_config: Any) -> None:
        self.observation_space, self.action_space = spaces.Box(-1, 1, (3,)), spaces.Discrete(2)
        self.how = env_config.env_id if env_config.env_seed == 1 else ""  # a restarted one has another seed
        self.total = self.steps = 0

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self.steps = 0
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.total += 1
        time.sleep(SLOW)
        obs, reward = np.full(3, self.steps / 20, np.float32), 1.0
        if self.total == AT:
            obs, reward = self._fault(obs)
        return obs, reward, self.steps == 20, False, {}

    def _fault(self, obs: np.ndarray) -> tuple[np.ndarray, float]:
        if self.how == "raises":
            raise ValueError("the arm is stuck")
        if self.how == "hangs":
            time.sleep(10**6)
        if self.how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        return {"wrong shape": obs[:2], "NaN observation": obs * np.nan}.get(self.how, obs), (
            float("nan") if self.how == "NaN reward" else 1.0)

    def get_state(self) -> dict[str, Any]:
        return {"total": self.total, "steps": self.steps}

    def set_state(self, state: dict[str, Any]) -> None:
        self.total, self.steps = state["total"], state["steps"]


REGISTRY_ENV["faulty"] = Faulty


def send() -> None:
    """The signal, to this process, once; a second one after 0.3 s where XRL_TWICE is set."""
    global sent
    if not sent:
        sent = True
        number = int(os.environ["XRL_SIGNAL"])
        os.kill(os.getpid(), number)
        if "XRL_TWICE" in os.environ:
            threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
            time.sleep(60)


def in_steps(step: Any) -> Any:
    def wrapped(agent: Any) -> None:
        if agent.agent_steps >= 100:
            send()
        step(agent)
    return wrapped


def in_pretraining(updated: Any) -> Any:
    def wrapped(agent: Any, metrics: Any) -> None:
        if agent.pretraining and agent.updates >= PRETRAINING:
            send()
        updated(agent, metrics)
    return wrapped


def in_evaluation(play: Any) -> Any:
    def wrapped(act: Any, *arguments: Any) -> Any:
        calls = []

        def counting(*inputs: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) >= ACTING:
                send()
            return act(*inputs, **options)
        return play(counting, *arguments)
    return wrapped


def in_checkpoint(write: Any) -> Any:
    def wrapped(checkpoints: Any, folder: Any, snapshot: Any) -> None:
        if snapshot.counters["agent_steps"] >= 60:
            send()
            time.sleep(0.3)
        write(checkpoints, folder, snapshot)
    return wrapped


sent = False
moment = os.environ.get("XRL_MOMENT")
if moment == "steps":
    Agent.step = in_steps(Agent.step)  # type: ignore[method-assign]
elif moment == "pretraining":
    Agent.updated = in_pretraining(Agent.updated)  # type: ignore[method-assign]
elif moment == "evaluation":
    base.play = in_evaluation(base.play)
elif moment == "checkpoint":
    Checkpoints._write = in_checkpoint(Checkpoints._write)  # type: ignore[method-assign]
