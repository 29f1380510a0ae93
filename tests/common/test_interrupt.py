"""Ctrl-C: the first waits, the second does not, and the handler of before comes back."""

from __future__ import annotations

import signal
import threading

import pytest

from xrl.common.interrupt import Interrupt, deferred_interrupt


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_nothing_pending_nothing_raised():
    Interrupt().raise_if_pending()


def test_the_first_is_held_back_until_asked_for_and_asked_for_once(capsys):
    with deferred_interrupt() as interrupt:
        ctrl_c()
        assert "stopping after the step under way; Ctrl-C again to stop at once" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            interrupt.raise_if_pending()
        interrupt.raise_if_pending()


def test_a_second_one_is_immediate():
    with deferred_interrupt():
        ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            ctrl_c()


@pytest.mark.parametrize("error", [None, LookupError])
def test_the_handler_of_before_comes_back(error):
    def mine(number, frame):
        pass

    original = signal.signal(signal.SIGINT, mine)
    try:
        with pytest.raises(LookupError), deferred_interrupt():
            assert signal.getsignal(signal.SIGINT) is not mine
            raise error or LookupError
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, original)


def test_in_another_thread_nothing_is_held_back():
    """Python allows handlers in the main thread alone: a run in another one must work all the same."""
    seen = []

    def work():
        before = signal.getsignal(signal.SIGINT)
        with deferred_interrupt() as interrupt:
            interrupt.raise_if_pending()
            seen.append(signal.getsignal(signal.SIGINT) is before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
