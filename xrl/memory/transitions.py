"""Transition replay: the same rows as a sequence replay holds, drawn as short windows around a transition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xrl.common.row import ActionSpec, ObsSpec, Row
from xrl.memory.sequence_replay import SequenceReplay
from xrl.memory.sum_tree import SumTree


@dataclass(frozen=True)
class Priorities:
    """Prioritised replay, proportional (Schaul et al. 2016): P(i) = p_i^alpha / sum p^alpha, p = |delta| + eps."""

    alpha: float
    eps: float = 1e-6


@dataclass(frozen=True)
class Draw:
    """Transitions drawn: ``rows``, (frames - 1 + n_step + 1, B) leading; ``places`` (B,), for ``reprioritise``;
    ``probs`` (B,): the probability of each, of all ``count`` there are."""

    rows: Row
    places: np.ndarray
    probs: np.ndarray
    count: int

    def weights(self, beta: float) -> np.ndarray:
        """(N P(i))^-beta over the largest of the batch, (B,) float32: corrects for not drawing uniformly."""
        weights = (self.count * self.probs) ** -beta
        return (weights / weights.max()).astype(np.float32)


class TransitionReplay:
    """Rings of the latest rows of each environment, read as windows around transitions.

    A transition leads from row t to row t + 1, and is one unless row t + 1 is ``is_first``. With it come the rows up
    to t + n_step, of which those of the same episode count (``xrl.ops.returns.n_step``), and the ``frames`` - 1 rows
    before t (``xrl.ops.frames``)::

        window    t-K+1  ..  t  t+1  ..  t+n        K = frames, n = n_step

    Drawn uniformly, or with ``priorities``: a new transition has the largest priority there was so far, until it is
    drawn and ``reprioritise`` says more. Rows are stored as in ``SequenceReplay``, also in how capacity counts.

    Raises ConfigError when a ring is too small for one window.
    """

    def __init__(self, obs_spec: Mapping[str, ObsSpec], action_spec: ActionSpec, *, num_envs: int, capacity: int,
                 n_step: int = 1, frames: int = 1, priorities: Priorities | None = None,
                 folder: Path | None = None, mapped: bool = True, keep_files: bool = False) -> None:
        self._num_envs, self._ring, self._n_step, self._frames = num_envs, capacity // num_envs, n_step, frames
        self._rows = SequenceReplay(
            obs_spec, action_spec, num_envs=num_envs, capacity=capacity, seq_len=frames + n_step, sampling="steps",
            min_length=1, prioritize_ends=False, folder=folder, mapped=mapped, keep_files=keep_files)
        self._priorities = priorities
        self._largest = 1.0  # p^alpha of a new transition
        # By place, (row number of t modulo the ring, env): p^alpha, and 0 where none can be drawn.
        self._tree = SumTree(self._ring * num_envs) if priorities else None
        self._valid = np.zeros((self._ring, num_envs), bool)
        self._count = 0
        self._recent = np.ones((n_step, num_envs), bool)  # is_first of the newest rows, by number modulo n_step

    nbytes_needed = staticmethod(SequenceReplay.nbytes_needed)

    @property
    def agent_steps(self) -> int:
        """Stored rows, over all environments, that are not reset rows."""
        return self._rows.agent_steps

    def __len__(self) -> int:
        """Transitions that can be drawn."""
        return self._count

    def insert(self, row: Row) -> None:
        """Append one row per environment. Raises EnvironmentFault, see ``SequenceReplay.insert``."""
        self._rows.insert(row)
        newest = self._rows.end - 1
        self._recent[newest % self._n_step] = row.is_first
        self._mark(self._rows.oldest + self._frames - 2, np.zeros(self._num_envs, bool))  # its window lost a row
        if (start := newest - self._n_step) >= self._rows.oldest + self._frames - 1:
            self._mark(start, ~self._recent[(start + 1) % self._n_step])

    def sample(self, batch_size: int, rng: np.random.Generator) -> Draw:
        """Draw ``batch_size`` transitions, independently (with priorities: one from each of as many equal shares of the
        total, as the paper does). There must be one: see ``len``."""
        if self._tree is None:
            places, probs = self._uniform(batch_size, rng), np.full(batch_size, 1 / self._count)
        else:
            share = (np.arange(batch_size) + rng.random(batch_size)) / batch_size
            places = self._tree.find(share * self._tree.total)
            probs = self._tree.values[places] / self._tree.total
        slot, env = np.divmod(places, self._num_envs)
        newest = self._rows.end - 1
        start = newest - (newest - slot) % self._ring  # the newest row number that has this slot
        window = np.arange(1 - self._frames, self._n_step + 1)[:, None]
        return Draw(self._rows.read(start + window, env), places, probs, self._count)

    def reprioritise(self, places: np.ndarray, error: np.ndarray) -> None:
        """Give transitions that were just drawn the priority of their TD errors, (B,)."""
        assert self._tree is not None and self._priorities is not None
        priority = (np.abs(error.astype(np.float64)) + self._priorities.eps) ** self._priorities.alpha
        self._tree.set(places, priority)
        self._largest = max(self._largest, float(priority.max()))

    def _mark(self, number: int, valid: np.ndarray) -> None:
        """Transitions from row ``number`` can be drawn from now on where ``valid`` (E,), and no longer elsewhere."""
        if number < 0:
            return
        slot = number % self._ring
        self._count += int(valid.sum()) - int(self._valid[slot].sum())
        self._valid[slot] = valid
        if self._tree is not None:
            self._tree.set(slot * self._num_envs + np.arange(self._num_envs), np.where(valid, self._largest, 0.0))

    def _uniform(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Places (count,). What is no transition is drawn again."""
        flat = self._valid.reshape(-1)
        used = min(self._rows.end, self._ring) * self._num_envs
        found = np.zeros(0, np.int64)
        while len(found) < count:
            drawn = rng.integers(used, size=count)
            found = np.concatenate([found, drawn[flat[drawn]]])
        return found[:count]

    def save(self, folder: Path) -> dict[str, Any]:
        """Make sure that every stored row is in a file in ``folder``, and return all the rest."""
        priorities = None if self._tree is None else {"largest": self._largest, "values": self._tree.values}
        return self._rows.save(folder) | {"valid": self._valid, "recent": self._recent, "priorities": priorities}

    def load(self, state: Mapping[str, Any], folder: Path) -> None:
        """Go on from what ``save`` returned, and its files. Raises CheckpointError where they do not fit."""
        self._rows.load(state, folder)
        self._valid[:], self._recent[:] = state["valid"], state["recent"]
        self._count = int(self._valid.sum())
        if self._tree is not None:
            self._largest = float(state["priorities"]["largest"])
            self._tree.set(np.arange(self._ring * self._num_envs), state["priorities"]["values"])
