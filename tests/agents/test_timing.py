"""Where a run's time goes, by a clock that only the parts move: then every number of the log is known."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

from tests.agents.examples import records
from tests.common.test_stopwatch import Clock, slow
from xrl.agents.timing import loop_parts
from xrl.common.callback import Callback
from xrl.common.errors import NumericalError
from xrl.common.stopwatch import Stopwatch

# Seconds of one call. With one environment a call is an agent step, so that ms are s per 1,000 of those.
LOOP = {"envs.step": 0.001, "training_action": 0.002, "observe": 0.004}
UPDATE = {"replay.sample": 0.008, "learner.to_device": 0.016, "learner.model_loss": 0.1,
          "learner.model_opt.differentiate": 0.2, "learner.imagine": 0.4, "learner.actor_loss": 0.8,
          "learner.critic_loss": 1.6, "learner._step": 0.064}
PARTS = {"time/replay_sampling": 0.008, "time/to_device": 0.016, "time/update/world_model_forward": 0.1,
         "time/update/world_model_backward": 0.2, "time/update/imagination": 0.4, "time/update/actor": 0.8,
         "time/update/critic": 1.6, "time/update/rest": 0.064}


class Readings(Callback):
    """What the clock says when training begins and whenever the log is written."""

    def __init__(self, clock):
        self.clock = clock
        self.times, self.steps = [], []

    def on_train_begin(self, agent, target_steps):
        self.times.append(self.clock())
        self.steps.append(agent.agent_steps)

    def on_record(self, agent, record):
        self.times.append(self.clock())
        self.steps.append(agent.agent_steps)


@pytest.fixture
def timed(workshop):
    """An agent whose methods take as long as ``took`` says, and its clock."""
    def make(took=LOOP | UPDATE, callbacks=lambda clock: [], **keys):
        clock = Clock()
        readings = Readings(clock)
        agent = workshop.agent([readings, *callbacks(clock)], env_kwargs={"length": 1000}, start_training=10,
                               pretrain=1, train_every=5, log_interval=20, **keys)
        agent.restart_episodes()  # makes the replay
        agent.timing.watch = Stopwatch(torch.device("cpu"), clock)
        for path, seconds in took.items():
            *way, name = path.split(".")
            slow(functools.reduce(getattr, way, agent), name, clock, seconds)
        return agent, readings

    return make


def times(agent):
    """The records of log intervals."""
    return [record for record in records(agent.folder / "metrics.jsonl") if "time/policy" in record]


def whole(record):
    """The parts of the loop, in seconds per 1,000 agent steps."""
    speeds = ("time/fps", "time/updates_per_s")
    return sum(value for key, value in record.items()
               if key.startswith("time/") and not key.startswith("time/update/") and key not in speeds)


def test_each_part_in_seconds_per_1000_agent_steps(timed):
    """An interval of 20 steps with 4 updates, of which every call's cost is known."""
    agent, _ = timed()
    agent.train(60)
    record = times(agent)[1]
    assert record["agent_steps"] == 40
    assert record["time/environment"] == pytest.approx(1) and record["time/policy"] == pytest.approx(2)
    assert record["time/replay_insert"] == pytest.approx(4)
    for name, seconds in PARTS.items():
        assert record[name] == pytest.approx(seconds * 4 * 1000 / 20), name
    assert record["time/update"] == pytest.approx(sum(
        value for key, value in record.items() if key.startswith("time/update/")))
    assert record["time/rest"] == record["time/logging"] == record["time/inspection"] == pytest.approx(0, abs=1e-9)
    assert agent.timing.watch.laps == []  # a long run gathers nothing


