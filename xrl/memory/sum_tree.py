"""A tree of sums: numbers in places, drawn in proportion to their size."""

from __future__ import annotations

import numpy as np


class SumTree:
    """``size`` numbers, 0 at first; setting or drawing some takes one pass over the log2(size) levels.

    Every inner number is computed from its two children, never adjusted: what the tree holds depends on its leaves
    alone, not on the order in which they were set, so that one that is built again draws the same.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._first = 1 << max(0, size - 1).bit_length()  # place of the first leaf
        self._nodes = np.zeros(2 * self._first)

    @property
    def total(self) -> float:
        return float(self._nodes[1])

    @property
    def values(self) -> np.ndarray:
        """All numbers, (size,), as a view that must not be written to."""
        return self._nodes[self._first:self._first + self._size]

    def set(self, places: np.ndarray, values: np.ndarray | float) -> None:
        """Replace the numbers (0 or more) at ``places`` (N,)."""
        nodes = places + self._first
        self._nodes[nodes] = values
        while len(nodes) and nodes[0] > 1:
            nodes = np.unique(nodes >> 1)
            self._nodes[nodes] = self._nodes[2 * nodes] + self._nodes[2 * nodes + 1]

    def find(self, mass: np.ndarray) -> np.ndarray:
        """The place whose share of the total holds ``mass`` (N,) in [0, total), counted from the left. Never one that
        holds 0, unless all do."""
        nodes = np.ones(len(mass), np.int64)
        mass = mass.copy()
        while nodes[0] < self._first:
            left = self._nodes[2 * nodes]
            # Rounding may leave a mass at or behind the end: it stays where there is something.
            right = (mass >= left) & (self._nodes[2 * nodes + 1] > 0)
            mass -= left * right
            nodes = 2 * nodes + right
        return nodes - self._first
