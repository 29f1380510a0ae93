"""Files: safetensors and JSON, whatever their ending. Loading never executes anything.

A file is written under a temporary name, flushed to disk and renamed: it is whole or it is not there.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xrl.common.errors import CheckpointError, ModelFileError

if TYPE_CHECKING:  # writing a configuration needs neither
    import numpy as np
    from torch import Tensor

FORMAT = 1
_KEY = "xrl"  # safetensors metadata maps strings to strings; ours is one JSON document under this key


def write_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace ``path`` by ``data`` in one step: a crash leaves the old file or the new one, never half of one.

    ``durable``: also after the machine itself has crashed; without, call `sync` before anything relies on the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Return when a file, or the list of names in a folder, has reached the disk."""
    if os.name == "nt":  # Windows opens no folder, and flushes no file that is only read
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """Hexadecimal checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Arrays ------------------------------------------------------------------------------------------------------------

Layout = Mapping[str, tuple[tuple[int, ...], "np.dtype[Any]"]]
"""Name -> whole shape and type of an array."""

_LARGEST_HEADER = 2**20  # bytes
_DTYPES = {"BOOL": "bool", "U8": "uint8", "F32": "float32"}


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[int, str]:
    """Write a safetensors file, not durable yet (see ``sync``); returns its bytes and its SHA-256."""
    import numpy as np
    from safetensors.numpy import save
    data = save({name: np.asarray(array, order="C") for name, array in arrays.items()})
    write_atomic(path, data, durable=False)
    return len(data), hashlib.sha256(data).hexdigest()


def map_arrays(path: Path, layout: Layout) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file where they lie, read through the system's page cache; not to be written to.

    Raises CheckpointError unless the file holds exactly ``layout``.
    """
    import torch
    places = _places(path, layout)
    # Not numpy.memmap, which keeps a file descriptor for each file as long as it is mapped.
    raw = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8).numpy()
    return {name: raw[slice(*place)].view(layout[name][1]).reshape(layout[name][0]) for name, place in places.items()}


def read_arrays(path: Path, layout: Layout) -> dict[str, np.ndarray]:
    """As ``map_arrays``, in memory."""
    return {name: array.copy() for name, array in map_arrays(path, layout).items()}


def read_all_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of a safetensors file, in memory. Raises CheckpointError where it is not one."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error!r}; use another checkpoint") from error


def _places(path: Path, layout: Layout) -> dict[str, tuple[int, int]]:
    """Where each array of ``layout`` begins and ends in the file. Believes nothing that the header says."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(size - 8, _LARGEST_HEADER):
                raise ValueError(f"its header claims {length} bytes")
            header = json.loads(file.read(length))
        places = {}
        for name, (shape, dtype) in layout.items():
            entry = header[name]
            start, end = (8 + length + int(offset) for offset in entry["data_offsets"])
            if entry["shape"] != list(shape) or _DTYPES.get(entry["dtype"]) != dtype.name:
                raise ValueError(f"{name} is {entry['dtype']} of shape {entry['shape']}, not {dtype} of {list(shape)}")
            if not 8 + length <= start <= end <= size or end - start != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{name} lies outside the file")
            places[name] = start, end
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:  # JSON's is a ValueError
        raise CheckpointError(f"{path}: not the file that the checkpoint counts on: {error}; use another "
                              "checkpoint") from error
    return places


# Models ------------------------------------------------------------------------------------------------------------


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a model file. ``metadata`` must be JSON-able; the format version is added."""
    from safetensors.torch import save
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomic(path, save(contiguous, metadata={_KEY: json.dumps({"format": FORMAT, **metadata})}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a model file whole: tensors on the CPU, and its metadata.

    Raises:
        ModelFileError: missing, damaged, not a safetensors file (a pickle, say), or of another format version.
    """
    from safetensors import SafetensorError, safe_open
    metadata = read_metadata(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path}: damaged: {error}; use another model file") from error


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata alone, without the tensors. Raises ModelFileError as ``load_tensors``."""
    from safetensors import SafetensorError, safe_open
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file")
    try:
        with safe_open(str(path), framework="pt") as file:
            raw = (file.metadata() or {}).get(_KEY)
    except (SafetensorError, OSError) as error:
        reason = ("it looks like a pickle, which could run code when loaded" if _is_pickle(path)
                  else f"damaged or cut short: {error}")
        raise ModelFileError(f"{path}: not a readable xrl model (safetensors): {reason}; "
                             "use a file that save_model wrote") from error
    if raw is None:
        raise ModelFileError(f"{path}: a safetensors file, but not one that xrl wrote; use a file from save_model")
    try:
        metadata: dict[str, Any] = dict(json.loads(raw))
    except (ValueError, TypeError, RecursionError):
        raise ModelFileError(f"{path}: damaged: its metadata is not what xrl writes; use another model file") from None
    if metadata.get("format") != FORMAT:
        raise ModelFileError(f"{path}: model format {metadata.get('format')}, this xrl reads format {FORMAT}; "
                             "load it with the xrl version that wrote it")
    return metadata


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(2)
    return head[:1] == b"\x80" or head == b"PK"  # a bare pickle, or torch.save's zip of one
