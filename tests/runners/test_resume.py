"""A resumed run is the run: weights, replay, log; what may be different about it; what is refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from tests.agents.examples import Recorder, stored_rows
from xrl.__main__ import main
from xrl.common.callback import Callback
from xrl.common.checkpoint import find_checkpoints
from xrl.common.errors import CheckpointError, ConfigError
from xrl.common.run_folder import locked
from xrl.environment import REGISTRY_ENV
from xrl.runners.resume import describe_checkpoints, run_folders
from xrl.runners.runner import CURVE, get_runner

CARTPOLE = {"method": "DreamerV2", "env": "classic_control", "env_id": "CartPole-v1"}
SMALL = {"preset": "debug", "device": "cpu", "logger": "none", "running_steps": 150, "start_training": 40,
         "checkpoint_every": 30, "buffer_size": 60}


class Lost(Exception):
    """Stands for the power cut: nothing of ours catches it."""


class Cut(Callback):
    """Ends the run at an agent step, by an error or a signal, in the middle of the step's callbacks."""

    def __init__(self, step: int, how: int | type[Exception] = Lost, at: str = "on_step") -> None:
        self.step, self.how = step, how
        setattr(self, at, self.cut)

    def cut(self, agent, *arguments) -> None:
        if agent.agent_steps >= self.step:
            self.step = 10**9
            if isinstance(self.how, int):
                signal.raise_signal(self.how)
            else:
                raise self.how


class Keep(Callback):
    """Holds the agent, to look at it afterwards."""

    def on_train_begin(self, agent, target) -> None:
        self.agent = agent


@pytest.fixture
def runner(tmp_path):
    def make(name="models", callbacks=(), **keys):
        return get_runner(callbacks=callbacks, **{**CARTPOLE, **SMALL, "model_dir": str(tmp_path / name), **keys})

    return make


def outcome(folder: Path, keep: Keep):
    """Everything that must be equal: state, replay, log without the clock."""
    checkpoint = find_checkpoints(folder)[-1]
    state = checkpoint.load()
    state.pop("replay")
    state["callbacks"]["MetricLog"].pop("marks")
    log = [{key: value for key, value in json.loads(line).items() if not key.startswith("time/")}
           for line in (folder / "metrics.jsonl").read_text().splitlines()]
    health = (folder / "health.jsonl").read_text().splitlines() if (folder / "health.jsonl").exists() else []
    return {"counters": checkpoint.counters, "state": plain(state), "replay": plain(stored_rows(keep.agent.replay)),
            "log": log, "health": health}


def plain(value):
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return np.asarray(value).tolist() if hasattr(value, "shape") else value


VARIANTS = {
    "plain": {}, "memory": {"replay.storage": "memory"}, "two environments": {"parallels": 2},
    "async, ahead, lagging": {"parallels": 2, "vectorize": "async", "batches_ahead": 1, "policy_lag": 1},
    "episodes": {"replay.sampling": "episodes"},
    "continuous": {"env_id": "Pendulum-v1", "environment.time_limit": 25},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_is_the_same_run(runner, variant):
    """Cut in the random phase, right after it, and after the replay has wrapped; then run to the end."""
    keys = VARIANTS[variant]
    whole = Keep()
    expected = outcome(runner("whole", [whole], **keys).run(), whole)
    for step in (15, 41, 137):
        name = f"cut at {step}"
        with pytest.raises(Lost):
            runner(name, [Cut(step)], **keys).run()
        keep = Keep()
        folder = runner(name, [keep], **keys).run(resume=True)
        assert outcome(folder, keep) == expected, name


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, None), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
@pytest.mark.parametrize("at", ["on_step", "on_update", "on_pretrain", "on_evaluation"])
def test_a_signal_saves_and_the_run_goes_on_where_it_stopped(runner, capsys, number, code, at):
    keys = {"checkpoint_every": 10_000, "pretrain": 5}
    whole, keep, recorder = Keep(), Keep(), Recorder()
    expected = outcome(runner("whole", [whole], **keys).run(), whole)
    with pytest.raises(KeyboardInterrupt if code is None else SystemExit) as caught:
        runner("cut", [Cut(40 if at == "on_pretrain" else 60, number, at), recorder], **keys).run()
    assert code is None or caught.value.code == code
    assert f"go on with: xrl train --resume {run_folders_of(runner('cut'))[0]}" in capsys.readouterr().err
    stopped = recorder.named("pause")[0][1:3]
    folder = run_folders_of(runner("cut"))[0]
    assert tuple(find_checkpoints(folder)[-1].counters[name] for name in ("agent_steps", "updates")) == stopped
    assert stopped[0] < 110
    runner("cut", [keep], **keys).run(resume=folder)
    assert outcome(folder, keep) == expected