@pytest.mark.parametrize("keys", [{}, {"parallels": 3}, {"policy_lag": 1}, {"batches_ahead": 1}])
def test_the_parts_are_the_whole_of_the_time(timed, keys):
    """Whatever runs when: between two records passes what their parts add up to."""
    class Busy(Callback):
        def __init__(self, clock):
            self.on_step = lambda agent: clock.pass_(0.25)

    took = LOOP if "policy_lag" in keys else LOOP | UPDATE  # a clock that two threads move tells nothing
    agent, readings = timed(took, callbacks=lambda clock: [Busy(clock)], **keys)
    agent.train(60 // keys.get("parallels", 1))
    found = times(agent)
    assert len(found) >= 3
    for record, (begin, end), (first, last) in zip(
            found, itertools.pairwise(readings.times), itertools.pairwise(readings.steps), strict=True):
        assert whole(record) * (last - first) / 1000 == pytest.approx(end - begin, abs=1e-6)


def test_a_call_that_serves_several_environments_counts_once(timed):
    agent, _ = timed(parallels=4)
    agent.train(20)
    record = times(agent)[-1]
    assert record["time/environment"] == pytest.approx(0.25) and record["time/policy"] == pytest.approx(0.5)


def test_callbacks_are_charged_to_their_parts_and_parts_inside_to_themselves(timed):
    class Mine(Callback):
        def __init__(self, clock):
            self.on_step = lambda agent: clock.pass_(0.5)

    class Evaluating(Callback):
        part = "evaluation"

        def __init__(self, clock):
            self.clock = clock

        def on_step(self, agent):
            if agent.agent_steps == 30:
                self.clock.pass_(3.0)
                agent.notify("on_evaluation", None)

        def on_evaluation(self, agent, evaluation):
            self.clock.pass_(1.0)

    class Looking(Callback):
        part = "inspection"

        def __init__(self, clock):
            self.on_evaluation = lambda agent, evaluation: clock.pass_(2.0)

    agent, _ = timed(callbacks=lambda clock: [Mine(clock), Evaluating(clock), Looking(clock)], inspect=False)
    agent.log.on_evaluation = agent.callbacks[1].on_evaluation = lambda agent, evaluation: None
    agent.train(60)
    record = times(agent)[1]
    per_1000 = 1000 / 20
    assert record["time/callbacks"] == pytest.approx(20 * 0.5 * per_1000)
    assert record["time/evaluation"] == pytest.approx(4.0 * per_1000)
    assert record["time/inspection"] == pytest.approx(2.0 * per_1000)


def test_learning_beside_acting_is_charged_for_the_waiting(timed):
    """The update runs in another thread, whose time is not the loop's."""
    agent, _ = timed(LOOP | {"replay.sample": 0.008, "background.finish": 0.032}, policy_lag=1)
    agent.train(60)
    record = times(agent)[1]
    assert record["time/waiting"] == pytest.approx(0.032 * (4 + 1) * 1000 / 20)  # and the log's own, to read
    assert record["time/replay_sampling"] == pytest.approx(0.008 * 4 * 1000 / 20)
    assert not any(key.startswith("time/update") and key != "time/updates_per_s" for key in record)


def test_what_passes_between_two_calls_of_train_counts_nowhere(timed):
    agent, readings = timed()
    agent.train(20)
    readings.clock.pass_(1e6)
    agent.test(1)
    agent.train(20)
    assert max(whole(record) for record in times(agent)) < 1e5


def state_of(agent):
    things = (agent, agent.envs, agent.replay, agent.learner, agent.learner.model_opt, agent.learner.actor_opt,
              agent.learner.critic_opt)
    return [{name for name in vars(thing) if name != "postmortem"} for thing in things]


class Breaks(Callback):
    """Raises at a moment."""

    def __init__(self, event, error=LookupError):
        def raise_it(agent, *arguments):
            if agent.agent_steps >= 30:
                raise error("mine")

        setattr(self, event, raise_it)


@pytest.mark.parametrize("policy_lag", [0, 1])
@pytest.mark.parametrize("event", [
    None, "on_step", "on_train_begin", "on_update", "on_pause", "on_train_end"])
def test_nothing_stays_wrapped(workshop, event, policy_lag):
    agent = workshop.agent([] if event is None else [Breaks(event)], policy_lag=policy_lag)
    agent.train(25)
    before = state_of(agent)
    if event is None:
        agent.train(20)
    else:
        agent.train(5) if event == "on_train_begin" else None
        with pytest.raises(LookupError):
            agent.train(20)
    assert state_of(agent) == before


def test_nothing_stays_wrapped_after_a_numerical_error(workshop, watched):
    agent = workshop.agent()
    agent.train(25)
    before = state_of(agent)
    watched.trouble = lambda env, result: (result[0], 3e38, *result[2:])
    with pytest.raises(NumericalError):
        agent.train(100)
    assert state_of(agent) == before


def test_the_parts_are_methods_that_the_agent_has(workshop):
    for policy_lag in (0, 1):
        agent = workshop.agent(policy_lag=policy_lag)
        agent.restart_episodes()
        parts = loop_parts(agent)
        assert ("waiting" in parts) == bool(policy_lag) and ("update" in parts) == (not policy_lag)
        for paths in parts.values():
            assert all(callable(functools.reduce(getattr, path.split("."), agent)) for path in paths)


def test_a_method_without_a_replay_or_a_thread_has_no_such_part():
    class Plain:
        def training_action(self): ...
        def observe(self): ...

    agent = Plain()
    agent.envs = agent.learner = type("Holder", (), {"step": print, "update": print})()
    agent.replay = None
    assert set(loop_parts(agent)) == {"environment step", "policy", "replay insert", "update"}
