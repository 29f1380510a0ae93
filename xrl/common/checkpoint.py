"""Model files: safetensors with JSON metadata, whatever their ending. Loading never executes anything.

A file is written under a temporary name, flushed to disk and renamed: it is whole or it is not there.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from xrl.common.errors import ModelFileError

FORMAT = 1
_KEY = "xrl"  # safetensors metadata maps strings to strings; ours is one JSON document under this key


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` in one step: a crash leaves the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    metadata: dict[str, Any] = json.loads(raw)
    if metadata.get("format") != FORMAT:
        raise ModelFileError(f"{path}: model format {metadata.get('format')}, this xrl reads format {FORMAT}; "
                             "load it with the xrl version that wrote it")
    return metadata


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(2)
    return head[:1] == b"\x80" or head == b"PK"  # a bare pickle, or torch.save's zip of one