class Dice(Callback):
    """Somebody who draws from the generators of nobody, and remembers."""

    def __init__(self) -> None:
        self.drawn = []

    def on_step(self, agent) -> None:
        self.drawn.append([random.random(), np.random.rand(), torch.rand(()).item()])

    def state_dict(self, agent):
        return {"drawn": self.drawn}

    def load_state_dict(self, agent, state) -> None:
        self.drawn = state["drawn"]


def test_the_global_generators_and_the_state_of_a_users_callback_go_on(runner):
    whole, dice = Dice(), Dice()
    runner("whole", [whole]).run()
    with pytest.raises(Lost):
        runner("cut", [Dice(), Cut(100)]).run()
    runner("cut", [dice]).run(resume=True)
    assert dice.drawn == whole.drawn


def run_folders_of(runner):
    return run_folders(Path(runner.config.model_dir))


def test_an_interrupted_evaluation_is_made_again(runner):
    """Its records are those of the undisturbed run, no more and no fewer."""
    class InEvaluation(Callback):
        def on_step(self, agent):
            if agent.agent_steps == 100:  # before the evaluation that is due
                signal.raise_signal(signal.SIGTERM)

    whole, keep = Keep(), Keep()
    expected = outcome(runner("whole", [whole]).run(), whole)
    with pytest.raises(SystemExit):
        runner("cut", [InEvaluation()]).run()
    folder = runner("cut", [keep]).run(resume=True)
    assert outcome(folder, keep) == expected
    assert [record["frames"] for record in expected["log"] if "eval/return" in record] == [100]


def test_what_was_seen_of_the_model_is_cut_and_written_again(runner):
    """Four evaluations are done when the run dies, three of them before its last checkpoint."""
    keys = {"eval_interval": 25, "checkpoint_every": 45}
    whole, keep = Keep(), Keep()
    expected = outcome(runner("whole", [whole], **keys).run(), whole)
    with pytest.raises(Lost):
        runner("cut", [Cut(110)], **keys).run()
    (folder,) = run_folders_of(runner("cut"))
    assert find_checkpoints(folder)[-1].counters["agent_steps"] == 90
    assert len((folder / "health.jsonl").read_text().splitlines()) == 4
    assert runner("cut", [keep], **keys).run(resume=True) == folder
    assert outcome(folder, keep) == expected
    assert [json.loads(line)["agent_steps"] for line in expected["health"]] == [25, 50, 75, 100, 125, 150]
    assert expected["state"]["callbacks"]["HealthLog"]["first"]["model/vector_loss"]


@pytest.mark.parametrize("key", ["inspect", "render"])
def test_a_run_may_go_on_with_or_without_pictures(runner, key):
    """They change nothing that is learned."""
    whole, keep = Keep(), Keep()
    expected = outcome(runner("whole", [whole], running_steps=200).run(), whole)
    folder = runner("short").run()
    assert runner("short", [keep], running_steps=200, **{key: key == "render"}).run(resume=True) == folder
    found = outcome(folder, keep)
    assert found["state"]["agent"] == expected["state"]["agent"] and found["replay"] == expected["replay"]
    assert len(found["health"]) == (2 if key == "render" else 1)
    assert bool(list((folder / "videos").glob("evaluation_*.mp4"))) == (key == "render")


