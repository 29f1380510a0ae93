"""What a model is shown and what it answers: held-out episodes, looks into its states, dreams. No torch in here, so
that whoever draws them needs none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from xrl.common.row import Row


@dataclass(frozen=True)
class Look:
    """What the networks make of N model states.

    ``obs``: name -> decoded observation (N, *shape) as the environment gives it, images uint8. ``reward``: (N,), of
    arriving in the state, after the transform that the model learns; ``cont``: (N,), probability that the episode goes
    on; ``value``: (N,), including ``reward``; ``action``: (N, A), probabilities of discrete actions (of several at
    once: one law after the other), the mode of continuous ones; ``entropy``: (N,), of the policy, nats.
    """

    obs: dict[str, np.ndarray]
    reward: np.ndarray
    cont: np.ndarray
    value: np.ndarray
    action: np.ndarray
    entropy: np.ndarray


@dataclass(frozen=True)
class Dream:
    """A held-out episode, and what the model imagined of it with the true actions after ``context`` rows of it.

    ``rows``: leading (T,). ``look``: N = T; before ``context`` the model had seen the row, from there on it had not.
    ``reward``: (T,), true and transformed as ``look.reward`` is.
    """

    context: int
    rows: Row
    look: Look
    reward: np.ndarray


@dataclass(frozen=True)
class Inspection:
    """Health of a world model on held-out episodes; docs/health.md explains every number.

    ``metrics``: scalars by metric key; one that cannot be said (no horizon that long, say) is missing. ``curves``: what
    is no scalar, as lists and numbers. ``dream``: of the first episode.
    """

    metrics: dict[str, float]
    curves: dict[str, Any]
    dream: Dream
