"""What a computation asks of the machine, counted instead of timed: operations, new memory, arithmetic, shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

# What makes the host wait for the device, or gives a shape that depends on values.
WAITING = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "nonzero_static", "masked_select",
           "_unique", "_unique2", "unique_consecutive", "unique_dim", "repeat_interleave", "argwhere", "allclose"}


@dataclass(frozen=True)
class Call:
    """One operation that reached the dispatcher: shapes and dtypes of what went in and came out."""

    name: str
    view: bool  # reads and writes nothing
    inputs: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    outputs: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    allocated: int  # bytes

    @property
    def waits(self) -> bool:
        chosen = self.name in ("index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_")
        return self.name in WAITING or (chosen and any(dtype in (torch.bool, torch.uint8)
                                                       for _, dtype in self.inputs[1:]))


class Calls(TorchDispatchMode):
    """Within, every operation is added to ``all``, those of backward passes too."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = _tensors((args, kwargs))
        known = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        result = func(*args, **(kwargs or {}))
        outputs = _tensors(result)
        fresh = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in outputs)
                 if storage.data_ptr() not in known}
        self.all.append(Call(func._schema.name.removeprefix("aten::"), func.is_view, _signature(inputs),
                             _signature(outputs), sum(fresh.values())))
        return result

    @property
    def names(self) -> Counter[str]:
        return Counter(call.name for call in self.all)

    @property
    def working(self) -> int:
        """The number of operations that are no views."""
        return sum(not call.view for call in self.all)

    @property
    def allocated(self) -> int:
        """Bytes of new memory, added up; what is freed in between counts again."""
        return sum(call.allocated for call in self.all)


def calls_of(function: Callable[..., Any], *args: Any) -> Calls:
    with Calls() as calls:
        function(*args)
    return calls


def flops_of(function: Callable[..., Any], *args: Any) -> int:
    """Floating point operations of matrix products and convolutions, two per multiplication and addition."""
    with FlopCounterMode(display=False) as counter:
        function(*args)
    return int(counter.get_total_flops())


def graph_size(loss: Tensor) -> int:
    """Nodes of the graph that a backward pass from ``loss`` would walk."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return len(seen)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _signature(tensors: list[Tensor]) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    return tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors)