def test_a_run_without_a_checkpoint_begins_again_in_its_folder(runner):
    whole, keep = Keep(), Keep()
    expected = outcome(runner("whole", [whole]).run(), whole)
    with pytest.raises(Lost):
        runner("cut", [Cut(0, at="on_start")]).run()
    (folder,) = run_folders_of(runner("cut"))
    assert not find_checkpoints(folder)
    (folder / "metrics.jsonl").write_text('{"left": "over"}\n')
    assert runner("cut", [keep]).run(resume=True) == folder
    assert outcome(folder, keep) == expected


@pytest.mark.parametrize("storage", ["disk", "memory"])
def test_killed_while_the_first_checkpoint_was_written(runner, monkeypatch, storage):
    """The rows that it counts on are there, it is not."""
    whole, keep = Keep(), Keep()
    expected = outcome(runner("whole", [whole], **{"replay.storage": storage}).run(), whole)

    def power_cut(*arguments):
        raise Lost

    with monkeypatch.context() as patch, pytest.raises(Lost):
        patch.setattr("xrl.common.checkpoint.Checkpoints._write", power_cut)
        runner("cut", **{"replay.storage": storage}).run()
    folder = runner("cut", [keep], **{"replay.storage": storage}).run(resume=True)
    assert outcome(folder, keep) == expected


def test_a_finished_run_can_be_made_longer(runner):
    whole, keep = Keep(), Keep()
    expected = outcome(runner("whole", [whole], running_steps=200).run(), whole)
    folder = runner("short").run()
    assert runner("short", [keep], running_steps=200).run(resume=True) == folder
    assert outcome(folder, keep) == expected
    assert "running_steps: 200" in (folder / "config.yaml").read_text()


def test_a_benchmark_goes_on_as_one(runner):
    whole = runner("whole").benchmark()
    for step in (20, 120):
        with pytest.raises(Lost):
            runner(f"cut{step}", [Cut(step)]).benchmark()
        folder = runner(f"cut{step}").run(resume=True)  # it remembers what it is
        assert (folder / CURVE).read_text() == (whole / CURVE).read_text()


def test_other_words_would_make_it_another_run(runner):
    folder = runner().run()
    with pytest.raises(ConfigError, match=rf"{folder}: gamma is 0.995 in this run, not 0.5; .*running_steps"):
        runner(gamma=0.5).run(resume=True)
    with pytest.raises(ConfigError, match="resume: test trains nothing"):
        runner().run("test", resume=True)
    with pytest.raises(CheckpointError, match="no run to go on with here"):
        runner("nowhere").run(resume=True)


def test_the_newest_run_that_agrees_is_meant(runner):
    first, second = runner(seed=3).run(), runner(seed=4).run()
    assert runner(seed=3).run(resume=True) == first
    assert runner(seed=4, running_steps=160).run(resume=True) == second
    shutil.rmtree(second)
    with pytest.raises(ConfigError, match="seed is 3 in this run, not 4"):
        runner(seed=4).run(resume=True)


def test_one_process_trains_a_run(runner, monkeypatch):
    monkeypatch.setattr("xrl.common.run_folder.PATIENCE", 0.1)
    folder = runner().run()
    with locked(folder), pytest.raises(ConfigError, match="another process"):
        runner(running_steps=160).run(resume=folder)


def test_the_logs_are_cut_where_the_checkpoint_was_written(runner):
    """TensorBoard's as well; a reader sees every record once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def events(folder):
        seen = EventAccumulator(str(folder)).Reload()
        return {tag: [(event.step, event.value) for event in seen.Scalars(tag)] for tag in seen.Tags()["scalars"]
                if not tag.startswith("time/")}

    whole = runner("whole", logger="tensorboard").run()
    with pytest.raises(Lost):
        runner("cut", [Cut(137)], logger="tensorboard").run()
    folder = runner("cut", logger="tensorboard").run(resume=True)
    assert events(folder) == events(whole) and len(events(whole)["eval/return"]) == 1


class Forgetful(gymnasium.Env):
    """Cannot save itself."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = spaces.Box(-9, 9, (2,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self.np_random.normal(size=2).clip(-9, 9).astype(np.float32), {}

    def step(self, action):
        self.count += 1
        return np.full(2, self.count % 9, np.float32), 1.0, self.count == 33, False, {}


