"""What off-policy agents share: a replay of transitions, and when it is time to learn from it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from xrl.agents.base import Agent
from xrl.common.checkpoint import REPLAY
from xrl.common.row import Row
from xrl.common.schedule import Every
from xrl.memory import Draw, Priorities, TransitionReplay, check_disk, check_fits


class Replaying:
    """The replay of one agent, made when its first row comes, and the cadence of its updates.

    Learning begins ``start_training`` agent steps after the run began, or after a model was loaded, whose replay is
    empty; from then on there is one update per ``train_every`` agent steps. ``on_disk``: where rows lie, see
    ``TransitionReplay``, also for the other arguments.

    Raises ConfigError, with the first row, where the replay does not fit.
    """

    def __init__(self, agent: Agent[Any], *, on_disk: bool, train_every: int, n_step: int = 1, frames: int = 1,
                 priorities: Priorities | None = None) -> None:
        self._agent, self._on_disk, self._every = agent, on_disk, train_every
        self._n_step, self._frames, self._priorities = n_step, frames, priorities
        self._should_train = Every(train_every)
        self._begun_at = 0
        self._stored: TransitionReplay | None = None

    @property
    def stored(self) -> TransitionReplay:
        if self._stored is None:
            self._stored = self._make()
        return self._stored

    def insert(self, row: Row) -> None:
        self.stored.insert(row)

    def sample(self, batch_size: int, rng: np.random.Generator) -> Draw:
        return self.stored.sample(batch_size, rng)

    def reprioritise(self, places: np.ndarray, error: np.ndarray) -> None:
        self.stored.reprioritise(places, error)

    def updates_due(self, new_steps: int) -> int:
        """How many updates are due now that ``new_steps`` agent steps were made: with many environments several at
        once."""
        now, begin = self._agent.agent_steps, self._begun_at + self._agent.config.start_training
        if now < begin or len(self.stored) == 0:
            return 0
        return sum(self._should_train(step) for step in range(max(now - new_steps + 1, begin), now + 1))

    def begin(self) -> None:
        """Another model was loaded: what is stored stays, but learning waits for as much again."""
        self._begun_at = self._agent.agent_steps
        self._should_train = Every(self._every)

    def save(self) -> dict[str, Any]:
        """For ``run_state``, of which it must be the entry "replay": its files are part of a checkpoint."""
        return self.stored.save(self._agent.folder / REPLAY) | {
            "should_train": self._should_train.state_dict(), "begun_at": self._begun_at}

    def load(self, state: Mapping[str, Any]) -> None:
        """Raises CheckpointError where the rows do not fit."""
        self._stored = self._make()
        self._stored.load(state, self._agent.folder / REPLAY)
        self._should_train.load_state_dict(state["should_train"])
        self._begun_at = int(state["begun_at"])

    def _make(self) -> TransitionReplay:
        """Reserve the replay and say what it will take, before a long run finds out."""
        agent, capacity = self._agent, self._agent.config.buffer_size
        specs = agent.envs.obs_spec, agent.envs.action_spec
        needed = TransitionReplay.nbytes_needed(*specs, capacity, agent.envs.num_envs)
        folder = agent.folder / REPLAY if self._on_disk or agent.keeps_checkpoints else None
        if folder is not None:
            stored = sum(path.stat().st_size for path in folder.glob("rows_*")) if folder.exists() else 0
            check_disk(needed - stored, capacity, folder)
        if not self._on_disk:
            check_fits(needed, capacity)
        print(f"replay: {capacity:,} agent steps, up to {needed / 2**30:.3g} GiB "
              f"{'on disk' if self._on_disk else 'of memory'}", file=sys.stderr)
        return TransitionReplay(
            *specs, num_envs=agent.envs.num_envs, capacity=capacity, n_step=self._n_step, frames=self._frames,
            priorities=self._priorities, folder=folder, mapped=self._on_disk, keep_files=agent.keeps_checkpoints)
