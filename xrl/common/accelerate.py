"""Speed that the mathematics does not see: precision, compilation, CUDA graphs, and the allocator's settings.

Learners and agents ask here; losses, networks and distributions know nothing of it (but that distribution
parameters, KL, returns and reductions are float32 whatever the precision of the products around them).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

Precision = Literal["fp32", "bf16"]
CudaGraph = Literal["auto", "off"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # glibc, malloc.h


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """A context in which matrix products and convolutions take ``precision``; weights and their gradients stay float32.

    It must not enclose both a pass without gradients and one with: PyTorch keeps the weights cast for the first,
    and they have no gradient.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def keep_memory() -> bool:
    """Let this process keep the memory it frees (glibc only; True where it took effect).

    An update allocates and frees gigabytes of activations. By default malloc hands every large block back to the
    system, which maps and clears it again, page by page, in the next operation: a tenth of an update on a CPU, and
    ten times the duration of the first convolution. The price is that memory once used stays with the process.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    # Large blocks from the heap too, which never shrinks and grows by 64 MiB at a time.
    return all([mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1), mallopt(_M_TOP_PAD, 64 * 2**20)])


def compile_methods(*methods: tuple[Any, str]) -> None:
    """Replace methods (owner, name) of one object each by compiled ones, for fixed shapes.

    They should be small and called often: compiling a loop over 50 steps takes minutes and pays nothing. A deep copy of
    the object has methods of its own.
    """
    for owner, name in methods:
        setattr(owner, name, MethodType(torch.compile(getattr(type(owner), name), dynamic=False), owner))


class Captured:
    """``function`` as one CUDA graph: the host starts thousands of kernels with a single call.

    ``function`` takes and returns tensors, in tuples, named tuples, lists and dicts of any depth, and may read and
    write others (weights, moments) as long as they stay where they are. It must neither wait for the device nor depend
    on anything else that changes. Random numbers come from ``generator``, which goes on as if there were no graph.

    The first ``WARM_UP`` calls run as they are (libraries set themselves up then); the next one is recorded and from
    then on replayed. Every call does its work exactly once. Results are copies, so that they outlive the next call.
    A call with other shapes than those recorded runs as it is.
    """

    WARM_UP = 3

    def __init__(self, function: Callable[..., Any], generator: torch.Generator) -> None:
        self._function, self._generator = function, generator
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._output: Any = None

    def __call__(self, *arguments: Any) -> Any:
        given, structure = tree_flatten(arguments)
        if self._calls < self.WARM_UP:
            self._calls += 1
            return _on_side_stream(self._function, arguments)
        if self._graph is None:
            self._capture(given, structure)
        if [tensor.shape for tensor in given] != [tensor.shape for tensor in self._inputs]:
            return self._function(*arguments)
        torch._foreach_copy_(self._inputs, given)
        assert self._graph is not None
        self._graph.replay()
        return tree_map(torch.clone, self._output)

    def _capture(self, given: list[Tensor], structure: Any) -> None:
        """Record one call on inputs of our own. Recording runs nothing."""
        self._inputs = [tensor.clone() for tensor in given]
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(self._generator)
        # Another thread may be using the device meanwhile (policy_lag: 1).
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._output = self._function(*tree_unflatten(self._inputs, structure))


def _on_side_stream(function: Callable[..., Any], arguments: Any) -> Any:
    """What is to be captured later must first have run outside the default stream (PyTorch's notes on CUDA graphs)."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        result = function(*arguments)
    torch.cuda.current_stream().wait_stream(side)
    return result


def captured(function: Callable[..., Any], setting: CudaGraph, generator: torch.Generator) -> Callable[..., Any]:
    """``function`` itself, or captured where ``setting`` and the generator's device allow it."""
    on_gpu = generator.device.type == "cuda"
    return Captured(function, generator) if on_gpu and setting == "auto" else function


class Feed:
    """Brings arrays to the device. To a GPU they go from page-locked memory on a stream of their own, so that the
    host goes on at once and the copy runs beside the update before; images travel as uint8."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._slots: list[_Slot] = []
        self._turn = 0
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._done = [torch.cuda.Event(), torch.cuda.Event()]

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """name -> tensor on the device, good until the call after the next. On a CPU the arrays themselves."""
        if self._device.type != "cuda":
            return {name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()}
        return self._send(arrays)

    def _send(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        # Two slots take turns. What read this one, two calls ago, was queued before the call between them.
        if not self._slots:
            self._slots = [_Slot(arrays, self._device) for _ in range(2)]
        slot, current = self._slots[self._turn], torch.cuda.current_stream(self._device)
        self._done[1 - self._turn].record(current)
        slot.sent.synchronize()  # the copy of two calls ago: long done
        for name, array in arrays.items():
            slot.host[name].numpy()[...] = array
        self._stream.wait_event(self._done[self._turn])
        with torch.cuda.stream(self._stream):
            for name, tensor in slot.device.items():
                tensor.copy_(slot.host[name], non_blocking=True)
            slot.sent.record()
        current.wait_event(slot.sent)
        self._turn = 1 - self._turn
        return slot.device


class _Slot:
    """One batch's place on the host (page-locked) and on the device."""

    def __init__(self, like: Mapping[str, np.ndarray], device: torch.device) -> None:
        self.host = {name: torch.from_numpy(array).clone().pin_memory() for name, array in like.items()}
        self.device = {name: tensor.to(device) for name, tensor in self.host.items()}
        self.sent = torch.cuda.Event()
