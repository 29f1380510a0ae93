"""Checkpoints of a run: folders that are whole or not there.

    RUN/checkpoints/step_0000012000_update_000002400/
        state.safetensors     every array of the state
        state.json            everything else, with marks where the arrays belong
        manifest.json         written last: format, versions, and size and SHA-256 of every file that this state needs
    RUN/replay/rows_*.safetensors    written once, shared by the checkpoints that count on them

The folder is written under another name, flushed to disk, and renamed. Loading executes nothing and follows no path out
of the run's folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xrl.common.errors import CheckpointError
from xrl.common.files import read_all_arrays, sha256_of, sync, write_arrays, write_atomic
from xrl.common.state import unpack

FORMAT = 1
CHECKPOINTS, REPLAY = "checkpoints", "replay"
_MANIFEST, _ARRAYS, _JSON = "manifest.json", "state.safetensors", "state.json"
_NAME = re.compile(r"step_(\d{10,})_update_(\d{9,})")
_ROWS_NAME = re.compile(r"rows_\d{12,}_\d{12,}\.safetensors")
_LARGEST_JSON = 64 * 2**20  # bytes
ASIDE = "aside_"


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint is written from, free of anything that training still changes.

    ``counters``: agent_steps, frames, updates. ``rows``: files in the replay's folder, each with "name", "bytes" and
    "sha256". ``facts`` are shown and compared, but not needed: versions, threads, whether the resume is exact.
    """

    arrays: Mapping[str, Any]
    tree: Any
    counters: Mapping[str, int]
    rows: Sequence[Mapping[str, Any]] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a readable manifest; ``verify`` says whether all the rest is there and whole."""

    path: Path
    manifest: dict[str, Any]

    @property
    def counters(self) -> dict[str, int]:
        return dict(self.manifest["counters"])

    @property
    def bytes(self) -> int:
        """Of the folder and of the rows that it counts on."""
        return sum(file["bytes"] for file in self._files().values())

    def verify(self) -> None:
        """Compare size and checksum of every file. Raises CheckpointError naming the first that differs."""
        for path, file in self._files().items():
            _check_size(path, file["bytes"])
            try:
                found = sha256_of(path)
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be read: {error}") from error
            if found != file["sha256"]:
                raise CheckpointError(f"{path}: damaged: its checksum is not the one in {self.path / _MANIFEST}")

    def load(self) -> Any:
        """The state, unpacked. Raises CheckpointError."""
        path = self.path / _JSON
        try:
            tree = json.loads(path.read_bytes())
            return unpack(read_all_arrays(self.path / _ARRAYS), tree)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error}") from error

    @property
    def row_names(self) -> set[str]:
        return set(self.manifest["rows"])

    def _files(self) -> dict[Path, dict[str, Any]]:
        replay = self.path.parent.parent / REPLAY
        return {**{self.path / name: file for name, file in self.manifest["files"].items()},
                **{replay / name: file for name, file in self.manifest["rows"].items()}}


class Checkpoints:
    """The checkpoints of the run in ``folder``, the newest ``keep`` of which stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._run, self._folder, self._keep = folder, folder / CHECKPOINTS, keep
        assert keep >= 1
        self._synced: set[str] = set()  # rows that are known to have reached the disk
        self._known: set[str] = set()  # checkpoints on this run's way here

    def write(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint, then let go of the oldest ones and of rows that no other counts on.

        Raises OSError, and leaves nothing half-written and every older checkpoint as it was.
        """
        counters = snapshot.counters
        final = self._folder / f"step_{counters['agent_steps']:010d}_update_{counters['updates']:09d}"
        if final.exists() and final.name in self._known:
            return final  # a run passes each point once: this is the same state
        temporary = self._folder / f".{final.name}.{os.getpid()}.tmp"
        for left in self._folder.glob(".*.tmp"):  # by a writer that was killed
            shutil.rmtree(left, ignore_errors=True)
        try:
            self._write(temporary, snapshot)
            self._set_aside(lambda path: path.name >= final.name)  # of a future that this run has left
            os.replace(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync(self._folder)
        sync(self._run)
        self._known.add(final.name)
        self._prune()
        return final

    def _write(self, folder: Path, snapshot: Snapshot) -> None:
        folder.mkdir(parents=True)
        size, digest = write_arrays(folder / _ARRAYS, snapshot.arrays)
        sync(folder / _ARRAYS)
        tree = json.dumps(snapshot.tree).encode()
        write_atomic(folder / _JSON, tree)
        self._sync_rows({file["name"] for file in snapshot.rows})
        manifest = {"format": FORMAT, "time": time.time(), "counters": dict(snapshot.counters),
                    "facts": dict(snapshot.facts),
                    "files": {_ARRAYS: {"bytes": size, "sha256": digest},
                              _JSON: {"bytes": len(tree), "sha256": sha256_of(folder / _JSON)}},
                    "rows": {file["name"]: {"bytes": file["bytes"], "sha256": file["sha256"]}
                             for file in snapshot.rows}}
        write_atomic(folder / _MANIFEST, json.dumps(manifest, indent=1).encode())
        sync(folder)

    def _sync_rows(self, names: set[str]) -> None:
        for name in names - self._synced:
            sync(self._run / REPLAY / name)
        if names - self._synced:
            sync(self._run / REPLAY)
        self._synced = names

    def _prune(self) -> None:
        checkpoints = find_checkpoints(self._run)
        for old in checkpoints[:-self._keep]:
            gone = old.path.with_name(f".{old.path.name}.tmp")  # killed halfway, it must not look like a checkpoint
            os.replace(old.path, gone)
            shutil.rmtree(gone)
        needed = set().union(*(checkpoint.row_names for checkpoint in checkpoints[-self._keep:]))
        oldest = min(needed, default="")  # names sort by their first row
        for path in _row_paths(self._run):
            if path.name < oldest:  # not all that no checkpoint needs: newer rows are for the next one
                path.unlink()

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole. Those after it are damaged, and are named; see ``rewind``.

        Raises CheckpointError if there are checkpoints, but none is whole.
        """
        reasons = []
        for path in reversed(checkpoint_paths(self._run)):
            try:
                checkpoint = read_checkpoint(path)
                checkpoint.verify()
            except CheckpointError as error:
                reasons.append(f"{error}")
                continue
            for reason in reasons:
                print(f"checkpoint skipped: {reason}; going on from {path.name}", file=sys.stderr)
            self._known.add(path.name)
            return checkpoint
        if reasons:
            raise CheckpointError(f"{self._folder}: no checkpoint is whole: {'; '.join(reasons)}")
        return None

    def rewind(self, to: Checkpoint | None) -> None:
        """The run goes on from ``to``, or from its beginning: set aside checkpoints after it (damaged ones: `newest`
        found no use for them), and remove the rows that were stored after it, which will be stored again."""
        self._set_aside(lambda path: to is None or path > to.path)
        for left in (self._run / REPLAY).glob(".rows_*.tmp"):  # by a process that was killed
            left.unlink()
        kept = to.row_names if to is not None else set()
        for path in _row_paths(self._run):
            if path.name > max(kept, default=""):
                path.unlink()

    def _set_aside(self, chosen: Callable[[Path], bool]) -> None:
        for path in checkpoint_paths(self._run):
            if chosen(path):
                os.replace(path, path.with_name(f"{ASIDE}{path.name}.{time.time_ns()}"))


def find_checkpoints(run: Path) -> list[Checkpoint]:
    """Those with a readable manifest, oldest first."""
    found = []
    for path in checkpoint_paths(run):
        try:
            found.append(read_checkpoint(path))
        except CheckpointError:
            continue
    return found


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder, its manifest checked, nothing else. Raises CheckpointError."""
    manifest_path = path / _MANIFEST
    try:
        _check_size(manifest_path)
        manifest = json.loads(manifest_path.read_bytes())
        if manifest.get("format") != FORMAT:
            raise CheckpointError(f"{manifest_path}: checkpoint format {str(manifest.get('format'))[:20]}, this "
                                  f"xrl reads format {FORMAT}; resume it with the xrl version that wrote it")
        _check_manifest(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{manifest_path}: damaged or incomplete: {error}") from error
    return Checkpoint(path, manifest)


def _check_manifest(manifest: Mapping[str, Any]) -> None:
    """Names are ours, without a way out of the folder; numbers are numbers."""
    if set(manifest["files"]) != {_ARRAYS, _JSON}:
        raise ValueError(f"it lists the files {sorted(manifest['files'])}")
    if strange := [name for name in manifest["rows"] if not _ROWS_NAME.fullmatch(name)]:
        raise ValueError(f"{strange[0]!r} is no name of a file of rows")
    for file in [*manifest["files"].values(), *manifest["rows"].values()]:
        if not isinstance(file["bytes"], int) or not isinstance(file["sha256"], str):
            raise ValueError("a size or checksum is missing")
    if not all(isinstance(manifest["counters"][name], int) for name in ("agent_steps", "frames", "updates")):
        raise ValueError("a counter is missing")
    if not isinstance(manifest["facts"], dict) or not isinstance(manifest["time"], float):
        raise ValueError("its facts or time are missing")


def _check_size(path: Path, size: int | None = None) -> None:
    """Raises CheckpointError where a file is missing, of another size, or too large for what it is."""
    try:
        if path.is_symlink():  # a checkpoint from a stranger must not lead out of its folder
            raise CheckpointError(f"{path}: is a link; a run's files must lie in its own folder")
        found = path.stat().st_size
        if not path.is_file():  # a pipe would keep its reader waiting
            raise CheckpointError(f"{path}: is no file")
    except OSError:
        raise CheckpointError(f"{path}: missing") from None
    if size is not None and found != size:
        raise CheckpointError(f"{path}: damaged: it has {found} bytes, its checkpoint says {size}")
    if path.suffix == ".json" and found > _LARGEST_JSON:
        raise CheckpointError(f"{path}: {found} bytes are more than such a file can have")


def checkpoint_paths(run: Path) -> list[Path]:
    """Oldest first."""
    return sorted(path for path in (run / CHECKPOINTS).glob("step_*") if _NAME.fullmatch(path.name) and path.is_dir())


def _row_paths(run: Path) -> list[Path]:
    return sorted(path for path in (run / REPLAY).glob("rows_*") if _ROWS_NAME.fullmatch(path.name) and path.is_file())
