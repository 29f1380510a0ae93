"""Where the time of a run goes, measured all the time: seconds per 1,000 agent steps, by part."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

import torch

from xrl.common.stopwatch import REST, Stopwatch, replaced, watching

if TYPE_CHECKING:
    from xrl.agents.base import Agent

# Methods of an agent; one that has no replay or no such step has no such part. Names as in ``xrl profile``.
UPDATE = "update"
LOOP = {"environment step": ("envs.step",), "policy": ("training_action",), "replay insert": ("observe",),
        "replay sampling": ("replay.sample",), "to the device": ("learner.to_device",), UPDATE: ("learner.update",)}
WAITING = {"waiting": ("background.finish",)}
KEYS = {"environment step": "environment", "to the device": "to_device", REST: "rest"}
TRACED = 8  # of the updates here the one whose launches are counted: a CUDA graph was captured before


def loop_parts(agent: Agent[Any]) -> dict[str, tuple[str, ...]]:
    """LOOP, as far as the agent has it. An update beside the loop is none of the loop's: what is, is waiting for it."""
    def has(path: str) -> bool:
        holder: Any = agent
        for name in path.split("."):
            holder = getattr(holder, name, None)
        return holder is not None

    known: dict[str, tuple[str, ...]] = {**LOOP, **WAITING}
    parts = {name: paths for name, paths in known.items() if all(has(path) for path in paths)}
    if "waiting" in parts:
        del parts[UPDATE]
    return parts


class Timing:
    """Charges what an agent does to its parts. On a GPU these are the host's seconds; beside them stand the share of
    the time in which the device had no update to work on, and the launches of one update."""

    def __init__(self) -> None:
        self.watch = Stopwatch(torch.device("cpu"))  # it shall not wait for a device
        self._stack = ExitStack()
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._launches: int | None = None
        self._updates = 0  # since ``begin``

    def begin(self, agent: Agent[Any]) -> None:
        """Watch ``agent`` until ``end``."""
        self.end()
        self._updates = 0
        parts = loop_parts(agent)
        self._stack.enter_context(watching(self.watch, agent, parts))
        if UPDATE in parts:
            self._stack.enter_context(watching(self.watch, agent.learner, agent.learner.profile_parts))
            if agent.device.type == "cuda":
                self._stack.enter_context(replaced(agent.learner, "update", self._on_device(agent)))
        self.watch.start()

    def end(self) -> None:
        self._stack.close()

    def part(self, name: str) -> AbstractContextManager[None]:
        """What runs inside belongs to ``name``."""
        return self.watch.part(name)

    def read(self, agent: Agent[Any], steps: int, seconds: float) -> dict[str, float]:
        """Metrics of what was spent since the last call, in which ``steps`` agent steps were made."""
        self.watch.lap()
        spent = {name: part.seconds for name, part in self.watch.laps[-1].items()}
        self.watch.laps.clear()
        inner = {name: spent.pop(name) for name in agent.learner.profile_parts if name in spent}
        if UPDATE in spent and inner:
            inner["rest"] = spent[UPDATE]
            spent[UPDATE] = sum(inner.values())
        metrics = {f"time/{_key(name)}": value for name, value in spent.items()}
        metrics |= {f"time/update/{_key(name)}": value for name, value in inner.items()}
        metrics = {name: 1000 * value / steps for name, value in metrics.items()} if steps else {}
        return metrics | self._device(seconds)

    # On a GPU --------------------------------------------------------------------------------------------------

    def _on_device(self, agent: Agent[Any]) -> Callable[..., Any]:
        """``learner.update`` between two events, and once under a tracer."""
        update = agent.learner.update

        @functools.wraps(update)
        def timed(batch: Any) -> Any:
            self._updates += 1
            if self._launches is None and self._updates == TRACED:
                metrics, self._launches = launches(functools.partial(update, batch), agent.device)
                return metrics
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            metrics = update(batch)
            end.record()
            self._events.append((begin, end))
            return metrics

        return timed

    def _device(self, seconds: float) -> dict[str, float]:
        metrics = {} if self._launches is None else {"time/launches": float(self._launches)}
        if self._events and seconds > 0:
            self._events[-1][1].synchronize()
            busy = sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
            metrics["time/gpu_idle"] = max(0.0, 1 - busy / seconds)
            self._events.clear()
        return metrics


def launches(work: Callable[[], Any], device: torch.device) -> tuple[Any, int]:
    """What ``work`` returns, and how many kernels and graphs the host started for it on a GPU."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as trace:
        result = work()
        torch.cuda.synchronize(device)
    started = ("cudaLaunchKernel", "cudaLaunchCooperativeKernel", "cudaGraphLaunch", "cuLaunchKernel")
    return result, sum(event.count for event in trace.key_averages() if event.key.startswith(started))


def _key(name: str) -> str:
    return KEYS.get(name, name.replace(",", "").replace(" ", "_"))
