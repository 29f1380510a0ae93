"""Tiny networks, configurations and batches for tests: small enough for milliseconds, shaped like the real ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from xrl.common.row import ActionSpec, ObsSpec, Row
from xrl.configs.schemas.dreamer_v2 import DreamerV2Config
from xrl.learners.dreamer_v2 import DreamerV2Learner
from xrl.policies.dreamer_v2 import DreamerV2Policy

IMAGE = {"image": ObsSpec("image", (64, 64, 1))}
VECTOR = {"state": ObsSpec("vector", (3,))}
BOTH = {"camera": ObsSpec("image", (64, 64, 3)), "joints": ObsSpec("vector", (2,)),
        "map": ObsSpec("image", (64, 64, 1)), "state": ObsSpec("vector", (3,))}
DISCRETE = ActionSpec("discrete", 3)
CONTINUOUS = ActionSpec("continuous", 2)

_MLP = {"layers": 2, "units": 16}
_TINY: dict[str, Any] = {
    "method": "DreamerV2", "env_name": "toy", "env_id": "Catch-v0",
    "batch_size": 3, "seq_len": 5, "horizon": 4, "buffer_size": 100,
    "world_model": {"rssm": {"deter": 8, "hidden": 8, "stoch": 4, "classes": 4}, "conv": {"depth": 2},
                    "encoder": _MLP, "decoder": _MLP, "reward": _MLP, "discount": _MLP},
    "actor": _MLP, "critic": _MLP}


def tiny_config(changes: dict[str, Any] | None = None) -> DreamerV2Config:
    """The tiny configuration with ``changes``, whose keys are dotted: {"actor.grad": "mix"}."""
    tree = _copy(_TINY)
    for dotted, value in (changes or {}).items():
        *path, last = dotted.split(".")
        section = tree
        for key in path:
            section = section.setdefault(key, {})
        section[last] = value
    return DreamerV2Config.model_validate(tree)


def tiny_policy(changes: dict[str, Any] | None = None, obs: dict[str, ObsSpec] = VECTOR,
                action: ActionSpec = DISCRETE, seed: int = 0) -> DreamerV2Policy:
    torch.manual_seed(seed)
    return DreamerV2Policy(obs, action, tiny_config(changes))


def tiny_learner(changes: dict[str, Any] | None = None, obs: dict[str, ObsSpec] = VECTOR,
                 action: ActionSpec = DISCRETE, seed: int = 0) -> DreamerV2Learner:
    policy = tiny_policy(changes, obs, action, seed)
    return DreamerV2Learner(policy, tiny_config(changes), generator(seed + 1))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_row(lead: tuple[int, ...] = (5, 3), obs: dict[str, ObsSpec] = VECTOR, action: ActionSpec = DISCRETE,
               seed: int = 0) -> Row:
    """A batch as the replay gives it, ``lead`` = (T, B): an episode starts in row 0 and, somewhere, another one."""
    rng = np.random.default_rng(seed)

    def entry(spec: ObsSpec) -> np.ndarray:
        if spec.kind == "image":
            return rng.integers(0, 256, (*lead, *spec.shape), dtype=np.uint8)
        return rng.normal(size=(*lead, *spec.shape)).astype(np.float32)

    if action.kind == "discrete":
        actions = np.eye(action.size, dtype=np.float32)[rng.integers(0, action.size, lead)]
    else:
        actions = rng.uniform(-1, 1, (*lead, action.size)).astype(np.float32)
    is_first = np.zeros(lead, bool)
    is_first[0] = True
    is_first[lead[0] // 2, ::2] = True
    is_terminal = np.zeros(lead, bool)
    is_terminal[:-1] = is_first[1:]
    is_terminal[-1, -1] = True
    reward = rng.normal(size=lead).astype(np.float32)
    entries = {name: entry(spec) for name, spec in obs.items()}
    return Row(entries, actions, reward, is_first, is_last=is_terminal.copy(), is_terminal=is_terminal)


@contextmanager
def float64() -> Iterator[None]:
    """Everything built and computed inside is double precision, also where the code asks for float32.

    The code rounds to float32 on purpose (whatever the precision around it); finite differences need more.
    """
    before, to_float = torch.get_default_dtype(), torch.Tensor.float
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        torch.Tensor.float = to_float  # type: ignore[method-assign]


def parameter_count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def snapshot(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def unchanged(module: torch.nn.Module, before: list[torch.Tensor]) -> bool:
    """Bit-equal to its ``snapshot``."""
    return all(torch.equal(now, then) for now, then in zip(module.parameters(), before, strict=True))


def _copy(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, dict) else value for key, value in tree.items()}
