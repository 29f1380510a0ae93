"""All or none, in a row or not, sick for good; and flags that arrive later than the host asks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.counting import calls_of
from xrl.common import health as module
from xrl.common.errors import NumericalError
from xrl.common.health import Flags, Health, raise_if_sick
from xrl.common.optimizer import Adam

GOOD, BAD = torch.ones(2), torch.tensor([1.0, math.nan])


def pair(patience=0):
    adams = [Adam([(name, nn.Parameter(torch.ones(2)))], lr=0.1, eps=1e-5, clip=1.0, weight_decay=0.1)
             for name in ("first", "second")]
    return Health(adams, patience), *adams


def everything(*adams):
    return [tensor.clone() for adam in adams for tensor in (adam.weights, adam.mean, adam.square, adam.steps)]


def equal(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def update(health, first, second, gradients):
    """A whole update of two halves, as a learner makes it."""
    first.gather([gradients[0]])
    good = health.step(health.well, first)
    second.gather([gradients[1]])
    good = health.step(good, second)
    health.note(good)
    return bool(good)


@pytest.mark.parametrize("bad", [0, 1])
def test_together_all_step_or_none(bad):
    health, first, second = pair()
    before = everything(first, second)
    first.gather([BAD if bad == 0 else GOOD])
    second.gather([BAD if bad == 1 else GOOD])
    assert not health.step(health.well, first, second)
    assert equal(everything(first, second), before)
    first.gather([GOOD])
    second.gather([GOOD])
    assert health.step(health.well, first, second)
    assert not any(torch.equal(now, then) for now, then in zip(everything(first, second), before, strict=True))


def test_what_follows_a_bad_half_is_left_out_what_came_before_is_not():
    health, first, second = pair(patience=9)
    before = everything(first), everything(second)
    assert not update(health, first, second, (BAD, GOOD))
    assert equal(everything(first), before[0]) and equal(everything(second), before[1])
    assert not update(health, first, second, (GOOD, BAD))
    assert not equal(everything(first), before[0]) and equal(everything(second), before[1])


def test_an_infinite_loss_with_a_finite_gradient_is_bad_too():
    health, first, _ = pair()
    before = everything(first)
    first.gather([GOOD], valid=torch.tensor(False))
    assert not health.step(health.well, first) and equal(everything(first), before)


@pytest.mark.parametrize(("patience", "updates", "sick_after"), [
    (0, "++-", 3), (1, "-+-+--", 6), (2, "--+--+---+", 9), (2, "--+--+--+", None)])
def test_so_many_in_a_row_and_no_more(patience, updates, sick_after):
    health, first, second = pair(patience)
    for number, kind in enumerate(updates, start=1):
        was_well = bool(health.well)
        assert update(health, first, second, (GOOD, GOOD if kind == "+" else BAD)) == (kind == "+" and was_well)
        assert bool(health.well) == (sick_after is None or number < sick_after)
    bad = updates.count("-") + (updates[sick_after:].count("+") if sick_after else 0)  # all that was left out
    assert health.skipped == bad


def test_a_sick_learner_changes_no_more_and_keeps_the_norms_of_the_update_that_made_it_so():
    health, first, second = pair()
    update(health, first, second, (GOOD, BAD))
    assert first.culprit() is None and second.culprit() == "second"
    before = everything(first, second)
    for gradients in ((GOOD, GOOD), (BAD, GOOD)):
        assert not update(health, first, second, gradients)
        assert equal(everything(first, second), before)
        assert first.culprit() is None and second.culprit() == "second"


def test_norms_follow_as_long_as_it_is_forgiven():
    health, first, second = pair(patience=1)
    update(health, first, second, (BAD, GOOD))
    assert first.culprit() == "first"
    update(health, first, second, (GOOD, GOOD))
    assert first.culprit() is None


def test_nothing_waits_and_nothing_moves():
    health, first, second = pair()
    places = [tensor.data_ptr() for tensor in (health.well, health.in_a_row, health.skipped, first.healthy)]
    good, bad = (calls_of(lambda g=g: health.note(health.step(health.well & g, first, second))).all
                 for g in (torch.tensor(True), torch.tensor(False)))
    assert good == bad and not [call.name for call in good if call.waits]
    assert places == [tensor.data_ptr() for tensor in (health.well, health.in_a_row, health.skipped, second.healthy)]


def test_counts_are_saved_and_a_sick_learner_begins_anew():
    health, first, second = pair(patience=2)
    for _ in range(2):
        update(health, first, second, (BAD, GOOD))
    restored, *adams = pair(patience=2)
    restored.load_state_dict(health.state_dict())
    assert restored.well and not update(restored, *adams, (BAD, GOOD)) and not restored.well, "the third in a row"
    again, *_ = pair(patience=2)
    again.load_state_dict(restored.state_dict())
    assert again.well and again.in_a_row == 0 and again.skipped == 3
    again.load_state_dict({})
    assert again.well and again.skipped == 0


# Flags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("patience", "series"), [(0, ""), (1, r" \(the last of 2 in a row\)")])
def test_a_learner_without_evidence_says_what_it_knows(patience, series):
    health, first, second = pair(patience)
    adams = {"first_opt": first, "second_opt": second}
    raise_if_sick(health, 3, {}, adams)
    for _ in range(patience + 1):
        update(health, first, second, (GOOD, BAD))
    message = rf"update 4{series}: critic/loss is not finite; first bad parameter: {second.names[0]} \(second_opt\)"
    with pytest.raises(NumericalError, match=message):
        raise_if_sick(health, 4, {"critic/loss": torch.tensor(math.inf), "actor/loss": torch.tensor(1.0)}, adams)
    with pytest.raises(NumericalError, match="no loss, but a gradient is not finite"):
        raise_if_sick(health, 4, {}, adams)


class Arrival:
    """An event that has passed when it is told so, or waited for."""

    def __init__(self):
        self.passed, self.waits = False, 0

    def query(self):
        return self.passed

    def synchronize(self):
        self.passed, self.waits = True, self.waits + 1


@pytest.fixture
def far(monkeypatch):
    """Flags that set out for far away: returns their events. What arrives is what was sent."""
    events = []

    def send(flag):
        events.append(Arrival())
        return flag.clone(), events[-1]

    monkeypatch.setattr(module, "_send", send)
    return events


UP, DOWN = torch.tensor(True), torch.tensor(False)


def test_on_a_cpu_a_flag_is_there_at_once():
    flags = Flags()
    for name in "ab":
        flags.add(DOWN, name)
        assert flags.first(wait=False) is None
    flags.add(UP, "c")
    flags.add(UP, "d")
    assert [flags.first(wait=wait) for wait in (False, True, False)] == ["c"] * 3, "it stays"
    flags.clear()
    assert flags.first(wait=True) is None


def test_a_flag_under_way_is_left_for_the_next_time(far):
    flags = Flags()
    flags.add(UP, "a")
    assert flags.first(wait=False) is None
    flags.add(DOWN, "b")
    far[1].passed = True
    assert flags.first(wait=False) is None, "in order: b has arrived, a has not"
    far[0].passed = True
    assert flags.first(wait=False) == "a" and not far[0].waits


def test_the_oldest_is_found_however_late_it_is_looked_for(far):
    flags = Flags()
    for flag, name in ((DOWN, "a"), (UP, "b"), (UP, "c")):
        flags.add(flag, name)
    assert flags.first(wait=True) == "b" and [event.waits for event in far] == [1, 1, 0]


def test_no_more_than_the_limit_are_kept(far):
    flags = Flags()
    for number in range(10):
        flags.add(DOWN, number)
        assert flags.first(wait=False) is None
        waited = [event.waits for event in far]
        assert sum(waited) == max(0, number + 1 - (Flags.LIMIT - 1)) and waited == sorted(waited, reverse=True)
    for event in far:
        event.passed = True
    assert flags.first(wait=False) is None and not flags._waiting
