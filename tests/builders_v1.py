"""Tiny DreamerV1 networks, configurations and learners; batches and specs are those of ``tests.builders``."""

from __future__ import annotations

from typing import Any

import torch

from tests.builders import DISCRETE, VECTOR, generator
from xrl.common.row import ActionSpec, ObsSpec
from xrl.configs.schemas.dreamer_v1 import DreamerV1Config
from xrl.learners.dreamer_v1 import DreamerV1Learner
from xrl.policies.dreamer_v1 import DreamerV1Policy

MULTI = ActionSpec("multi_discrete", 5, (2, 3))
_MLP = {"layers": 2, "units": 16}


def v1_config(changes: dict[str, Any] | None = None) -> DreamerV1Config:
    """The tiny configuration with ``changes``, whose keys are dotted."""
    tree: dict[str, Any] = {
        "method": "DreamerV1", "env_name": "toy", "env_id": "Catch-v0", "batch_size": 3, "seq_len": 5, "horizon": 4,
        "buffer_size": 100, "actor": dict(_MLP), "critic": dict(_MLP),
        "world_model": {"rssm": {"deter": 8, "hidden": 8, "stoch": 4}, "conv": {"depth": 2},
                        **{name: dict(_MLP) for name in ("encoder", "decoder", "reward", "discount")}}}
    for dotted, value in (changes or {}).items():
        *path, last = dotted.split(".")
        section = tree
        for key in path:
            section = section.setdefault(key, {})
        section[last] = value
    return DreamerV1Config.model_validate(tree)


def v1_policy(changes: dict[str, Any] | None = None, obs: dict[str, ObsSpec] = VECTOR, action: ActionSpec = DISCRETE,
              seed: int = 0) -> DreamerV1Policy:
    torch.manual_seed(seed)
    return DreamerV1Policy(obs, action, v1_config(changes))


def v1_learner(changes: dict[str, Any] | None = None, obs: dict[str, ObsSpec] = VECTOR, action: ActionSpec = DISCRETE,
               seed: int = 0) -> DreamerV1Learner:
    return DreamerV1Learner(v1_policy(changes, obs, action, seed), v1_config(changes), generator(seed + 1))
