"""The state of a run as nested dicts and lists, and its two halves on file: arrays, and JSON for everything else."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xrl.common.errors import CheckpointError

_MARKS = ("$tensor", "$array", "$bytes")


def pack(state: Any) -> tuple[dict[str, np.ndarray], Any]:
    """Split a state into its arrays by path ("envs/0/ale") and a JSON value that has marks in their places.

    Leaves: tensors, arrays, bytes; int, float, str, bool, None. Tuples become lists.
    Raises TypeError, naming the path, for anything else.
    """
    arrays: dict[str, np.ndarray] = {}

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, Mapping):
            return {_key(key, path): walk(entry, f"{path}/{key}" if path else str(key)) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [walk(entry, f"{path}/{index}") for index, entry in enumerate(value)]
        if isinstance(value, Tensor | np.ndarray | bytes):
            mark, array = _as_array(value, path)
            while path in arrays:  # "a/b" may be a key as well as a path
                path += "'"
            arrays[path] = array
            return {mark: path}
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"{path}: {type(value).__name__} cannot be saved")

    return arrays, walk(state, "")


def unpack(arrays: Mapping[str, np.ndarray], value: Any) -> Any:
    """The inverse of ``pack``. Raises CheckpointError where an array is missing, TypeError where torch has no such."""
    if isinstance(value, list):
        return [unpack(arrays, entry) for entry in value]
    if not isinstance(value, Mapping):
        return value
    if len(value) == 1 and (mark := next(iter(value))) in _MARKS:
        if not isinstance(value[mark], str) or value[mark] not in arrays:
            raise CheckpointError(f"the array {repr(value[mark])[:80]} is missing")
        array = arrays[value[mark]]
        if mark == "$tensor":
            return torch.from_numpy(array)
        return array.tobytes() if mark == "$bytes" else array
    return {key: unpack(arrays, entry) for key, entry in value.items()}


def _as_array(value: Tensor | np.ndarray | bytes, path: str) -> tuple[str, np.ndarray]:
    """A copy, so that whoever writes it later writes what was meant."""
    if isinstance(value, bytes):
        return "$bytes", np.frombuffer(value, np.uint8).copy()
    if isinstance(value, Tensor):
        value = value.detach().clone().cpu()  # torch copies with several threads
        if value.dtype == torch.bfloat16:
            raise TypeError(f"{path}: a tensor of bfloat16 cannot be saved; use float32")
        return "$tensor", value.numpy()
    if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
        raise TypeError(f"{path}: an array of {value.dtype} cannot be saved; use numbers")
    return "$array", np.array(value, order="C")


def _key(key: Any, path: str) -> str:
    if not isinstance(key, str) or key.startswith("$"):
        raise TypeError(f"{path}: {key!r} cannot be a key; use strings that do not begin with $")
    return key


# Generators --------------------------------------------------------------------------------------------------------

def numpy_state(generator: np.random.Generator) -> dict[str, Any]:
    return dict(generator.bit_generator.state)


def global_generators() -> dict[str, Any]:
    """The states of the generators that belong to nobody: Python's, NumPy's, torch's on every device."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {"python": random.getstate(), "numpy": [name, keys, position, has_gauss, gauss],
            "torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def restore_global_generators(state: Mapping[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
