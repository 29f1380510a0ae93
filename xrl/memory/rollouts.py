"""Rollouts: the rows of all environments since the last one, for methods that learn from what they have just done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xrl.common.row import ActionSpec, ObsSpec, Row
from xrl.memory.sequence_replay import SequenceReplay


class Rollouts:
    """Rows go in one by one; after every ``steps`` of them there is a rollout, which a transition shares with its
    neighbours by no more than a row::

        row          0   1   2   3   4   5   6      steps = 3
        rollouts     |-----------|-----------|      each has steps + 1 rows: the last is the first of the next

    A transition leads from row t to row t + 1, and is one unless row t + 1 is ``is_first``. Of ``frames`` - 1 rows
    before the rollout, too, the observations are needed where several make one (``xrl.ops.frames``).
    """

    def __init__(self, obs_spec: Mapping[str, ObsSpec], action_spec: ActionSpec, *, num_envs: int, steps: int,
                 frames: int = 1) -> None:
        self._num_envs, self._steps, self._frames = num_envs, steps, frames
        rows = steps + frames
        self._rows = SequenceReplay(obs_spec, action_spec, num_envs=num_envs, capacity=rows * num_envs, seq_len=rows,
                                    sampling="steps", min_length=1, prioritize_ends=False, segment_rows=rows)
        self._begin = 0  # the first row of the rollout under way

    def insert(self, row: Row) -> None:
        """Append one row per environment. Raises EnvironmentFault, see ``SequenceReplay.insert``."""
        self._rows.insert(row)

    @property
    def full(self) -> bool:
        """Whether there is a rollout to take."""
        return self._rows.end > self._begin + self._steps

    def take(self) -> Row:
        """The rollout, of leading shape (frames - 1 + steps + 1, E), as fresh arrays; the next one begins.

        Before the run's first row there is none: that one, which is ``is_first``, stands in its place.
        """
        numbers = np.arange(self._begin - self._frames + 1, self._begin + self._steps + 1).clip(self._rows.oldest)
        self._begin += self._steps
        shape = (len(numbers), self._num_envs)
        return self._rows.read(np.broadcast_to(numbers[:, None], shape), np.arange(self._num_envs))

    def save(self, folder: Path) -> dict[str, Any]:
        """Make sure that the rows still needed are in files in ``folder``, and return all the rest."""
        return self._rows.save(folder) | {"begin": self._begin}

    def load(self, state: Mapping[str, Any], folder: Path) -> None:
        """Go on from what ``save`` returned, and its files. Raises CheckpointError where they do not fit."""
        self._rows.load(state, folder)
        self._begin = int(state["begin"])