def test_an_environment_that_cannot_save_goes_on_with_fresh_episodes_and_says_so(runner, capsys, monkeypatch):
    monkeypatch.setitem(REGISTRY_ENV, "forgetful", Forgetful)
    keys = {"env": "forgetful", "env_id": "any", "buffer_size": 1000, "parallels": 2}
    with pytest.raises(Lost):
        runner("at once", [Cut(1)], **keys).run()
    assert "not exact" in capsys.readouterr().err, "before much time is spent"
    with pytest.raises(Lost):
        runner("cut", [Cut(100)], **keys).run()
    told = capsys.readouterr().err
    assert told.count("not exact") == 1 and "Forgetful implements no get_state" in told
    folder, = run_folders_of(runner("cut"))
    assert "not exact: " in describe_checkpoints(folder)
    steps = find_checkpoints(folder)[-1].counters["agent_steps"]
    keep = Keep()
    runner("cut", [keep], **keys).run(resume=True)
    assert "not exact" in capsys.readouterr().err
    rows = stored_rows(keep.agent.replay)
    per_env = steps // 2 + (rows["is_first"][:, 0].cumsum() <= 0).sum()
    cuts = np.flatnonzero(rows["is_first"][1:, 0] & ~rows["is_last"][:-1, 0]) + 1
    assert len(cuts) == 2, "the end of the random phase, and the resume"
    assert per_env <= len(rows["is_first"])
    assert not np.array_equal(rows["obs.vector"][0], rows["obs.vector"][cuts[1]]), "another episode than at the start"


