"""Run keys of methods that learn from replayed sequences after a phase of random actions."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from xrl.configs.schemas.base import RunConfig
from xrl.configs.schemas.fields import Int, Section, param


class ReplayConfig(Section):
    storage: Literal["disk", "memory"] = param(
        "disk", "disk: rows lie in the run folder and are read through the system's cache; memory: all of them in RAM")
    sampling: Literal["steps", "episodes"] = param(
        "steps", "windows uniform over steps, or over finished episodes first (official)")
    min_length: Int = param(50, "sampling: episodes: shorter episodes are never drawn", "agent steps", ge=1)
    prioritize_ends: bool = param(True, "sampling: episodes: oversample the window that ends an episode")


class ReplayedConfig(RunConfig):
    seq_len: Int = param(50, "rows of a replayed sequence, T", "rows", ge=2)
    train_every: Int = param(5, "one update per this many", "agent steps", ge=1)
    batches_ahead: Int = param(0, "1: the next batch is drawn when an update begins, and so knows nothing newer",
                               "batches", ge=0, le=1)
    policy_lag: Int = param(0, "1: environments step while an update runs, acting with the weights from before it",
                            "updates", ge=0, le=1)
    pretrain: Int = param(2, "updates after the random actions, before the policy acts", "updates", ge=0)
    replay: ReplayConfig = param(ReplayConfig(), "how sequences are drawn")

    @model_validator(mode="after")
    def _consistent(self) -> ReplayedConfig:
        if self.replay.sampling == "episodes" and self.replay.min_length + 1 < self.seq_len:
            raise ValueError(
                f"replay.min_length: {self.replay.min_length} is too short: an episode of n steps has n + 1 rows "
                f"and must hold a sequence of seq_len = {self.seq_len}; use at least {self.seq_len - 1}")
        if self.buffer_size < self.seq_len * 2:
            raise ValueError(f"buffer_size: {self.buffer_size} cannot hold two sequences of seq_len = {self.seq_len}")
        return self
