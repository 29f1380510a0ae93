"""An environment that goes wrong once, in any way there is."""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from xrl.common.errors import ConfigError

FIRST = 100  # seeds below are the run's own, those of restarts are far above
GOOD = np.zeros(2, np.float32)


class Troubled(gymnasium.Env):
    """Breaks as ``how`` says at step ``at``, where it has one of the run's own seeds; ``always``: with any seed.

    The observation is [number drawn, steps since the reset]; episodes of ``length`` steps. It can be saved.
    """

    def __init__(self, seed: int, how: str = "", at: int = 3, always: bool = False, length: int = 10**9,
                 close_fails: bool = False) -> None:
        self.observation_space, self.action_space = spaces.Box(0, 1000, (2,)), spaces.Discrete(2)
        self.how = how if always or seed < FIRST else ""
        self.again = how if seed >= FIRST else ""
        self.at, self.length, self.steps, self.resets, self.closed = at, length, 0, 0, 0
        self.close_fails = close_fails and seed < FIRST
        if self.again == "other spaces":
            self.observation_space = spaces.Box(0, 1000, (3,))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.resets, self.steps = self.resets + 1, 0
        if self.how == "reset" and self.resets > 1:
            raise KeyError("no level file")
        if self.again == "again":
            raise KeyError("no level file")
        if self.again == "dies again":
            os._exit(4)
        return self._seen(), {}

    def step(self, action: int) -> Any:
        self.steps += 1
        if self.steps == self.at and self.how not in ("", "reset"):
            return trouble(self.how)
        return self._seen(), 1.0, self.steps == self.length, False, {}

    def _seen(self) -> np.ndarray:
        return np.array([self.np_random.random(), self.steps], np.float32)

    def close(self) -> None:
        self.closed += 1
        if self.close_fails:
            raise OSError("cannot close")

    def get_state(self) -> dict[str, Any]:
        return {"steps": self.steps, "resets": self.resets}

    def set_state(self, state: dict[str, Any]) -> None:
        self.steps, self.resets = state["steps"], state["resets"]


def trouble(how: str) -> Any:
    if how in ("raise", "again", "other spaces"):
        raise ZeroDivisionError("100 % 0")  # a percent sign: it must survive whatever formats the message
    if how == "config":
        raise ConfigError("not the environment's fault")
    if how == "hang":
        while True:
            pass
    if how == "sleep":
        time.sleep(60)
    if how == "sys.exit":
        sys.exit(3)
    if how in ("os._exit", "dies again"):
        os._exit(7)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "kill, leaving a child" and os.fork():
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "kill, leaving a child":
        time.sleep(5)
        os._exit(0)
    return {"nan": (np.array([0, np.nan], np.float32), 0.0, False, False, {}),
            "shape": (np.zeros(3, np.float32), 0.0, False, False, {}),
            "dtype": (np.array(["a", "b"]), 0.0, False, False, {}),
            "reward": (GOOD, float("inf"), False, False, {}),
            "nan reward": (GOOD, float("nan"), True, False, {}),
            "four values": (GOOD, 0.0, False, {})}[how]


def troubled(how: str, **keys: Any) -> list[Any]:
    """Three environments, of which the second goes wrong."""
    return [Troubled, partial(Troubled, how=how, **keys), Troubled]


def first_seen(seed: int, restarts: int) -> float:
    """What a restarted environment must draw first, from the words of its seed."""
    derived = int(np.random.SeedSequence([seed, restarts]).generate_state(1)[0]) % 2**31
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(derived))).random()