def test_a_checkpoint_of_every_minute_follows_the_clock(runner, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("xrl.agents.checkpointing.time.monotonic", lambda: now[0])

    class Tick(Callback):
        def on_step(self, agent):
            now[0] = float(agent.agent_steps)  # seconds

    folder = runner(callbacks=[Tick()], checkpoint_every="0.5 min", keep_checkpoints=9).run()
    assert [one.counters["agent_steps"] for one in find_checkpoints(folder)] == [0, 30, 60, 90, 120, 150]


def test_no_checkpoints_on_request(runner):
    folder = runner(checkpoint_every=0).run()
    assert not (folder / "checkpoints").exists()
    kept = sum(int(path.name.split("_")[2].split(".")[0]) - int(path.name.split("_")[1])
               for path in (folder / "replay").glob("rows_*"))
    assert kept <= 60 + 200, "forgotten rows are not kept for anybody"


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(runner, capsys, monkeypatch):
    from xrl.common import checkpoint as module
    real, failing = module.write_arrays, [False]

    def full(*arguments):
        if failing[0]:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    class Fill(Callback):
        def on_step(self, agent):
            failing[0] = 60 <= agent.agent_steps < 125

    monkeypatch.setattr(module, "write_arrays", full)
    folder = runner(callbacks=[Fill()], keep_checkpoints=9).run()
    assert [one.counters["agent_steps"] for one in find_checkpoints(folder)] == [0, 30, 150]
    told = capsys.readouterr().err
    assert told.count("CHECKPOINT FAILED") == 3 and "No space left" in told


# What a review found ----------------------------------------------------------------------------------------------


def test_a_crash_folder_is_no_run(runner):
    folder = runner().run()
    crash = folder / "crash_8"
    crash.mkdir()
    shutil.copy(folder / "config.yaml", crash)
    half_made = folder.parent / ".seed_1_later.x"
    shutil.copytree(crash, half_made)
    assert run_folders_of(runner()) == [folder] == run_folders(folder)
    assert runner(running_steps=160).run(resume=True) == folder


def test_runs_of_a_benchmark_are_shown_but_go_on_with_it_alone(runner):
    models, own = Path(runner().config.model_dir), runner().run()
    seed = models / "benchmarks/DreamerV2/CartPole-v1/seed_7/DreamerV2/CartPole-v1" / own.name
    shutil.copytree(own, seed)
    os.utime(seed / "checkpoints", (4e9, 4e9))
    assert run_folders(models) == [seed, own]  # the newest one first
    assert f"{seed}\n" in describe_checkpoints(models / "benchmarks/DreamerV2/CartPole-v1")
    assert runner(running_steps=160).run(resume=True) == own
    shutil.rmtree(own)
    with pytest.raises(CheckpointError, match=r"no run to go on with here .*; those of a benchmark go on with it"):
        runner().run(resume=True)


def test_a_run_that_a_link_leads_to_is_found_once(runner, tmp_path):
    folder = runner().run()
    models = folder.parents[2]
    elsewhere = tmp_path / "elsewhere/DreamerV2/CartPole-v1"
    elsewhere.mkdir(parents=True)
    (elsewhere / "linked").symlink_to(folder)
    (elsewhere / "twice").symlink_to(folder)
    (elsewhere / "round").symlink_to(tmp_path / "elsewhere")
    assert run_folders(tmp_path / "elsewhere") == [elsewhere / "linked"]
    (folder.parent / "damaged").mkdir()
    (folder.parent / "damaged/config.yaml").symlink_to("nowhere")
    assert run_folders(models) == [folder, folder.parent / "damaged"]


def test_a_run_that_never_had_checkpoints_is_not_begun_again_over_its_models(runner):
    folder = runner(checkpoint_every=0).run()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for keys in ({"checkpoint_every": 0}, {}):
        with pytest.raises(CheckpointError, match="has no checkpoint to go on from"):
            runner(**keys).run(resume=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("storage", ["disk", "memory"])
def test_checkpoints_stay_whole_when_a_run_goes_on_without_writing_any(runner, storage):
    folder = runner(**{"replay.storage": storage}).run()
    runner(**{"running_steps": 400, "checkpoint_every": 0, "replay.storage": storage}).run(resume=True)
    for checkpoint in find_checkpoints(folder):
        checkpoint.verify()
    runner(**{"running_steps": 300, "replay.storage": storage}).run(resume=True)
    assert find_checkpoints(folder)[-1].counters["agent_steps"] == 300


def test_a_replay_that_lies_on_the_disk_needs_no_second_place(runner, monkeypatch):
    folder = runner().run()
    stored = sum(path.stat().st_size for path in (folder / "replay").iterdir())
    usage = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr("xrl.memory.memory_check.shutil.disk_usage", lambda place: usage)
    assert stored > 60 * 31, "more than it will ever need"
    assert runner(running_steps=160).run(resume=True) == folder


def test_links_of_wandb_are_nobodys_business(runner):
    folder = runner().run()
    (folder / "wandb").mkdir()
    (folder / "wandb" / "latest-run").symlink_to("/")
    assert runner(running_steps=160).run(resume=True) == folder


def test_logs_of_a_logger_that_is_off_are_kept(runner):
    folder = runner(logger="tensorboard").run()
    for steps in (160, 170):
        runner(logger="none", running_steps=steps).run(resume=True)
        assert len(list(folder.glob("events.*"))) == 1


def test_a_log_in_another_place_is_cut_only_where_it_was_written(runner, tmp_path):
    def lines(place, folder):
        log = tmp_path / place / "DreamerV2/CartPole-v1" / folder.name / "metrics.jsonl"
        return len(log.read_text().splitlines())

    folder = runner(log_dir=str(tmp_path / "a")).run()
    first = lines("a", folder)
    runner(log_dir=str(tmp_path / "b"), running_steps=160).run(resume=True)
    runner(log_dir=str(tmp_path / "a"), running_steps=250).run(resume=True)
    assert lines("a", folder) > first and lines("b", folder) > 0


def test_a_refused_resume_leaves_the_log(runner, monkeypatch):
    folder = runner().run()
    with (folder / "metrics.jsonl").open("a") as log:
        log.write('{"later": 1}\n')
    monkeypatch.setattr("xrl.memory.sequence_replay.SequenceReplay.load", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runner(running_steps=160).run(resume=True)
    assert "later" in (folder / "metrics.jsonl").read_text()


def evaluations(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["agent_steps"] for record in records if "eval/return" in record]


def test_another_grid_of_evaluations_begins_ahead(runner):
    for first, second, expected in ((0, 50, [150, 200]), (100, 50, [100, 150, 200]), (50, 0, [50, 100])):
        name = f"{first} {second}"
        with pytest.raises(Lost):
            runner(name, [Cut(130)], eval_interval=first).run()
        folder = runner(name, eval_interval=second, running_steps=200).run(resume=True)
        assert evaluations(folder) == expected, name


def test_a_grid_finer_than_a_step_of_all_environments_is_not_asked_twice(runner):
    keys = {"parallels": 4, "eval_interval": 3, "running_steps": 60, "test_episode": 1}
    whole = runner("whole", **keys).run()
    with pytest.raises(Lost):
        runner("cut", [Cut(47)], **keys).run()
    assert evaluations(runner("cut", **keys).run(resume=True)) == evaluations(whole)


def test_a_signal_while_the_last_checkpoint_is_written_is_not_lost(runner):
    class Late(Callback):
        def on_pause(self, agent):
            if not self.said:
                self.said = True
                signal.raise_signal(signal.SIGTERM)

        said = False

    with pytest.raises(SystemExit) as caught:
        runner(callbacks=[Late()]).run()
    assert caught.value.code == 143


def test_a_run_killed_in_its_first_evaluation_is_still_a_benchmark(runner):
    whole = runner("whole").benchmark()
    with pytest.raises(Lost):
        runner("cut", [Cut(0, at="on_evaluation")]).benchmark()
    assert (runner("cut").run(resume=True) / CURVE).read_text() == (whole / CURVE).read_text()
    with pytest.raises(ConfigError, match="not started as a benchmark"):
        runner("train").run()
        runner("train", running_steps=160).benchmark(resume=True)


def test_a_bad_update_noticed_at_a_signal_keeps_the_exit_code_and_the_crash_folder(runner, capsys):
    class Poison(Callback):
        def on_step(self, agent):
            if agent.agent_steps == 60:
                agent.settle()
                with torch.no_grad():
                    next(agent.learner.critic.parameters()).fill_(float("nan"))
                agent.learn()
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        runner(callbacks=[Poison()], policy_lag=1, checkpoint_every=10_000).run()
    (folder,) = run_folders_of(runner())
    assert caught.value.code == 143 and list(folder.glob("crash_*"))
    assert "replay-crash" in capsys.readouterr().err


def test_a_resume_writes_nothing_until_there_is_something_new(runner, capsys):
    folder = runner().run()
    checkpoint = find_checkpoints(folder)[-1].path
    before = (checkpoint / "manifest.json").stat().st_mtime_ns, (folder / "config.yaml").read_text()
    log = (folder / "metrics.jsonl").read_text()
    runner(running_steps=100).run(resume=True)
    assert (folder / "metrics.jsonl").read_text() == log
    assert "nothing to do: 150 agent steps are made, and running_steps is 100" in capsys.readouterr().out
    with pytest.raises(Lost):
        runner(running_steps=200, callbacks=[Cut(151)]).run(resume=True)
    assert before[0] == (checkpoint / "manifest.json").stat().st_mtime_ns
    assert before[1].replace("running_steps: 150", "running_steps: 200") == (folder / "config.yaml").read_text()
    assert not list((folder / "checkpoints").glob("aside_*"))


def test_a_run_killed_between_its_last_checkpoint_and_its_last_model_is_finished(runner):
    """Made longer before, so that it has a last model already: an old one."""
    whole = runner("whole").run()
    runner("whole", running_steps=200).run(resume=True)
    folder = runner("cut").run()
    with pytest.raises(Lost):
        runner("cut", [Cut(200, at="on_train_end")], running_steps=200).run(resume=True)
    old = (folder / "final_train_model.pth").read_bytes()
    runner("cut", running_steps=200).run(resume=True)
    assert old != (folder / "final_train_model.pth").read_bytes()

    def log(run):
        return [{key: value for key, value in json.loads(line).items() if not key.startswith("time/")}
                for line in (run / "metrics.jsonl").read_text().splitlines()]

    assert log(folder) == log(whole)


def test_a_run_that_was_once_not_exact_stays_so(runner, monkeypatch, capsys):
    monkeypatch.setitem(REGISTRY_ENV, "forgetful", Forgetful)
    keys = {"env": "forgetful", "env_id": "any", "buffer_size": 1000}
    with pytest.raises(Lost):
        runner(callbacks=[Cut(100)], **keys).run()
    monkeypatch.setattr(Forgetful, "get_state", lambda self: {"count": self.count}, raising=False)
    monkeypatch.setattr(Forgetful, "set_state", lambda self, state: vars(self).update(state), raising=False)
    capsys.readouterr()
    folder = runner(**keys).run(resume=True)
    assert capsys.readouterr().err.count("not exact") == 1
    facts = find_checkpoints(folder)[-1].manifest["facts"]
    assert not facts["exact"] and "resumed with fresh episodes at agent step 9" in facts["not_exact_because"]


def test_places_that_hold_no_run_say_what_is_wrong(runner, tmp_path):
    folder = runner().run()
    for place, message in ((folder / "checkpoints", f"{folder} is one"), (tmp_path / "misspelt", "no such file"),
                           (folder / "metrics.jsonl", f"{folder} is one")):
        with pytest.raises(CheckpointError, match=message):
            runner().run(resume=place)


def test_a_run_from_source_that_was_never_installed_has_checkpoints(runner, monkeypatch):
    from importlib.metadata import PackageNotFoundError

    def not_installed(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("xrl.common.provenance.version", not_installed)
    folder = runner().run()
    assert find_checkpoints(folder)[-1].manifest["facts"]["xrl"] == "not installed"


# The command line --------------------------------------------------------------------------------------------------

WORDS = ["--method", "dreamerv2", "--env", "classic_control", "--env-id", "CartPole-v1",
         *(f"{key}={value}" for key, value in SMALL.items())]


def test_the_command_line_resumes_the_newest_run_of_this_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *WORDS]) == 0
    assert main(["train", "--resume"]) == 0
    assert main(["train", "--resume", "running_steps=170"]) == 0
    (folder,) = run_folders(Path("models"))
    assert find_checkpoints(folder)[-1].counters["agent_steps"] == 170
    assert main(["train", "--resume", str(folder), "running_steps=180"]) == 0
    assert main(["train", *WORDS[:6], "--resume", "running_steps=190"]) == 0
    assert find_checkpoints(folder)[-1].counters["agent_steps"] == 190
    capsys.readouterr()
    assert main(["checkpoints", "models"]) == 0
    told = capsys.readouterr().out
    assert str(folder) in told and "190" in told and told.count("exact") == 2
    for words, message in ((["train", "--resume", "seed=9"], "seed is 1 in this run, not 9"),
                           (["train", "--resume", "elsewhere"], "no such file or folder, so no run to go on with"),
                           (["train", "--resume", "running_step=9"], "xrl: error: command line: running_step: unknown"),
                           (["test", "--resume"], "test has no use for it; it belongs to train and benchmark"),
                           (["train", "--resume", "--config", "a.yaml"], "has a configuration of its own"),
                           (["checkpoints"], "needs one PATH"), (["checkpoints", "nowhere"], "no run here")):
        assert main(words) == 2
        assert message in capsys.readouterr().err, words
    state = find_checkpoints(folder)[-1].path / "state.json"
    os.truncate(state, 10)
    assert main(["checkpoints", str(folder)]) == 0
    assert "no: " in capsys.readouterr().out
    assert main(["train", "--resume", "running_steps=200"]) == 0
    assert "checkpoint skipped" in capsys.readouterr().err
