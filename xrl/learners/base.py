"""What every learner offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor


class Learner(ABC):
    """Turns batches into better weights.

    ``step`` is the algorithm: tensors in, tensors out, nothing that waits for the device. ``update`` is the
    Python shell around it: it prepares the batch, keeps the counter and does what happens every n updates.
    """

    updates: int = 0
    profile_parts: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # what `xrl profile` times: part -> dotted methods

    @abstractmethod
    def step(self, batch: Any) -> dict[str, Tensor]:
        """One update from a batch of tensors. Returns metrics: scalars, detached, on the device."""

    @abstractmethod
    def update(self, batch: Any) -> dict[str, Tensor]:
        """One update from a batch as the replay gives it."""

    @abstractmethod
    def check(self, metrics: dict[str, Tensor]) -> None:
        """Raise NumericalError, naming the loss and the parameter, if an update so far met NaN or infinity.

        ``metrics`` are those of the last update. Waits for the device.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]: ...

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
