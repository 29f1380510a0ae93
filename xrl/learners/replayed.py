"""Replayed sequences, as learners read them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

from torch import Tensor

from xrl.common.accelerate import Feed
from xrl.common.row import Row
from xrl.learners.base import Learner


class Batch(NamedTuple):
    """Replayed sequences on the device, raw: obs name -> (T, B, *shape), action (T, B, A), the rest (T, B)."""

    obs: dict[str, Tensor]
    action: Tensor
    reward: Tensor
    is_first: Tensor
    is_terminal: Tensor


class SequenceLearner(Learner):
    """Learns from batches of sequences: ``update`` takes them as the replay gives them, or as ``to_device`` does."""

    @abstractmethod
    def to_device(self, batch: Row) -> Batch: ...


def fed(feed: Feed, batch: Row) -> Batch:
    """Images cross as uint8; every sequence starts afresh (the replay has set its first ``is_first``)."""
    arrays = {f"obs.{name}": array for name, array in batch.obs.items()}
    arrays |= {name: getattr(batch, name) for name in Batch._fields[1:]}
    tensors = feed(arrays)
    obs = {name: tensors.pop(f"obs.{name}") for name in batch.obs}
    return Batch(obs, **tensors)


def named_tensors(batch: Any) -> dict[str, Tensor]:
    """The tensors of a batch (a named tuple whose first field is ``obs``) by name, observations as "obs/NAME"."""
    fields = batch._asdict()
    return {**{f"obs/{name}": value for name, value in fields.pop("obs").items()}, **fields}
