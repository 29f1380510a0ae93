"""What every learner offers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from xrl.common.errors import NumericalError
from xrl.common.optimizer import Optimizer


@dataclass(frozen=True)
class Postmortem:
    """An update looked at on the host, part by part.

    ``update``: its number, from 1. ``stage``: the first part of it that was not finite, None if all of it was.
    ``metrics``: all it gave. ``parameter``: the first that is not finite, or whose gradient was not. ``data``: entries
    of the batch that are not finite. ``tensors``: what runs it again, by name; see ``Learner.rerun``.
    """

    update: int
    stage: str | None
    metrics: dict[str, float]
    parameter: str | None
    data: tuple[str, ...]
    tensors: dict[str, Tensor] = field(repr=False)

    def error(self, optimizers: Mapping[str, Optimizer], patience: int, kept: str) -> NumericalError:
        """What stops the run: which losses were not finite, and whose parameter. ``patience``: of ``Health``; ``kept``:
        what the update left alone."""
        owner = next((name for name, own in optimizers.items() if self.parameter in own.names), "none")
        losses = [name for name, value in self.metrics.items() if "loss" in name and not math.isfinite(value)]
        series = f" (the last of {patience + 1} in a row)" if patience else ""
        data = f"; the batch itself is not finite in {', '.join(self.data)}" if self.data else ""
        return NumericalError(
            f"update {self.update}{series}: {', '.join(losses) or 'no loss, but a gradient'} is not finite; first bad "
            f"parameter: {self.parameter or 'none yet'} ({owner}){data}; {kept} left as they were")


class Learner(ABC):
    """Turns batches into better weights.

    ``step`` is the algorithm: tensors in, tensors out, nothing that waits for the device. ``update`` is the
    Python shell around it: it prepares the batch, keeps the counter and does what happens every n updates.
    """

    updates: int = 0
    profile_parts: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # what `xrl profile` times: part -> dotted methods
    postmortem: Postmortem | None = None  # of the update that made a NumericalError, for learners that can rerun it

    @abstractmethod
    def step(self, batch: Any) -> dict[str, Tensor]:
        """One update from a batch of tensors. Returns metrics: scalars, detached, on the device."""

    @abstractmethod
    def update(self, batch: Any) -> dict[str, Tensor]:
        """One update from a batch as the replay gives it. May raise what ``check`` does, of an update before."""

    @abstractmethod
    def check(self) -> None:
        """Raise NumericalError, naming the loss and the parameter, if an update so far met NaN or infinity.

        Waits for the device.
        """

    def rerun(self, update: int, stage: str, tensors: dict[str, Tensor]) -> Postmortem:
        """Run the update of a postmortem again, with the weights as they were after it, which changed nothing.

        ``tensors``: on the CPU. Learners that leave a ``postmortem`` supply this.
        """
        raise NotImplementedError

    @abstractmethod
    def state_dict(self) -> dict[str, Any]: ...

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
