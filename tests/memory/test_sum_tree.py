"""The tree of sums against plain arrays."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from xrl.memory.sum_tree import SumTree


@pytest.mark.parametrize("size", [1, 2, 3, 8, 13, 100])
def test_finds_what_a_cumulative_sum_finds(size):
    rng = np.random.default_rng(size)
    tree, plain = SumTree(size), np.zeros(size)
    for _ in range(20):
        places = rng.choice(size, rng.integers(1, size + 1), replace=False)
        values = rng.integers(0, 9, len(places)).astype(float)  # whole numbers: sums have no rounding
        tree.set(places, values)
        plain[places] = values
        assert tree.total == plain.sum() and np.array_equal(tree.values, plain)
        if tree.total:
            mass = rng.random(50) * tree.total
            assert np.array_equal(tree.find(mass), np.searchsorted(plain.cumsum(), mass, side="right"))


def test_shares_are_proportional_and_zeros_never_found():
    tree, rng = SumTree(6), np.random.default_rng(0)
    tree.set(np.arange(6), np.array([0.0, 1.0, 0.0, 3.0, 6.0, 0.0]))
    found = Counter(tree.find(rng.random(10_000) * tree.total).tolist())
    assert found.keys() == {1, 3, 4}
    for place, share in {1: 0.1, 3: 0.3, 4: 0.6}.items():
        assert abs(found[place] - 10_000 * share) < 5 * np.sqrt(10_000 * share * (1 - share))
    assert set(tree.find(np.array([0.0, tree.total, tree.total * (1 + 1e-9)]))) <= {1, 4}, "rounding stays inside"


def test_what_it_holds_depends_on_the_leaves_alone():
    rng = np.random.default_rng(1)
    one, other = SumTree(37), SumTree(37)
    for _ in range(50):
        one.set(rng.integers(37, size=1), rng.random())
    other.set(np.arange(37), one.values)
    mass = rng.random(200) * one.total
    assert one.total == other.total and np.array_equal(one.find(mass), other.find(mass))
