"""When things happen, in agent steps."""

from __future__ import annotations


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
