"""Learning beside acting, without a race."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from xrl.learners.base import Learner
from xrl.ops.targets import copy_parameters

Policy = TypeVar("Policy", bound=nn.Module)


class BackgroundLearner(Generic[Policy]):
    """One update at a time in a thread of its own, and a copy of the policy that acts meanwhile.

    Who acts with what is defined, not raced: when update u + 1 begins, update u has ended and the acting copy takes
    its weights; so every action up to the next beginning is chosen with the weights after update u, however long
    update u + 1 takes. (The published loop waits for u + 1: this is a deviation of one update.)
    """

    def __init__(self, policy: Policy, learner: Learner) -> None:
        self.acting = copy.deepcopy(policy).requires_grad_(False)
        self._policy, self._learner = policy, learner
        self._running: Future[dict[str, Tensor]] | None = None
        self.updates_begun = learner.updates  # not those done: when one is waited for is a matter of timing
        self._device = next(policy.parameters()).device
        self._thread: ThreadPoolExecutor | None = None
        # So that acting need not queue behind an update.
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

    def begin(self, batch: Any) -> None:
        """Hand over to what was learned so far, and start the next update. The one before must be finished."""
        assert self._running is None
        self.hand_over()
        if self._thread is None:
            on_device = partial(torch.cuda.set_device, self._device) if self._stream is not None else None
            self._thread = ThreadPoolExecutor(1, "learner", on_device)
        self.updates_begun += 1
        self._running = self._thread.submit(self._learner.update, batch)

    def finish(self) -> dict[str, Tensor] | None:
        """Wait for the update under way; returns its metrics, or None if there is none. Raises what it raised."""
        if self._running is None:
            return None
        wait([self._running])  # an interrupt while waiting leaves it to be waited for again
        running, self._running = self._running, None
        return running.result()

    def hand_over(self) -> None:
        """The acting copy becomes equal to the policy."""
        with self.stream():
            copy_parameters(self._policy, self.acting)
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Within, a GPU works for the acting copy beside the update; it begins after what was queued before it,
        unless an update is under way."""
        if self._stream is None:
            yield
            return
        if self._running is None:
            self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def close(self) -> None:
        """End the thread, after the update under way; another ``begin`` starts a new one."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
