"""Playing episodes to measure a policy."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from xrl.common.callback import Evaluation
from xrl.common.errors import TooManyFailures
from xrl.environment import RowEnvs

# An environment without an end would hold an evaluation for ever.
LONGEST_EPISODE = 27_000


def check_failures(envs: RowEnvs, allowed: int) -> None:
    """Raise TooManyFailures, with the environment's own traceback, if the last step brought one failure too many."""
    if envs.failed and envs.failures > allowed:
        raise TooManyFailures(f"{envs.failures} failures of environments are more than max_env_failures: {allowed}. "
                               f"The last one:\n{envs.failed[-1].detail}")


def play(act: Callable[..., tuple[np.ndarray, Any]], state: Any, envs: RowEnvs, episodes: int,
         generator: torch.Generator, between_steps: Callable[[], None], max_failures: int) -> Evaluation:
    """Play ``episodes`` whole episodes, spread evenly over the environments beforehand.

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
    while quota.any():
        action, state = act(row, state, generator, explore=False)
        row = envs.step(action)
        between_steps()
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
