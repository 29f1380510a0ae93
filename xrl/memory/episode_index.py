"""Which stored rows form an episode, kept up to date row by row so that drawing one takes no search."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

NO_EPISODE = -1


class EpisodeIndex:
    """Finished episodes of at least ``min_rows`` surviving rows, and the unfinished one of every environment.

    An episode is ``(env, start, end)`` in absolute row numbers, ``end`` exclusive; row numbers count all rows ever
    inserted into an environment's ring and are the same for all environments. Episodes are appended in the order of
    their ends, and the oldest surviving row only moves forward: those that fall short do so at the front, and
    the index is a queue, whatever environment an episode is from.
    """

    def __init__(self, num_envs: int, rows: int, min_rows: int) -> None:
        self._min_rows = min_rows
        # Within an environment episodes do not overlap, so no more than this many can survive in its ring.
        self._queue = np.zeros((max(1, num_envs * (rows // min_rows)), 3), np.int64)
        self._head = self._tail = 0
        self._open = np.full(num_envs, NO_EPISODE, np.int64)

    def __len__(self) -> int:
        """Finished episodes that may be drawn."""
        return self._tail - self._head

    def astray(self, is_first: np.ndarray) -> np.ndarray:
        """Environments whose next row, of flags ``is_first: (E,)``, belongs to no episode."""
        return np.flatnonzero(~is_first & (self._open == NO_EPISODE))

    def add(self, row: int, oldest: int, is_first: np.ndarray, is_last: np.ndarray) -> None:
        """Row number ``row`` was inserted with flags ``(E,)``; ``oldest`` is the first row that survives now."""
        while len(self) and self._queue[self._head % len(self._queue), 2] - oldest < self._min_rows:
            self._head += 1
        for env in np.flatnonzero(is_first & (self._open != NO_EPISODE)).tolist():  # cut: nothing marked its last row
            self._finish(env, row, oldest)
        self._open[is_first] = row
        for env in np.flatnonzero(is_last).tolist():
            self._finish(env, row + 1, oldest)
            self._open[env] = NO_EPISODE

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """``count`` finished episodes, each uniform over all, as (count, 3): env, start, end.

        ``start`` may be older than the oldest surviving row.
        """
        return self._queue[(self._head + rng.integers(len(self), size=count)) % len(self._queue)]

    def unfinished(self, end: int) -> np.ndarray:
        """The episodes still running, as (count, 3): env, start, end, where ``end`` is the number of the next row."""
        envs = np.flatnonzero(self._open != NO_EPISODE)
        return np.stack([envs, self._open[envs], np.full_like(envs, end)], axis=1)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Finished episodes (count, 3) in order, and the start of the unfinished one of each environment (E,)."""
        finished = self._queue[np.arange(self._head, self._tail) % len(self._queue)]
        return {"finished": finished, "open": self._open.copy()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore ``state_dict``'s answer."""
        finished = state["finished"]
        self._head, self._tail = 0, len(finished)
        self._queue[:len(finished)] = finished
        self._open[:] = state["open"]

    def _finish(self, env: int, end: int, oldest: int) -> None:
        start = self._open[env]
        if end - max(start, oldest) >= self._min_rows:
            self._queue[self._tail % len(self._queue)] = env, start, end
            self._tail += 1
