"""Playing episodes to measure a policy."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from xrl.common.callback import Evaluation
from xrl.common.errors import TooManyFailures
from xrl.common.row import Row
from xrl.environment import RowEnvs
from xrl.report.drawing import shrunk

# An environment without an end would hold an evaluation for ever.
LONGEST_EPISODE = 27_000
LONGEST_FILM = 500  # pictures


class Recorder:
    """Keeps the first rows of the first episode of the first environments, as they are played."""

    EPISODES, ROWS = 8, 256

    def __init__(self) -> None:
        self._rows: list[list[Row]] = []
        self._over: list[bool] = []

    def __call__(self, row: Row) -> None:
        if not self._rows:
            self._rows = [[] for _ in range(min(len(row.reward), self.EPISODES))]
            self._over = [False] * len(self._rows)
        for env, kept in enumerate(self._rows):
            if self._over[env]:
                continue
            if row.is_first[env]:  # of an environment that failed, too: what came before is no whole episode
                kept.clear()
            kept.append(one_of(row, env))
            self._over[env] = bool(row.is_last[env]) or len(kept) == self.ROWS

    def episodes(self) -> tuple[Row, ...]:
        """Each of leading shape (T,), T at least 2."""
        return tuple(joined(rows) for rows in self._rows if len(rows) > 1)


def one_of(row: Row, env: int) -> Row:
    """The row of one environment, without a leading axis."""
    parts = {name: value[env] for name, value in vars(row).items() if name != "obs"}
    return Row({name: value[env] for name, value in row.obs.items()}, **parts)


def joined(rows: list[Row]) -> Row:
    """Rows without a leading axis to one of leading shape (T,)."""
    parts = {name: np.stack([vars(row)[name] for row in rows]) for name in vars(rows[0]) if name != "obs"}
    return Row({name: np.stack([row.obs[name] for row in rows]) for name in rows[0].obs}, **parts)


def check_failures(envs: RowEnvs, allowed: int) -> None:
    """Raise TooManyFailures, with the environment's own traceback, if the last step brought one failure too many."""
    if envs.failed and envs.failures > allowed:
        raise TooManyFailures(f"{envs.failures} failures of environments are more than max_env_failures: {allowed}. "
                               f"The last one:\n{envs.failed[-1].detail}")


def play(act: Callable[..., tuple[np.ndarray, Any]], state: Any, envs: RowEnvs, episodes: int,
         generator: torch.Generator, watch: Callable[[Row], None], max_failures: int) -> Evaluation:
    """Play ``episodes`` whole episodes, spread evenly over the environments beforehand.

    ``watch`` is called with every row, those after the last episode that counts included.

    Each environment plays a fixed number of episodes: counting whichever finish first would favour short ones.
    Where no limit is known, an episode longer than LONGEST_EPISODE agent steps counts with what it has, under a
    warning. An episode whose environment fails does not count; it is played again. Raises TooManyFailures after more
    than ``max_failures`` of those.
    """
    quota = np.full(envs.num_envs, episodes // envs.num_envs)
    quota[:episodes % envs.num_envs] += 1
    scores, lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, dtype=np.int64)
    done: list[tuple[float, int]] = []
    longest = LONGEST_EPISODE if envs.time_limit is None else np.inf
    row = envs.reset()
    watch(row)
    while quota.any():
        action, state = act(row, state, generator, explore=False)
        row = envs.step(action)
        watch(row)
        check_failures(envs, max_failures)
        scores = np.where(row.is_first, 0.0, scores + row.reward)
        lengths = np.where(row.is_first, 0, lengths + 1)
        endless = (lengths >= longest) & ~row.is_last & (quota > 0)
        for env in np.flatnonzero((row.is_last & (quota > 0)) | endless):
            done.append((float(scores[env]), int(lengths[env])))
            quota[env] -= 1
        if endless.any():
            warnings.warn(f"evaluation: an episode had not ended after {LONGEST_EPISODE} agent steps and was cut; "
                          "set environment.time_limit", stacklevel=2)
            quota[endless] = 0  # the environment would only go on with the same episode
    return Evaluation(tuple(score for score, _ in done), tuple(length for _, length in done))


def play_film(act: Callable[..., tuple[np.ndarray, Any]], state: Any, envs: RowEnvs,
              generator: torch.Generator) -> list[np.ndarray]:
    """One episode of one environment, as it draws itself, or as much of it as came before the environment failed:
    pictures (height, width, 3) of uint8, LONGEST_FILM at most, all of one size, at most WIDEST wide.

    Raises ConfigError if it draws none.
    """
    row = envs.reset()
    pictures = [shrunk(envs.picture())]
    while not row.is_last[0] and len(pictures) < LONGEST_FILM:
        action, state = act(row, state, generator, explore=False)
        row = envs.step(action)
        if envs.failed:
            break
        pictures.append(shrunk(envs.picture(), pictures[0].shape))
    return pictures
