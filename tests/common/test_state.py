"""States to arrays and JSON, and back."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xrl.common.errors import CheckpointError
from xrl.common.state import global_generators, pack, restore_global_generators, unpack

LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary())
KEYS = st.text(min_size=1).filter(lambda key: not key.startswith("$"))
STATES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))


def there_and_back(state):
    arrays, tree = pack(state)
    return unpack(arrays, json.loads(json.dumps(tree)))


@given(STATES)
def test_nested_values_come_back(state):
    assert there_and_back(state) == state


def test_arrays_and_tensors_come_back_as_copies_of_their_kind_and_order():
    array = np.arange(6, dtype=np.float64).reshape(2, 3).T
    tensor = torch.arange(6, dtype=torch.uint8).view(2, 3).T
    back = there_and_back({"a": array, "t": [tensor, torch.tensor(True)], "s": np.float32(0.1), "tuple": (1, 2**90)})
    assert isinstance(back["a"], np.ndarray) and np.array_equal(back["a"], array) and back["a"].dtype == np.float64
    assert torch.equal(back["t"][0], tensor) and back["t"][0].dtype == torch.uint8 and back["t"][1].item() is True
    assert back["s"] == float(np.float32(0.1)) and back["tuple"] == [1, 2**90]
    arrays, _ = pack({"a": array, "t": tensor})
    array[:] = tensor[:] = 99
    assert 99 not in arrays["a"] and 99 not in arrays["t"]


def test_keys_may_look_like_paths():
    state = {"a/b": b"1", "a": {"b": b"2", "b'": b"3"}}
    assert there_and_back(state) == state


@pytest.mark.parametrize(("state", "where"), [
    ({"a": {"b": [1, object()]}}, "a/b/1: object"), ({"a": np.array(["x"])}, "a: an array of <U1"),
    ({"a": {1: 2}}, "a: 1 cannot be a key"), ({"$tensor": 2}, "'.tensor' cannot be a key")])
def test_what_cannot_be_saved_is_named(state, where):
    with pytest.raises(TypeError, match=where):
        pack(state)


def test_a_missing_array_is_named():
    with pytest.raises(CheckpointError, match="'x/y'"):
        unpack({}, {"z": [{"$array": "x/y"}]})


def test_global_generators_go_on():
    def draw():
        return [random.random(), np.random.rand(), torch.rand(1).item(), random.gauss(0, 1), np.random.randn()]

    draw()  # leaves half a pair of normal numbers behind
    state = there_and_back(global_generators())
    expected = draw()
    restore_global_generators(state)
    assert draw() == expected
