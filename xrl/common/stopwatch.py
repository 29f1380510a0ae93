"""A stopwatch for the parts of a loop: wall time always, operations and FLOP when asked. Parts may nest; each is
charged for what it does itself."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

REST = "rest of the loop"  # whatever no part accounts for


@dataclass
class Spent:
    """What one part took during one lap, the parts inside it left out."""

    calls: int = 0
    seconds: float = 0.0
    operations: int = 0
    flop: int = 0


Lap = Mapping[str, Spent]


class Operations(TorchDispatchMode):
    """Counts the ATen operations that are dispatched, views too, and the FLOP of products and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.flop = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flop += formula(*args, **(kwargs or {}), out_val=result)
        return result


class Stopwatch:
    """Collects laps. ``counting``: count operations from now on too, which makes the seconds worthless.

    On a GPU every change of part waits for the device, so that each part is charged for its own work. Whoever only
    wants to know what the host does gives the CPU as ``device``.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self.device, self.clock, self.counting = device, clock, False
        self._counter = Operations()
        self._open: list[str] = []
        self.start()

    def start(self) -> None:
        """Begin the first lap, now."""
        self.laps: list[Lap] = []
        self._lap: dict[str, Spent] = defaultdict(Spent)
        self._charged = self._read()

    def lap(self) -> None:
        """End a lap and begin the next."""
        self._charge()
        self.laps.append(self._lap)
        self._lap = defaultdict(Spent)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs inside belongs to ``name``."""
        self._charge()
        counter = self._counter if self.counting and not self._open else nullcontext()
        self._open.append(name)
        self._lap[name].calls += 1
        try:
            with counter:
                yield
        finally:
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        """The part that is open innermost pays for what was spent since the last charge."""
        reading = self._read()
        spent = self._lap[self._open[-1] if self._open else REST]
        seconds, operations, flop = (now - before for now, before in zip(reading, self._charged, strict=True))
        spent.seconds, spent.operations, spent.flop = (
            spent.seconds + seconds, spent.operations + int(operations), spent.flop + int(flop))
        self._charged = reading

    def _read(self) -> tuple[float, int, int]:
        if self.device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize(self.device)
        return self.clock(), self._counter.operations, self._counter.flop


@contextmanager
def watching(watch: Stopwatch, owner: Any, parts: Mapping[str, tuple[str, ...]]) -> Iterator[None]:
    """Charge calls of ``owner``'s methods to parts: name -> methods, dotted ("model_opt.minimize"). The objects are
    left afterwards as they were."""
    with ExitStack() as stack:
        for name, paths in parts.items():
            for path in paths:
                *way, method = path.split(".")
                holder = functools.reduce(getattr, way, owner)
                stack.enter_context(replaced(holder, method, _watched(watch, name, getattr(holder, method))))
        yield


def _watched(watch: Stopwatch, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*arguments: Any, **keywords: Any) -> Any:
        with watch.part(name):
            return method(*arguments, **keywords)

    return call


@contextmanager
def replaced(holder: Any, name: str, value: Any) -> Iterator[None]:
    """``holder.name`` is ``value`` inside, and afterwards what it was."""
    own = vars(holder)
    before = own.get(name)  # None: the class has it
    own[name] = value
    try:
        yield
    finally:
        if before is None:
            del own[name]
        else:
            own[name] = before
