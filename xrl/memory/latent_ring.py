"""The latent states that belong to the rows of a replay, which, unlike the rows, are written again and again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from xrl.common.errors import CheckpointError


class LatentRing:
    """For each of the latest ``rows`` rows of E environments: h as float16, z as one class per variable.

    Rows have the numbers of ``SequenceReplay``. float16 keeps three digits of h, which lies in [-1, 1], in half the
    memory; a state read from here only starts a sequence. What a row has not been given yet reads as zeros.
    """

    def __init__(self, rows: int, num_envs: int, deter: int, stoch: int, classes: int) -> None:
        self._rows = rows
        self._deter = np.zeros((rows, num_envs, deter), np.float16)
        self._stoch = np.zeros((rows, num_envs, stoch), np.uint8 if classes <= 256 else np.uint16)

    @staticmethod
    def nbytes_needed(rows: int, num_envs: int, deter: int, stoch: int, classes: int) -> int:
        """Bytes that a full ring takes."""
        return rows * num_envs * (2 * deter + stoch * (1 if classes <= 256 else 2))

    def put(self, numbers: np.ndarray, envs: np.ndarray, deter: np.ndarray, stoch: np.ndarray, oldest: int) -> None:
        """States of rows ``numbers`` (...) of environments ``envs`` (...): deter (..., D), stoch (..., S), classes.
        Rows before ``oldest`` have been overwritten and are passed over, and so are states that are not finite, which
        would spoil every sequence that goes on from them."""
        numbers, envs = np.broadcast_arrays(numbers, envs)
        alive = (numbers >= oldest) & np.isfinite(deter).all(-1)
        place = numbers[alive] % self._rows, envs[alive]
        self._deter[place], self._stoch[place] = deter[alive], stoch[alive]

    def get(self, numbers: np.ndarray, envs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """deter (..., D) float32 and stoch (..., S) int64 of rows ``numbers`` (...) of environments ``envs`` (...)."""
        place = numbers % self._rows, envs
        return self._deter[place].astype(np.float32), self._stoch[place].astype(np.int64)

    def state_dict(self, end: int) -> dict[str, np.ndarray]:
        """All states of rows before number ``end``, in the order of their places."""
        used = min(end, self._rows)
        return {"deter": self._deter[:used].copy(), "stoch": self._stoch[:used].copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises CheckpointError where the shapes do not fit."""
        for name, array in (("deter", self._deter), ("stoch", self._stoch)):
            found = state[name]
            if found.shape[1:] != array.shape[1:] or len(found) > self._rows or found.dtype != array.dtype:
                raise CheckpointError(f"the stored latent states ({name}) are {found.dtype} of shape {found.shape}, "
                                      f"this run has {array.dtype} of shape {array.shape}; use the size and "
                                      f"buffer_size it was made with")
            array[:len(found)] = found


class OnlineQueue:
    """Windows that are new, in the order in which they were completed: each row of a stream belongs to one of them.

    Windows of ``length`` rows that begin at rows 1, 1 + length, 1 + 2 length, .. of each environment (the official
    code's phase: row 0 is reached by random draws only).
    """

    def __init__(self, num_envs: int, length: int) -> None:
        self._num_envs, self._length = num_envs, length
        self._waiting: list[int] = []  # first rows; each stands for all environments
        self._env = 0  # the next environment of the first of these

    def inserted(self, number: int) -> None:
        """Row ``number`` of every environment has been stored."""
        if number and number % self._length == 0:
            self._waiting.append(number - self._length + 1)

    def take(self, most: int, oldest: int) -> tuple[np.ndarray, np.ndarray]:
        """Up to ``most`` windows: environments and first rows, (n,) both; those that began before ``oldest`` are gone.
        """
        envs: list[int] = []
        firsts: list[int] = []
        while self._waiting and len(envs) < most:
            if self._waiting[0] >= oldest:
                envs.append(self._env)
                firsts.append(self._waiting[0])
            self._env += 1
            if self._env == self._num_envs:
                self._env = 0
                del self._waiting[0]
        return np.array(envs, np.int64), np.array(firsts, np.int64)

    def state_dict(self) -> dict[str, Any]:
        return {"waiting": list(self._waiting), "env": self._env}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._waiting, self._env = [int(first) for first in state["waiting"]], int(state["env"])
