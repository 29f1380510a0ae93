"""Cadences."""

from __future__ import annotations

import pytest

from xrl.common.schedule import Every


def fired(every, steps):
    return [step for step in steps if every(step)]


def test_first_call_fires_and_starts_the_grid():
    assert fired(Every(16), range(100, 150)) == [100, 116, 132, 148]


def test_asked_late_it_catches_up_one_firing_per_call():
    assert fired(Every(16), [100, 150, 151, 152, 153]) == [100, 150, 151, 152]


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_long_run_frequency_is_kept_whatever_the_stride(stride):
    assert len(fired(Every(8), range(0, 801 * stride, stride))) == 1 + 800 * stride // 8


def test_every_step():
    assert fired(Every(1), range(5, 9)) == [5, 6, 7, 8]


def test_state_continues_where_it_was():
    every, restored = Every(16), Every(16)
    assert fired(every, range(100, 110)) == [100]
    restored.load_state_dict(every.state_dict())
    assert fired(restored, range(110, 140)) == [116, 132]
    fresh = Every(16)
    fresh.load_state_dict(Every(16).state_dict())
    assert fresh(7)
