"""Cadences, and numbers that change."""

from __future__ import annotations

import pytest

from xrl.common.schedule import Every, Ratio, linear


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


@pytest.mark.parametrize(("train_ratio", "calls", "expected"), [
    (32, range(1000, 1100), {1000: 1, 1032: 1, 1064: 1, 1096: 1}),
    (256, range(1000, 1009), {1000: 1, 1004: 1, 1008: 1}),
    (512, range(1000, 1011), {1000: 1, 1002: 1, 1004: 1, 1006: 1, 1008: 1, 1010: 1}),
    (32, (1000, 1100, 1128), {1000: 1, 1100: 3, 1128: 1})])
def test_updates_come_at_their_ratio_to_rows(train_ratio, calls, expected):
    due = Ratio(train_ratio / (16 * 64))
    assert {step: count for step in calls if (count := due(step))} == expected


def test_a_ratio_goes_on_where_it_was():
    due, fresh = Ratio(0.3), Ratio(0.3)
    found = [due(step) for step in range(7)]
    fresh.load_state_dict(due.state_dict())
    assert [fresh(step) for step in range(7, 30)] == [due(step) for step in range(7, 30)] and sum(found) == 2


@pytest.mark.parametrize(("fraction", "expected"), [(-1, 2.0), (0, 2.0), (0.25, 1.5), (1, 0.0), (7, 0.0)])
def test_linear(fraction, expected):
    assert linear(2.0, 0.0, fraction) == pytest.approx(expected)
