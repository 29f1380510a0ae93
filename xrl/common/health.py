"""Numbers gone bad: noticed and masked on the device, told to the host without making it wait."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from xrl.common.errors import NumericalError
from xrl.common.optimizer import Optimizer

Record = TypeVar("Record")


class Health:
    """How a learner's updates go, in tensors on its device that only change in place; nothing here waits.

    An update with a loss or a gradient that is not finite is left out. ``patience`` such updates in a row are
    forgiven; with the next one the learner is sick for good (``well`` turns False): from then on no step is applied,
    so that a host that learns of it late finds everything as that update left it.
    """

    def __init__(self, optimizers: Sequence[Optimizer], patience: int) -> None:
        device = optimizers[0].weights.device
        self.patience = patience
        self.well = torch.ones((), dtype=torch.bool, device=device)
        self.in_a_row = torch.zeros((), device=device)  # bad updates since the last good one
        self.skipped = torch.zeros((), device=device)  # bad updates in all
        for optimizer in optimizers:
            optimizer.healthy = self.well  # they keep the gradients' norms of the update that made the learner sick

    def step(self, good: Tensor, *optimizers: Optimizer) -> Tensor:
        """Apply what the optimisers have differentiated: all of them, or none if one is not finite or not ``good``.

        Returns whether they were applied, a bool on the device.
        """
        for optimizer in optimizers:
            good = good & optimizer.finite
        for optimizer in optimizers:
            optimizer.apply(good)
        return good

    def note(self, good: Tensor) -> None:
        """The end of an update, all of which was applied, or not."""
        bad = ~good
        self.skipped += bad
        self.in_a_row.add_(1).mul_(bad)
        self.well &= self.in_a_row <= self.patience

    def state_dict(self) -> dict[str, int]:
        return {"in_a_row": int(self.in_a_row), "skipped": int(self.skipped)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Whoever loads a sick learner has seen that it was: it begins anew."""
        in_a_row = int(state.get("in_a_row", 0))  # a model of before it was counted has none
        self.in_a_row.fill_(in_a_row if in_a_row <= self.patience else 0)
        self.skipped.fill_(int(state.get("skipped", 0)))
        self.well.fill_(True)


def raise_if_sick(health: Health, update: int, metrics: Mapping[str, Tensor],
                  optimizers: Mapping[str, Optimizer]) -> None:
    """For learners that keep no evidence: waits for the device.

    Raises NumericalError, if the learner is sick, naming the update, the losses among its ``metrics`` that are not
    finite, and the first bad parameter, whose gradients the optimisers still hold.
    """
    if bool(health.well):
        return
    losses = [name for name, value in metrics.items() if "loss" in name and not math.isfinite(float(value))]
    bad = next(((name, found) for name, optimizer in optimizers.items() if (found := optimizer.culprit())), None)
    series = f" (the last of {health.patience + 1} in a row)" if health.patience else ""
    where = "none yet" if bad is None else f"{bad[1]} ({bad[0]})"
    raise NumericalError(f"update {update}{series}: {', '.join(losses) or 'no loss, but a gradient'} is not finite; "
                         f"first bad parameter: {where}; the weights were left as they were")


class Flags(Generic[Record]):
    """Flags that were raised, or not, on the device, and a record kept for each until the host has read it.

    From a GPU a flag travels into page-locked memory while the host goes on; it is looked at when it has arrived, and
    waited for only where ``LIMIT`` are under way. On a CPU it is there at once.
    """

    LIMIT = 4

    def __init__(self) -> None:
        self._waiting: deque[tuple[Tensor, Any, Record]] = deque()

    def add(self, flag: Tensor, record: Record) -> None:
        """``flag``: a bool that nothing changes any more."""
        self._waiting.append((*_send(flag), record))

    def first(self, *, wait: bool) -> Record | None:
        """The oldest record whose flag is raised, which stays until ``clear``; those before it are forgotten.

        Without ``wait`` what has not arrived yet is left for the next time.
        """
        while self._waiting:
            flag, arrived, record = self._waiting[0]
            if arrived is not None and not arrived.query():
                if not wait and len(self._waiting) < self.LIMIT:
                    return None
                arrived.synchronize()
            if bool(flag):
                return record
            self._waiting.popleft()
        return None

    def clear(self) -> None:
        self._waiting.clear()


def _send(flag: Tensor) -> tuple[Tensor, Any]:
    """Let a flag set out for the host: where it will be, and the event of its arrival (None: it is here)."""
    if flag.device.type != "cuda":
        return flag, None
    host = torch.empty_like(flag, device="cpu", pin_memory=True)
    host.copy_(flag, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return host, arrived
