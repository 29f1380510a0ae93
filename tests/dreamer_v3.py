"""Tiny DreamerV3 networks, learners and batches for tests."""

from __future__ import annotations

from typing import Any

import torch

from tests.builders import DISCRETE, VECTOR, generator, random_row
from xrl.common.row import ActionSpec, ObsSpec
from xrl.configs.schemas.dreamer_v3 import DreamerV3Config
from xrl.learners.dreamer_v3 import Batch, Dream, DreamerV3Learner
from xrl.policies.dreamer_v3 import DreamerV3Policy

_TINY: dict[str, Any] = {
    "method": "DreamerV3", "env_name": "toy", "env_id": "Catch-v0", "batch_size": 3, "seq_len": 5, "horizon": 4,
    "buffer_size": 100, "train_ratio": 15, "size": "1m",
    "model": {"deter": 8, "units": 8, "stoch": 4, "classes": 4, "depth": 2, "bins": 15, "vector_layers": 1},
    "opt": {"warmup": 1, "lr": 1e-2}}


def tiny_config(changes: dict[str, Any] | None = None) -> DreamerV3Config:
    """With ``changes``, whose keys are dotted."""
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in _TINY.items()}
    for dotted, value in (changes or {}).items():
        section, _, name = dotted.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = value
    return DreamerV3Config.model_validate(tree)


def tiny_learner(changes: dict[str, Any] | None = None, obs: dict[str, ObsSpec] = VECTOR,
                 action: ActionSpec = DISCRETE, seed: int = 0) -> DreamerV3Learner:
    config = tiny_config(changes)
    torch.manual_seed(seed)
    return DreamerV3Learner(DreamerV3Policy(obs, action, config), config, generator(seed + 1))


def tiny_batch(learner: DreamerV3Learner, lead: tuple[int, int] = (5, 3), obs: dict[str, ObsSpec] = VECTOR,
               action: ActionSpec = DISCRETE, seed: int = 0) -> Batch:
    return learner.to_device(random_row(lead, obs, action, seed))


def dream_of(**tensors: torch.Tensor) -> Dream:
    """One with only these entries."""
    return Dream(**{name: tensors.get(name, torch.empty(0)) for name in Dream._fields})
