"""Sequence replay: rows go in one by one, windows of consecutive rows come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xrl.common.errors import CheckpointError, ConfigError, EnvironmentFault
from xrl.common.row import ActionSpec, ObsSpec, Row
from xrl.memory.episode_index import EpisodeIndex
from xrl.memory.segments import Fields, SegmentFile, Segments, row_bytes


class SequenceReplay:
    """Rings of the latest rows of each environment, read as windows of ``seq_len`` rows.

    Capacity: ``capacity`` counts agent steps over all environments, and every environment has a ring of
    ``capacity // num_envs`` rows. A reset row takes a place like any other (an episode of n agent steps is n + 1
    rows), so a full replay holds at most ``capacity`` agent steps, one less for every reset row it holds. A full
    ring drops its oldest row; no other row is ever rewritten.

    Sampling: ``"steps"`` draws uniformly from all windows of all environments; they may cross the end of an episode
    (the flags inside say where) and reach into the unfinished one. ``"episodes"`` (official DreamerV2 code) draws a
    finished episode, uniform over all of at least ``min_length`` agent steps, then a window inside it. With
    ``prioritize_ends``, ``seq_len`` extra chances fall to the window that ends the episode. An episode partly
    overwritten counts from its oldest surviving row, and is drawn while max(seq_len, min_length + 1) rows survive.
    An episode that was cut is finished by the ``is_first`` row after it. While no episode can be drawn, the
    unfinished ones of at least ``seq_len`` rows are (``sampling_unfinished``), without extra chances for an end
    that is none.

    A window's first ``is_first`` is always True, because no state is carried into it; nothing else is altered.

    Storage: in memory, or, with a ``folder``, in files there (see ``Segments``, also for ``mapped``, ``keep_files``).

    Raises ConfigError when a ring is too small for one window or one episode of ``min_length``.
    """

    def __init__(
        self,
        obs_spec: Mapping[str, ObsSpec],
        action_spec: ActionSpec,
        *,
        num_envs: int,
        capacity: int,
        seq_len: int,
        sampling: Literal["steps", "episodes"],
        min_length: int,
        prioritize_ends: bool,
        folder: Path | None = None,
        mapped: bool = True,
        keep_files: bool = False,
        segment_rows: int | None = None,
    ) -> None:
        self._num_envs, self._rows, self._seq_len = num_envs, capacity // num_envs, seq_len
        self._sampling, self._min_length, self._prioritize_ends = sampling, min_length, prioritize_ends
        self._min_rows = max(seq_len, min_length + 1) if sampling == "episodes" else seq_len
        if self._rows < self._min_rows:
            raise ConfigError(
                f"buffer_size: {capacity} gives each of the {num_envs} environments (parallels) {self._rows} rows, "
                f"too few to draw a sequence; use at least {self._min_rows * num_envs}")
        self._fields = _fields(obs_spec, action_spec)
        self._stored = Segments(self._fields, num_envs, folder, mapped, keep_files, segment_rows)
        self._index = EpisodeIndex(num_envs, self._rows, self._min_rows)
        self._agent_steps = 0

    @staticmethod
    def nbytes_needed(obs_spec: Mapping[str, ObsSpec], action_spec: ActionSpec, capacity: int, num_envs: int) -> int:
        """Bytes that a full replay takes, known before it is made; ``capacity``: agent steps over all environments."""
        return row_bytes(_fields(obs_spec, action_spec), num_envs) * (capacity // num_envs)

    @property
    def agent_steps(self) -> int:
        """Stored rows, over all environments, that are not reset rows."""
        return self._agent_steps

    @property
    def ready(self) -> bool:
        """Whether ``sample`` has something to draw from."""
        if self._sampling == "steps":
            return self._windows > 0
        return len(self._index) > 0 or len(self._unfinished()) > 0

    @property
    def sampling_unfinished(self) -> bool:
        """Whether ``sample`` makes do with unfinished episodes because no finished one is long enough."""
        return self._sampling == "episodes" and len(self._index) == 0 and self.ready

    def __len__(self) -> int:
        """Stored rows, over all environments."""
        return self._size * self._num_envs

    def insert(self, row: Row) -> None:
        """Append one row per environment, of leading shape (E,).

        Raises EnvironmentFault, and stores nothing, when an entry is missing or of another shape, an image is not
        uint8, or a row that opens an episode is not ``is_first``.
        """
        flat = _flatten(row)
        self._check(flat)
        if self._size == self._rows:
            self._agent_steps -= int(np.count_nonzero(~self._stored.row(self._oldest)["is_first"]))
        self._agent_steps += int(np.count_nonzero(~flat["is_first"]))
        self._stored.append(flat)
        self._stored.forget(self._oldest)
        self._index.add(self._stored.end - 1, self._oldest, flat["is_first"], flat["is_last"])

    def sample(self, batch_size: int, rng: np.random.Generator) -> Row:
        """Draw ``batch_size`` windows, independently, as one time-first row of fresh contiguous arrays.

        T = seq_len, B = batch_size. ``obs``: name -> (T, B, *shape); ``action``: (T, B, A); ``reward`` and
        flags: (T, B). Raises ConfigError when there is nothing to draw from (see ``ready``).
        """
        return self.windows(*self.draw(batch_size, rng))

    def draw(self, batch_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Where ``sample`` looks: environment and number of the first row of each window, (batch_size,) both."""
        if not self.ready:
            raise ConfigError(self.why_not_ready())
        return (self._draw_steps if self._sampling == "steps" else self._draw_episodes)(batch_size, rng)

    def windows(self, env: np.ndarray, first: np.ndarray) -> Row:
        """The windows that begin at rows ``first`` of environments ``env``, both (B,)."""
        batch = self.read(first + np.arange(self._seq_len)[:, None], env)
        batch.is_first[0] = True
        return batch

    def read(self, numbers: np.ndarray, envs: np.ndarray) -> Row:
        """Rows ``numbers`` (T, B) of environments ``envs`` (B,), as they were stored, in fresh arrays (T, B, ...).

        A number counts all rows ever inserted and must be one of ``oldest .. end - 1``.
        """
        return _unflatten(self._stored.gather(numbers, envs))

    def save(self, folder: Path) -> dict[str, Any]:
        """Make sure that every stored row is in a file in ``folder`` (not durable yet), and return all the rest."""
        self._stored.seal()
        files = [asdict(file) for file in self._stored.write(folder)]
        return {"rows": self._rows, "min_rows": self._min_rows, "written": self._stored.end,
                "agent_steps": self._agent_steps, "files": files, "index": self._index.state_dict()}

    def load(self, state: Mapping[str, Any], folder: Path) -> None:
        """Go on from what ``save`` returned, and its files. Raises CheckpointError, before anything changes, where they
        do not fit."""
        expected = {"rows": self._rows, "min_rows": self._min_rows}
        if changed := [key for key, value in expected.items() if state[key] != value]:
            raise CheckpointError(
                f"the stored replay has {changed[0]} = {state[changed[0]]}, this one {expected[changed[0]]}; use the "
                f"buffer_size, parallels, seq_len and replay.min_length it was made with")
        self._stored.load([SegmentFile(**file) for file in state["files"]], folder)
        self._agent_steps = int(state["agent_steps"])
        self._index.load_state_dict(state["index"])

    @property
    def _size(self) -> int:
        """Rows stored in each ring."""
        return min(self._stored.end, self._rows)

    @property
    def end(self) -> int:
        """Number of the next row: rows ever inserted, for each environment."""
        return self._stored.end

    @property
    def oldest(self) -> int:
        """Number of the oldest surviving row."""
        return self._oldest

    @property
    def window_count(self) -> int:
        """Windows of all environments."""
        return max(0, self._windows) * self._num_envs

    @property
    def rows(self) -> int:
        """The most rows that each environment's ring holds."""
        return self._rows

    @property
    def _oldest(self) -> int:
        return self._stored.end - self._size

    @property
    def _windows(self) -> int:
        """Windows in each ring; none when negative."""
        return self._size - self._seq_len + 1

    def _draw_steps(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Environment and first row number of each window, (count,) both."""
        pick = rng.integers(self._windows * self._num_envs, size=count)
        # By age from the oldest row, windows are contiguous wherever the write head stands.
        age, env = np.divmod(pick, self._num_envs)
        return env, self._oldest + age

    def _draw_episodes(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Environment and first row number of each window, (count,) both.

        With R rows in the episode: start = min(randint(0, R - T + 1 + extra), R - T), as in the official code.
        """
        if len(self._index):
            episodes, extra = self._index.draw(count, rng), self._seq_len if self._prioritize_ends else 0
        else:
            unfinished = self._unfinished()
            episodes, extra = unfinished[rng.integers(len(unfinished), size=count)], 0
        env, start, end = episodes.T
        start = np.maximum(start, self._oldest)
        last = end - start - self._seq_len
        return env, start + np.minimum(rng.integers(last + 1 + extra), last)

    def _unfinished(self) -> np.ndarray:
        """Unfinished episodes that hold a window, (count, 3): env, start, end."""
        episodes = self._index.unfinished(self._stored.end)
        surviving = episodes[:, 2] - np.maximum(episodes[:, 1], self._oldest)
        return episodes[surviving >= self._seq_len]

    def why_not_ready(self) -> str:
        """What is missing for ``sample``, with the keys that would change it."""
        if self._sampling == "steps":
            return (f"start_training: the replay holds {self._size} rows per environment, too few for a sequence of "
                    f"seq_len = {self._seq_len}; raise start_training")
        return (f"replay.min_length: {self._min_length} agent steps, but no stored episode is that long, and no "
                f"unfinished one has seq_len = {self._seq_len} rows yet; lower replay.min_length and seq_len, "
                f"use replay.sampling=steps, or raise start_training")

    def _check(self, flat: dict[str, np.ndarray]) -> None:
        if flat.keys() != self._fields.keys():
            raise EnvironmentFault(f"row has entries {sorted(flat)}, the replay stores {sorted(self._fields)}")
        for key, (shape, dtype) in self._fields.items():
            _check_entry(key, flat[key], (self._num_envs, *shape), dtype, EnvironmentFault)
        if len(astray := self._index.astray(flat["is_first"])):
            raise EnvironmentFault(
                f"environment {astray[0]}: a row that follows is_last, or nothing at all, opens an episode "
                f"and must be is_first; step the environment to its reset row")


def _fields(obs_spec: Mapping[str, ObsSpec], action_spec: ActionSpec) -> Fields:
    """Shape and type of every entry of one row."""
    fields: Fields = {f"obs.{name}": (spec.shape, spec.dtype) for name, spec in obs_spec.items()}
    fields["action"] = ((action_spec.size,), np.dtype(np.float32))
    fields["reward"] = ((), np.dtype(np.float32))
    for flag in ("is_first", "is_last", "is_terminal"):
        fields[flag] = ((), np.dtype(np.bool_))
    return fields


def _flatten(row: Row) -> dict[str, np.ndarray]:
    flat = {f"obs.{name}": value for name, value in row.obs.items()}
    flags = {"is_first": row.is_first, "is_last": row.is_last, "is_terminal": row.is_terminal}
    return flat | {"action": row.action, "reward": row.reward} | flags


def _unflatten(flat: dict[str, np.ndarray]) -> Row:
    obs = {key.removeprefix("obs."): value for key, value in flat.items() if key.startswith("obs.")}
    return Row(obs=obs, **{key: value for key, value in flat.items() if not key.startswith("obs.")})


def _check_entry(
    name: str, value: np.ndarray, shape: tuple[int, ...], dtype: np.dtype[Any], error: type[Exception]
) -> None:
    """Any number may become float32; a cast to uint8 or bool would change values without a word."""
    casting: Literal["safe", "same_kind"] = "same_kind" if dtype.kind == "f" else "safe"
    if value.shape != shape or not np.can_cast(value.dtype, dtype, casting):
        raise error(f"{name}: expected {dtype} of shape {shape}, got {value.dtype} of shape {value.shape}")
