"""When things happen, in agent steps or rows, and numbers that change with them."""

from __future__ import annotations


def linear(start: float, end: float, fraction: float) -> float:
    """``start`` at fraction 0, ``end`` from fraction 1 on, a straight line between."""
    return start + (end - start) * min(max(fraction, 0.0), 1.0)


class Every:
    """True once per ``n`` steps. Asked late it catches up one firing per call, and keeps to its grid.

    The first call fires and starts the grid: asked at 100, 101, .. with n = 16 it fires at 100, 116, 132, ..
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.last: int | None = None

    def __call__(self, step: int) -> bool:
        if self.last is None:
            self.last = step
            return True
        if step < self.last + self.n:
            return False
        self.last += self.n
        return True

    def state_dict(self) -> dict[str, int | None]:
        return {"last": self.last}

    def load_state_dict(self, state: dict[str, int | None]) -> None:
        self.last = state["last"]


class Ratio:
    """How many updates are due, so that ``ratio`` of them come to a step. What is left over is kept.

    The first call, wherever it comes, makes one due and starts the count (DreamerV3's official code).
    """

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self.last: float | None = None

    def __call__(self, step: int) -> int:
        if self.last is None:
            self.last = float(step)
            return 1
        due = int((step - self.last) * self.ratio)
        self.last += due / self.ratio
        return due

    def state_dict(self) -> dict[str, float | None]:
        return {"last": self.last}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        self.last = state["last"]
