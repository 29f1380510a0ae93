"""Signals that end a run, held back until everything is whole."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Ctrl-C, what `kill` and cluster schedulers send, and what schedulers announce a pre-emption with.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class OrderlyStop(BaseException):
    """A signal delivered between two steps, when everything is whole and worth saving."""


class OrderlyInterrupt(OrderlyStop, KeyboardInterrupt):
    """Ctrl-C, delivered so."""


class OrderlyExit(OrderlyStop, SystemExit):
    """SIGTERM or SIGUSR1, delivered so; the process ends with the usual code, 128 + the signal's number."""


class Interrupt:
    """``raise_if_pending`` turns a signal that came in the meantime into an OrderlyStop, once."""

    pending: int | None = None
    raised = False

    def raise_if_pending(self) -> None:
        if self.pending is None or self.raised:
            return
        self.raised = True
        if self.pending == signal.SIGINT:
            raise OrderlyInterrupt
        raise OrderlyExit(128 + self.pending)


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Hold the first signal back, so that no update is left half done and nothing half saved; a second Ctrl-C is
    immediate.

    Outside the main thread, where Python allows no signal handler, nothing is held back.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def handler(number: int, frame: Any) -> None:
        if interrupt.pending is None:
            interrupt.pending = number
            again = "Ctrl-C again" if number == signal.SIGINT else "Ctrl-C"
            print(f"\n{signal.Signals(number).name}: stopping after the step under way; {again} to stop at once",
                  file=sys.stderr)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    previous = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield interrupt
    finally:
        interrupt.pending = None
        for number, old in previous.items():
            signal.signal(number, old)
