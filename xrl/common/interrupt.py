"""Ctrl-C at a moment when everything is whole."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class OrderlyInterrupt(KeyboardInterrupt):
    """A Ctrl-C delivered between two steps, when everything is whole and worth saving."""


class Interrupt:
    """``raise_if_pending`` turns a Ctrl-C that came in the meantime into OrderlyInterrupt."""

    pending = False

    def raise_if_pending(self) -> None:
        if self.pending:
            self.pending = False
            raise OrderlyInterrupt


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Hold the first Ctrl-C back, so that no update is left half done; a second one is immediate.

    Outside the main thread, where Python allows no signal handler, nothing is held back.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def handler(number: int, frame: Any) -> None:
        if interrupt.pending:
            raise KeyboardInterrupt
        interrupt.pending = True
        print("\nstopping after the step under way; Ctrl-C again to stop at once", file=sys.stderr)

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield interrupt
    finally:
        interrupt.pending = False
        signal.signal(signal.SIGINT, previous)
