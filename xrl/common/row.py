"""The row: what environments yield, the replay stores and a world model reads.

A row is an *arrival*: ``action`` and ``reward`` are those that **led to** ``obs``, and are zero
when ``is_first``. An episode of n agent steps is n + 1 rows. ``is_last`` says that the episode is
over for any reason, ``is_terminal`` that the environment itself ended it; only the latter may cut
a bootstrap. A row followed by an ``is_first`` row was the last of its episode, marked or not
(a cut episode: a crash, an interrupted run).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

ActionKind = Literal["discrete", "multi_discrete", "continuous"]
ObsKind = Literal["image", "vector"]


@dataclass(frozen=True)
class ObsSpec:
    """One entry of an observation: an image (H, W, C) of uint8 or a vector (n,) of float32."""

    kind: ObsKind
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8 if self.kind == "image" else np.float32)


@dataclass(frozen=True)
class ActionSpec:
    """Actions as networks see them, (A,) float32; ``size`` is A.

    ``discrete``: one-hot. ``multi_discrete``: one one-hot after the other, of lengths ``choices``, which add up to A.
    ``continuous``: in [-1, 1]; what lies outside is stored as it is, and acts as the nearest bound.
    """

    kind: ActionKind
    size: int
    choices: tuple[int, ...] = ()

    def random(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Uniform over all actions, (count, A)."""
        if self.kind == "continuous":
            return rng.uniform(-1, 1, (count, self.size)).astype(np.float32)
        choices = self.choices or (self.size,)
        parts = [np.eye(size, dtype=np.float32)[rng.integers(size, size=count)] for size in choices]
        return np.concatenate(parts, axis=1)


@dataclass
class Row:
    """One row of each of E environments (or any other leading shape).

    ``obs``: name -> (E, *shape); ``action``: (E, A) float32, normalised as the networks see it;
    ``reward``: (E,) float32, raw; the flags: (E,) bool.
    """

    obs: dict[str, np.ndarray]
    action: np.ndarray
    reward: np.ndarray
    is_first: np.ndarray
    is_last: np.ndarray
    is_terminal: np.ndarray

    def check(self, obs_spec: Mapping[str, ObsSpec], action_spec: ActionSpec, num_envs: int) -> None:
        """Raises ValueError unless this is a row of such environments; for rows from a file."""
        found = {**{f"obs[{name!r}]": value for name, value in self.obs.items()}, **vars(self)}
        wanted = {**{f"obs[{name!r}]": (spec.shape, spec.dtype) for name, spec in obs_spec.items()},
                  "action": ((action_spec.size,), np.dtype(np.float32)), "reward": ((), np.dtype(np.float32)),
                  **{flag: ((), np.dtype(np.bool_)) for flag in ("is_first", "is_last", "is_terminal")}}
        if found.keys() - {"obs"} != wanted.keys():
            raise ValueError(f"the row has the observations {list(self.obs)}, not {list(obs_spec)}")
        for name, (shape, dtype) in wanted.items():
            array = found[name]
            if not isinstance(array, np.ndarray) or array.shape != (num_envs, *shape) or array.dtype.kind != dtype.kind:
                raise ValueError(f"the row's {name} is not {dtype} of shape {(num_envs, *shape)}")
