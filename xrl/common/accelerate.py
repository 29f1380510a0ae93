"""Speed that the mathematics does not see: precision, compilation, CUDA graphs, and the allocator's settings.

Learners and agents ask here; losses and returns know nothing of it. Distribution parameters, norms, KL, returns and
reductions are float32 whatever the precision of the products around them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from xrl.common.errors import ConfigError

Precision = Literal["fp32", "bf16"]
CudaGraph = Literal["auto", "off"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8  # glibc, malloc.h


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """A context in which matrix products and convolutions take ``precision``; weights and their gradients stay float32.

    It must not enclose both a pass of the same weights without gradients and one with: some versions of PyTorch keep
    the weights cast for the first, which have no gradient.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def set_deterministic(wanted: bool | None, device: torch.device) -> None:
    """Make the same seed give the same numbers to the last bit on this machine, or not; None: on a CPU, where it costs
    nothing.

    It holds for the whole process. On a GPU PyTorch then chooses other algorithms, raises where there is none, and
    convolutions are not tuned by trying; cuBLAS reads its setting when it is first used.
    """
    on = device.type == "cpu" if wanted is None else wanted
    if on and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(on)
    # Nothing of ours reads what was not written. (A property that type checkers do not see.)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = on
    torch.backends.cudnn.benchmark = not on


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
    # Large blocks from the heap too, which never shrinks, grows by 64 MiB at a time and serves every thread.
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 64 * 2**20, _M_ARENA_MAX: 1}
    return all([mallopt(name, value) for name, value in settings.items()])


def compile_methods(*methods: tuple[Any, str]) -> None:
    """Replace methods (owner, name) of one object each by compiled ones, for fixed shapes.

    They should be small and called often: compiling a loop over 50 steps takes minutes and pays nothing. A deep copy of
    the object has methods of its own. Raises ConfigError where there is no compiler.
    """
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++", "cl")):
        raise ConfigError("compile: on needs a C++ compiler, and none was found; install g++, or use compile: off")
    for owner, name in methods:
        setattr(owner, name, MethodType(torch.compile(getattr(type(owner), name), dynamic=False), owner))


_RECORDING = threading.Lock()  # CUDA records one graph at a time


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
        inputs, graph = [tensor.clone() for tensor in given], torch.cuda.CUDAGraph()
        graph.register_generator_state(self._generator)
        # Another thread may be using the device meanwhile (policy_lag: 1), but it must not record as well.
        with _RECORDING, torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._output = self._function(*tree_unflatten(inputs, structure))
        self._inputs, self._graph = inputs, graph


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
    host goes on at once; images travel as uint8."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._slots: dict[tuple[tuple[int, ...], ...], list[_Slot]] = {}  # by the shapes of a batch
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """name -> tensor on the device, good until the next call but one. On a CPU the arrays themselves.

        What reads them must be queued, if not done, when the next call but one is made."""
        if self._stream is None:
            return {name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()}
        return self._send(arrays, self._stream)

    def _send(self, arrays: Mapping[str, np.ndarray], stream: torch.cuda.Stream) -> dict[str, Tensor]:
        shapes = tuple(array.shape for array in arrays.values())
        if shapes not in self._slots:
            self._slots[shapes] = [_Slot(arrays, self._device) for _ in range(2)]
        self._slots[shapes].reverse()  # two slots take turns: the host writes one while the other is read
        slot, current = self._slots[shapes][0], torch.cuda.current_stream(self._device)
        slot.sent.synchronize()  # the copy of two calls ago: long done
        for name, array in arrays.items():
            slot.host[name].numpy()[...] = array
        stream.wait_stream(current)  # what read this slot two calls ago is queued there
        with torch.cuda.stream(stream):
            for name, tensor in slot.device.items():
                tensor.copy_(slot.host[name], non_blocking=True)
            slot.sent.record()
        current.wait_event(slot.sent)
        return dict(slot.device)


class _Slot:
    """One batch's place on the host (page-locked) and on the device."""

    def __init__(self, like: Mapping[str, np.ndarray], device: torch.device) -> None:
        self.host = {name: torch.from_numpy(array).clone().pin_memory() for name, array in like.items()}
        self.device = {name: tensor.to(device) for name, tensor in self.host.items()}
        self.sent = torch.cuda.Event()
