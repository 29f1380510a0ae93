"""Rollouts against the list of all rows."""

from __future__ import annotations

import numpy as np
import pytest

from tests.memory.test_sequence_replay import ACTION, OBS, arrays, make_row
from xrl.common.errors import EnvironmentFault
from xrl.memory import Rollouts


def make(steps=3, num_envs=2, frames=1):
    return Rollouts(OBS, ACTION, num_envs=num_envs, steps=steps, frames=frames)


def flags(number):
    return ["f" if number % 5 == 0 else "l" if number % 5 == 4 else "", "f" if number % 7 == 0 else ""]


@pytest.mark.parametrize("frames", [1, 3])
def test_each_holds_its_steps_and_shares_one_row_with_the_next(frames):
    rollouts, rows, taken = make(frames=frames), [], []
    for number in range(20):
        rows.append(make_row(number, flags(number)))
        rollouts.insert(rows[-1])
        assert rollouts.full == (number > 0 and number % 3 == 0)
        if rollouts.full:
            taken.append(rollouts.take())
            assert not rollouts.full
    for index, rollout in enumerate(taken):
        numbers = [max(number, 0) for number in range(3 * index - frames + 1, 3 * index + 4)]
        for name, drawn in arrays(rollout).items():
            expected = np.stack([arrays(rows[number])[name] for number in numbers])
            np.testing.assert_array_equal(drawn, expected, err_msg=name)


def test_a_restored_one_goes_on_alike(tmp_path):
    one = make(frames=2)
    for number in range(11):
        one.insert(make_row(number, flags(number)))
        if one.full:
            one.take()
    other = make(frames=2)
    other.load(one.save(tmp_path), tmp_path)
    for number in range(11, 16):
        for each in (one, other):
            each.insert(make_row(number, flags(number)))
        assert one.full == other.full
        if one.full:
            again = arrays(other.take())
            for name, drawn in arrays(one.take()).items():
                np.testing.assert_array_equal(drawn, again[name])


def test_rows_are_checked_as_everywhere():
    with pytest.raises(EnvironmentFault, match="opens an episode"):
        make().insert(make_row(0, ["", ""]))
