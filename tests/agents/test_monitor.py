"""The log and the progress bar that every run has, with or without a runner."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.agents.examples import Recorder, records
from xrl.common import health
from xrl.common.callback import Callback
from xrl.common.errors import NumericalError
from xrl.common.health import Flags

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
DOCUMENTED = set(re.findall(r"^\| `([\w/]+)` \|", PAGE.read_text(encoding="utf-8"), re.M))
COUNTERS = {"agent_steps", "frames", "updates"}


def log_of(agent):
    return records(agent.folder / "metrics.jsonl")


@pytest.mark.parametrize(("env", "env_id"), [("watched", "a"), ("toy", "Catch-v0")])
def test_every_record_carries_the_counters_and_every_key_is_documented(workshop, env, env_id):
    agent = workshop.agent(env=env, env_id=env_id)
    agent.train(45)
    agent.test(1)
    log = log_of(agent)
    assert all(record.keys() >= COUNTERS for record in log)
    assert [record["agent_steps"] for record in log] == sorted(record["agent_steps"] for record in log)
    keys = {key for record in log for key in record}
    assert {"model/loss", "actor/entropy", "critic/value", "episode/return", "eval/return", "time/fps"} <= keys
    assert keys <= DOCUMENTED
    assert all(math.isfinite(value) for record in log for value in record.values())


def test_every_number_of_dreams_is_documented_that_long_episodes_have(workshop):
    """That nothing else is documented, tests/test_docs.py sees, over all methods."""
    keys = set()
    for env, env_id in (("watched", "a"), ("toy", "Catch-v0")):
        length = {"length": 70} if env == "watched" else {}  # enough for every step of a dream
        agent = workshop.agent([Callback()], env=env, env_id=env_id, env_kwargs=length)
        agent.train(45)
        agent.test(1)
        keys |= {key for record in log_of(agent) for key in record}
    assert keys <= DOCUMENTED
    assert {f"health/{name}_{k}" for name in ("open_loop", "reward_error") for k in (1, 5, 15, 50)} <= keys


def test_learning_beside_acting_is_waited_for(workshop):
    agent = workshop.agent(policy_lag=1)
    agent.train(45)
    keys = {key for record in log_of(agent) for key in record}
    assert "time/waiting" in keys <= DOCUMENTED and not any(key.startswith("time/update/") for key in keys)


def test_metrics_are_means_over_the_updates_of_an_interval(workshop):
    recorder = Recorder()
    agent = workshop.agent([recorder], log_interval=15, train_every=4, start_training=12, env_kwargs={"length": 100})
    agent.train(54)
    log = [record for record in log_of(agent) if "model/loss" in record or "time/fps" in record]
    assert [record["agent_steps"] for record in log] == [15, 30, 45, 54]
    updates = recorder.named("update")
    begin = 0
    for record in log:
        mine = [event[3] for event in updates if begin < event[1] <= record["agent_steps"]]
        begin = record["agent_steps"]
        assert len(mine) >= 2
        for key in mine[0]:
            assert record[key] == pytest.approx(sum(metrics[key] for metrics in mine) / len(mine), rel=1e-5)
    assert log[-1]["updates"] == len(updates)


def test_an_interval_without_updates_logs_speed_alone(workshop):
    agent = workshop.agent(log_interval=5, env_kwargs={"length": 100}, start_training=50)
    agent.train(10)
    speed = {"time/fps", "time/updates_per_s", "time/environment", "time/policy", "time/replay_insert", "time/logging",
             "time/inspection", "time/rest"}
    assert [set(record) - COUNTERS for record in log_of(agent)] == [speed] * 2


def test_speed_is_frames_over_the_seconds_since_the_last_record(workshop, monkeypatch):
    """What passes between two calls of train does not count."""
    now = [100.0]

    class Tick(Callback):
        def on_step(self, agent):
            now[0] += 0.5

    agent = workshop.agent([Tick()], log_interval=10, start_training=100, env_kwargs={"length": 100},
                           **{"environment.action_repeat": 2})
    monkeypatch.setattr("xrl.agents.monitor.time", SimpleNamespace(perf_counter=lambda: now[0]))
    for _ in range(2):
        now[0] += 1000
        agent.train(10)
    first, second = log_of(agent)
    # The tenth step is written before its own tick: 4.5 seconds.
    assert first["time/fps"] == second["time/fps"] == 20 / 4.5 and first["time/updates_per_s"] == 0


def test_evaluations_and_episodes(workshop):
    agent = workshop.agent(env_kwargs={"length": 6})
    agent.train(6)
    scores = agent.test(4)
    episode, evaluation = (next(record for record in log_of(agent) if key in record)
                           for key in ("episode/return", "eval/return"))
    assert episode["episode/length"] == 6 and 21 <= episode["episode/return"] <= 24
    mean = sum(scores) / 4
    assert {key: value for key, value in evaluation.items() if key.startswith("eval/")} == pytest.approx({
        "eval/return": mean, "eval/return_min": min(scores), "eval/return_max": max(scores), "eval/length": 6,
        "eval/episodes": 4, "eval/return_std": (sum((score - mean) ** 2 for score in scores) / 4) ** 0.5})


class Late:
    """An event of a device that is always behind: what it stands for has arrived only when it is waited for."""

    def query(self):
        return False

    def synchronize(self):
        pass


@pytest.fixture
def behind(monkeypatch):
    monkeypatch.setattr(health, "_send", lambda flag: (flag, Late()))
    monkeypatch.setattr(Flags, "LIMIT", 100)


def test_where_the_device_is_asked_only_now_and_then_the_log_finds_what_is_not_finite(workshop, watched, behind):
    """As on a GPU that is far behind: no check after the update; the log waits for it, and the run stops."""
    agent = workshop.agent(log_interval=10, train_every=2)
    agent.updated = lambda metrics: agent.notify("on_update", metrics)
    agent.train(40)
    watched.trouble = lambda env, result: (result[0], 3e38, *result[2:])
    with pytest.raises(NumericalError, match=r"model/reward_loss.*not finite.*saved as .*/last_good_model") as caught:
        agent.train(200)
    assert "no loss" not in str(caught.value) and agent.agent_steps in (50, 60, 70)  # not only in the end


def test_without_a_log_in_between_the_end_of_training_finds_it(workshop, watched, behind):
    agent = workshop.agent(log_interval=10_000, train_every=1)
    agent.updated = lambda metrics: agent.notify("on_update", metrics)
    agent.train(40)
    watched.trouble = lambda env, result: (result[0], 3e38, *result[2:])
    with pytest.raises(NumericalError, match=r"is not finite.*saved as .*last_good_model.pth"):
        agent.train(40)
    assert agent.agent_steps == 80


def last_bar(err: str) -> str:
    return [piece for piece in re.split(r"[\r\n]", err) if "step" in piece or "%|" in piece][-1]


def test_the_bar_ends_with_the_numbers_of_the_run(workshop, capsys):
    agent = workshop.agent(env_kwargs={"length": 10}, **{"environment.action_repeat": 2})
    agent.train(40)
    text = last_bar(capsys.readouterr().err)
    assert "DreamerV2 any-v0 100%" in text and "40/40" in text
    assert re.search(rf"frames 80, return \d+\.\d, updates {agent.updates}, \d+ frames/s", text)


def test_training_on_shows_the_whole(workshop, capsys):
    agent = workshop.agent()
    agent.train(25)
    agent.train(15)
    assert "40/40" in last_bar(capsys.readouterr().err)


def test_an_evaluation_is_shown_above_the_bar(workshop, capsys):
    agent = workshop.agent(env_kwargs={"length": 4})
    scores = agent.test(3)
    assert f"frames 0: evaluation {sum(scores) / 3:.1f} +/- " in capsys.readouterr().err


def test_nothing_is_open_after_an_exception(workshop, capsys):
    class Broken(Callback):
        def on_step(self, agent):
            if agent.agent_steps == 25:
                raise LookupError

    agent = workshop.agent([Broken()])
    with pytest.raises(LookupError):
        agent.train(40)
    assert agent.callbacks[1].bar is None and "frames 25" in last_bar(capsys.readouterr().err)
    agent.finish()
    assert agent.callbacks[0].logger is None
    agent.finish()  # a second time is no harm


def test_log_dir_diverts_the_log_and_nothing_else(workshop, tmp_path):
    agent = workshop.agent(log_dir=str(tmp_path / "logs"))
    agent.train(25)
    agent.save_model("m.pth")
    logs = tmp_path / "logs" / "DreamerV2" / "any-v0" / agent.folder.name
    assert [path.name for path in logs.iterdir()] == ["metrics.jsonl"]
    assert {path.name for path in agent.folder.iterdir()} == {"config.yaml", "m.pth"}


def test_the_clock_of_evaluations_counts_training_and_no_pause(workshop, monkeypatch):
    """By a clock that the test moves; a resumed run goes on from what its checkpoint says."""
    from xrl.agents import monitor

    now = [100.0]
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: now[0])
    agent = workshop.agent(inspect=False)
    log = agent.log
    log.on_train_begin(agent, 10)
    now[0] += 7
    agent.test(1)
    kept = log.state_dict(agent)
    log.on_train_end(agent)
    now[0] += 1000  # nobody trains
    agent.test(1)
    log.on_train_begin(agent, 20)
    now[0] += 5
    agent.test(1)
    assert [record["time/wall"] for record in log_of(agent) if "eval/return" in record] == [7, 7, 12]
    resumed = workshop.agent(inspect=False)
    resumed.log.load_state_dict(resumed, kept)
    now[0] += 1000
    resumed.log.on_train_begin(resumed, 20)
    now[0] += 2
    assert resumed.log.seconds() == 9 and "seconds" not in resumed.log.marks
