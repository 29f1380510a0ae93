"""Rows in segments: each is filled in memory, then sealed, and from then on never changed.

Whatever is sealed can live in a file that is written once, and be read there through the system's page cache. That
makes a replay larger than memory, and a checkpoint that costs only the rows since the last one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xrl.common.errors import CheckpointError
from xrl.common.files import map_arrays, read_arrays, write_arrays

Fields = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""Name -> shape and type of one environment's entry in a row."""

SEGMENT_BYTES = 16 * 2**20
SEGMENT_ROWS = 8192


@dataclass(frozen=True)
class SegmentFile:
    """A sealed segment on disk, as a checkpoint records it."""

    name: str
    first: int
    rows: int
    bytes: int
    sha256: str


@dataclass
class Segment:
    """Rows ``first .. end - 1``; arrays (at least that many rows, E, *shape)."""

    first: int
    end: int
    arrays: dict[str, np.ndarray]
    file: SegmentFile | None = None
    loaded: bool = False  # with a checkpoint, which may count on its file for longer


class Segments:
    """The rows of E environments by number: appended at the end, forgotten at the front.

    Args:
        fields: the entries of a row.
        num_envs: E.
        folder: where sealed segments are written at once; None keeps them in memory alone.
        mapped: they are read in their files then, and take no memory.
        keep_files: whether files of forgotten rows stay, because a checkpoint may count on them.
        segment_rows: rows of a full segment; by default about SEGMENT_BYTES, at most SEGMENT_ROWS rows.
    """

    def __init__(self, fields: Fields, num_envs: int, folder: Path | None = None, mapped: bool = True,
                 keep_files: bool = False, segment_rows: int | None = None) -> None:
        self._fields, self._num_envs = fields, num_envs
        self._folder, self._mapped, self._keep_files = folder, mapped and folder is not None, keep_files
        self._segment_rows = segment_rows or min(SEGMENT_ROWS, max(1, SEGMENT_BYTES // row_bytes(fields, num_envs)))
        self._hold([self._empty(0)])
        self._complained = False

    @property
    def end(self) -> int:
        """The number of the next row."""
        return self._segments[-1].end

    def append(self, flat: Mapping[str, np.ndarray]) -> None:
        """Add row number ``end``; entries (E, *shape)."""
        if self.end - self._segments[-1].first == self._segment_rows:
            self.seal()
        last = self._segments[-1]
        for key, array in last.arrays.items():
            array[last.end - last.first] = flat[key]
        last.end += 1

    def forget(self, oldest: int) -> None:
        """Rows before number ``oldest`` are not needed any more; a segment goes when none of its rows is."""
        while self._segments[0].end <= oldest and len(self._segments) > 1:
            gone = self._segments[0]
            self._hold(self._segments[1:])
            if gone.file is not None and self._folder is not None and not (self._keep_files or gone.loaded):
                (self._folder / gone.file.name).unlink(missing_ok=True)

    def row(self, number: int) -> dict[str, np.ndarray]:
        """Entries (E, *shape) of row ``number``, as views."""
        segment = self._segments[int(self._which(number))]
        return {key: array[number - segment.first] for key, array in segment.arrays.items()}

    def gather(self, numbers: np.ndarray, envs: np.ndarray) -> dict[str, np.ndarray]:
        """Entries (T, B, *shape) of rows ``numbers`` (T, B) of environments ``envs`` (B,), as fresh arrays."""
        shape, numbers = numbers.shape, numbers.ravel()
        places = np.broadcast_to(envs, shape).ravel()
        which = self._which(numbers)
        out = {key: np.empty((len(numbers), *entry), dtype) for key, (entry, dtype) in self._fields.items()}
        for index in np.unique(which):
            segment, here = self._segments[index], np.flatnonzero(which == index)
            flat = (numbers[here] - segment.first) * self._num_envs + places[here]
            for key, array in segment.arrays.items():
                out[key][here] = array.reshape(-1, *array.shape[2:]).take(flat, axis=0)
        return {key: array.reshape(*shape, *array.shape[1:]) for key, array in out.items()}

    def _hold(self, segments: list[Segment]) -> None:
        """In order and without gaps; the last one is open."""
        self._segments = segments
        self._firsts = np.array([segment.first for segment in segments])

    def _which(self, numbers: np.ndarray | int) -> np.ndarray:
        """The place of each row's segment."""
        return np.searchsorted(self._firsts, numbers, side="right") - 1

    # Files -----------------------------------------------------------------------------------------------------

    def seal(self) -> None:
        """Close the open segment, if it holds rows, and begin another. On a full disk it stays in memory for now."""
        last = self._segments[-1]
        if last.end == last.first:
            return
        rows = last.end - last.first
        if rows < self._segment_rows:  # a view would hold on to the memory of a full segment
            last.arrays = {key: array[:rows].copy() for key, array in last.arrays.items()}
        self._hold([*self._segments, self._empty(last.end)])
        if self._folder is None:
            return
        try:
            self.write(self._folder)
            self._complained = False
        except OSError as error:
            if not self._complained:
                print(f"replay: cannot write to {self._folder}: {error}. The newest rows stay in memory, and are "
                      f"written as soon as that is possible again", file=sys.stderr)
            self._complained = True

    def write(self, folder: Path) -> list[SegmentFile]:
        """Make sure that every sealed segment has its file in ``folder``; returns them all, in order.

        Raises OSError when one cannot be written; those before it are.
        """
        for segment in self._segments[:-1]:
            if segment.file is None:
                name = f"rows_{segment.first:012d}_{segment.end:012d}.safetensors"
                size, digest = write_arrays(folder / name, segment.arrays)
                segment.file = SegmentFile(name, segment.first, segment.end - segment.first, size, digest)
                if self._mapped:
                    with suppress(RuntimeError):  # the system allows no more maps (65,000): it stays in memory, too
                        segment.arrays = map_arrays(folder / name, self._layout(segment.file.rows))
        return [segment.file for segment in self._segments[:-1] if segment.file is not None]

    def load(self, files: Sequence[SegmentFile], folder: Path) -> None:
        """Hold the rows of these files instead of what is held now, and read them as this replay reads its own.

        Raises CheckpointError, before anything changes, where a file is missing, of another shape, or the files leave
        a gap.
        """
        found = []
        for before, file in zip([None, *files], files, strict=False):
            if before is not None and before.first + before.rows != file.first:
                raise CheckpointError(f"{folder / file.name}: the rows before number {file.first} are missing; use "
                                      f"another checkpoint")
            read = map_arrays if self._mapped else read_arrays
            arrays = read(folder / file.name, self._layout(file.rows))
            found.append(Segment(file.first, file.first + file.rows, arrays, file, loaded=True))
        self._hold([*found, self._empty(found[-1].end if found else 0)])

    def _layout(self, rows: int) -> Fields:
        return {key: ((rows, self._num_envs, *shape), dtype) for key, (shape, dtype) in self._fields.items()}

    def _empty(self, first: int) -> Segment:
        layout = self._layout(self._segment_rows)
        return Segment(first, first, {key: np.zeros(shape, dtype) for key, (shape, dtype) in layout.items()})


def row_bytes(fields: Fields, num_envs: int) -> int:
    """Bytes of one row of all environments."""
    return num_envs * sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in fields.values())
