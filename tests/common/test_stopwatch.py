"""Who is charged for what: parts inside parts, operations, FLOP; and that nothing stays wrapped."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.builders import CONTINUOUS, DISCRETE, IMAGE, VECTOR, random_row, tiny_learner
from xrl.common.stopwatch import REST, Operations, Stopwatch, watching

CPU = torch.device("cpu")


class Clock:
    """Tells a time that only ``pass_`` moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


def slow(holder, name, clock, seconds):
    """From now on ``holder.name`` takes so many seconds longer by ``clock``."""
    method = getattr(holder, name)

    def call(*arguments, **keywords):
        clock.pass_(seconds)
        return method(*arguments, **keywords)

    setattr(holder, name, call)


@pytest.fixture
def clock():
    return Clock()


def seconds(lap) -> dict[str, float]:
    return {name: spent.seconds for name, spent in lap.items()}


def test_a_part_is_not_charged_for_what_is_inside_it(clock):
    watch = Stopwatch(CPU, clock)
    clock.pass_(1)
    with watch.part("outer"):
        clock.pass_(2)
        for _ in range(2):
            with watch.part("inner"):
                clock.pass_(4)
        clock.pass_(8)
    clock.pass_(16)
    watch.lap()
    assert seconds(watch.laps[0]) == {REST: 17, "outer": 10, "inner": 8}
    assert [watch.laps[0][name].calls for name in ("outer", "inner")] == [1, 2]


def test_a_lap_ends_where_the_next_begins_and_a_start_forgets(clock):
    watch = Stopwatch(CPU, clock)
    for passed in (1, 2, 4):
        clock.pass_(passed)
        if passed == 2:
            watch.start()
        else:
            watch.lap()
    assert [seconds(lap) for lap in watch.laps] == [{REST: 4}]


def test_a_part_that_raises_is_closed(clock):
    watch = Stopwatch(CPU, clock)
    with pytest.raises(ZeroDivisionError), watch.part("bad"):
        clock.pass_(1)
        raise ZeroDivisionError
    clock.pass_(2)
    watch.lap()
    assert seconds(watch.laps[0]) == {REST: 2, "bad": 1}


def test_operations_are_counted_inside_parts_and_only_when_asked():
    x, watch = torch.ones(3, 4), Stopwatch(CPU)
    with watch.part("product"):
        x @ x.t()
    watch.counting = True
    with watch.part("both"):
        x + x
        with watch.part("product"):
            x @ x.t()  # a transposition and a product
        x * x
    torch.exp(x)
    watch.lap()
    lap = watch.laps[0]
    assert {name: (spent.calls, spent.operations, spent.flop) for name, spent in lap.items()} == {
        REST: (0, 0, 0), "both": (1, 2, 0), "product": (2, 2, 2 * 3 * 4 * 3)}


@pytest.mark.parametrize("action", [DISCRETE, CONTINUOUS])
@pytest.mark.parametrize("obs", [IMAGE, VECTOR])
def test_flop_of_an_update_are_those_of_pytorchs_counter(obs, action):
    totals = []
    for mode in (Operations(), FlopCounterMode(display=False)):
        learner = tiny_learner(obs=obs, action=action)
        with mode:
            learner.step(learner.to_device(random_row(obs=obs, action=action)))
        totals.append(mode.flop if isinstance(mode, Operations) else mode.get_total_flops())
    assert totals[0] == totals[1] > 0


class Thing:
    def __init__(self) -> None:
        self.helper = Helper()
        self.own = lambda: 3

    def double(self, x: int, *, plus: int = 0) -> int:
        return 2 * x + plus


class Helper:
    def fail(self) -> None:
        raise KeyError("reason")


def test_watched_methods_do_what_they_did_and_are_put_back(clock):
    thing, watch = Thing(), Stopwatch(CPU, clock)
    own = thing.own
    with watching(watch, thing, {"a": ("double", "own"), "b": ("helper.fail",)}):
        assert thing.double(4, plus=1) == 9 and thing.own() == 3
        with pytest.raises(KeyError, match="reason"):
            thing.helper.fail()
    watch.lap()
    assert {name: spent.calls for name, spent in watch.laps[0].items()} == {REST: 0, "a": 2, "b": 1}
    assert set(vars(thing)) == {"helper", "own"} and vars(thing.helper) == {}
    assert thing.own is own and thing.double(1) == 2


def test_methods_are_put_back_after_an_exception(clock):
    thing = Thing()
    with pytest.raises(ZeroDivisionError), watching(Stopwatch(CPU, clock), thing, {"a": ("double",)}):
        raise ZeroDivisionError
    with pytest.raises(AttributeError, match="absent"), (
            watching(Stopwatch(CPU, clock), thing, {"a": ("double",), "b": ("absent",)})):
        pass
    assert set(vars(thing)) == {"helper", "own"}
