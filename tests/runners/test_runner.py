"""Whole experiments through the public API: folders and files, benchmark, test mode, every way out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import xrl
from tests.agents.examples import Recorder, records, same, weights
from xrl.common.callback import Callback
from xrl.common.config import load_config
from xrl.common.errors import ConfigError, EnvironmentFault, ModelFileError
from xrl.common.files import load_tensors, read_metadata, save_tensors, write_atomic
from xrl.common.seeding import EVALUATION_SEED, TEST_SEED
from xrl.runners.runner import CURVE, EvaluationGrid, Runner, get_runner

KEPT = {"checkpoints", "replay", ".lock", "run.json"}
SHOWN = {"health.jsonl", "videos"}  # after an evaluation
CARTPOLE = {"method": "DreamerV2", "env": "classic_control", "env_id": "CartPole-v1"}


@pytest.fixture
def runner(tmp_path, watched):
    """Makes runners of small runs in tmp_path/models."""
    def make(is_test=False, callbacks=(), env="watched", env_id="any-v0", **keys) -> Runner:
        keys = {"preset": "debug", "device": "cpu", "logger": "none", "running_steps": 60, "start_training": 20,
                "eval_interval": 20, "model_dir": str(tmp_path / "models")} | keys
        return get_runner("dreamerv2", env, env_id, is_test=is_test, callbacks=callbacks, **keys)

    return make


def tensors_of(path: Path):
    return load_tensors(path)[0]


# Training ----------------------------------------------------------------------------------------------------------


def test_run_as_the_readme_shows_it(tmp_path, monkeypatch, watched):
    monkeypatch.chdir(tmp_path)
    runner = xrl.get_runner(**CARTPOLE, is_test=False, preset="debug", device="cpu")
    folder = runner.run()
    assert folder.parent == Path("models/DreamerV2/CartPole-v1")
    assert folder.name.startswith("seed_1_") and list(tmp_path.iterdir()) == [tmp_path / "models"]
    names = {path.name for path in folder.iterdir()}
    (events,) = [name for name in names if name.startswith("events.out.tfevents")]
    assert names == {"config.yaml", "metrics.jsonl", "best_model.pth", "final_train_model.pth", events, *KEPT, *SHOWN}
    assert load_config(config_path=folder / "config.yaml").config == runner.config
    assert read_metadata(folder / "final_train_model.pth")["counters"]["agent_steps"] == 200
    scores = xrl.get_runner(**CARTPOLE, is_test=True, device="cpu").run()
    assert len(scores) == 2 and list(folder.parent.iterdir()) == [folder]  # testing leaves no folder behind


def test_the_best_evaluated_model_is_kept_and_an_equal_one_replaces_it(runner):
    class Scripted(Callback):
        """Evaluations with these means, whatever is played."""
        means = iter([3.0, 7.0, 5.0, 7.0, 6.0])

        def on_step(self, agent):
            agent.evaluate = lambda *arguments: xrl.common.callback.Evaluation((next(self.means),), (1,))

    folder = runner(callbacks=[Scripted()], running_steps=100).run()
    best = read_metadata(folder / "best_model.pth")
    assert best["counters"]["agent_steps"] == 80
    assert read_metadata(folder / "final_train_model.pth")["counters"]["agent_steps"] == 100


def test_a_run_says_how_and_where_it_was_begun(runner, monkeypatch):
    """Once: a run that goes on keeps what it was begun with."""
    monkeypatch.setattr(sys, "argv", ["xrl", "train", "seed=3"])
    folder = runner().run()
    facts = json.loads((folder / "run.json").read_text())
    assert facts["command"] == ["xrl", "train", "seed=3"] and facts["device"] == "cpu"
    assert facts["threads"] == torch.get_num_threads() and facts["versions"]["torch"] == version("torch")
    made = time.mktime(time.strptime(facts["created"][:19], "%Y-%m-%dT%H:%M:%S"))
    assert abs(made - (folder / "run.json").stat().st_mtime) < 60
    before = (folder / "run.json").read_bytes()
    monkeypatch.setattr(sys, "argv", ["xrl", "train", "--resume"])
    assert runner(running_steps=80).run(resume=True) == folder
    assert (folder / "run.json").read_bytes() == before


def test_without_evaluations_there_is_only_the_final_model(runner):
    folder = runner(eval_interval=0).run()
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "metrics.jsonl", "final_train_model.pth", *KEPT}
    assert not any("eval/return" in record for record in records(folder / "metrics.jsonl"))


def test_evaluations_come_on_their_grid(runner):
    """However many environments step at once: at the first moment past each multiple."""
    recorder = Recorder()
    folder = runner(callbacks=[recorder], parallels=3, test_episode=4, running_steps=120,
                    env_kwargs={"length": 4, "spread": 3}).run()
    steps = [event[1] for event in recorder.named("step")]
    done = [event[1] for event in recorder.named("evaluation")]
    assert done == [next(step for step in steps if step >= multiple) for multiple in range(20, 121, 20)]
    assert all(len(event[3].scores) == 4 for event in recorder.named("evaluation"))
    assert sum("eval/return" in record for record in records(folder / "metrics.jsonl")) == 6


def test_runs_of_one_runner_are_alike_and_have_folders_of_their_own(runner):
    experiments = runner()
    folders = [experiments.run(), experiments.run(), experiments.benchmark()]
    assert len(set(folders)) == 3
    first, second, third = (tensors_of(folder / "final_train_model.pth") for folder in folders)
    assert same(first, second)
    assert same(first, third)  # a fresh run, which its evaluation at step 0 has not changed
    assert not (folders[1] / "curve.json").exists()


def test_benchmark_writes_the_curve(runner, watched):
    recorder = Recorder()
    folder = runner(callbacks=[recorder], seed=5, **{"environment.action_repeat": 2}).benchmark()
    means = [event[3].mean for event in recorder.named("evaluation")]
    assert [event[1] for event in recorder.named("evaluation")] == [0, 20, 40, 60]
    assert json.loads((folder / "curve.json").read_text()) == [
        {"task": "any-v0", "method": "DreamerV2", "seed": "5", "xs": [0, 40, 80, 120], "ys": means}]
    assert {"best_model.pth", "final_train_model.pth"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(("env", "env_id", "task"), [
    ("atari", "ALE/MsPacman-v5", "atari_ms_pacman"), ("toy", "Catch-v0", "Catch-v0")])
def test_the_curve_has_the_published_name_of_its_task(tmp_path, env, env_id, task):
    grid = EvaluationGrid(10, benchmark=True)
    grid.frames, grid.means = [0, 40], [-21.0, 3.5]
    config = SimpleNamespace(env_name=env, env_id=env_id, method="DreamerV2", seed=7)
    grid.write_curve(SimpleNamespace(config=config, folder=tmp_path))
    assert json.loads((tmp_path / "curve.json").read_text()) == [
        {"task": task, "method": "DreamerV2", "seed": "7", "xs": [0, 40], "ys": [-21.0, 3.5]}]


def test_a_benchmark_of_several_seeds_is_handed_on(runner, monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr("xrl.runners.benchmark.run_benchmark",
                        lambda *arguments, **keywords: called.append((arguments, keywords)) or str(tmp_path))
    experiments = runner()
    assert experiments.benchmark(seeds=3, jobs=2) == tmp_path and experiments.benchmark(seeds=[5, 7]) == tmp_path
    experiments.benchmark(seeds=1, reference="r.json", baselines="b.json")
    assert [arguments for arguments, _ in called] == [(experiments.resolved, seeds) for seeds in (3, [5, 7], 1)]
    assert [keywords["jobs"] for _, keywords in called] == [2, None, None]
    assert called[0][1]["reference"] is called[0][1]["baselines"] is None
    assert (called[2][1]["reference"], called[2][1]["baselines"]) == (Path("r.json"), Path("b.json"))
    with pytest.raises(ConfigError, match="callbacks: each seed is a process of its own"):
        runner(callbacks=[Recorder()]).benchmark(seeds=2)
    with pytest.raises(ConfigError, match="resume: a benchmark of several seeds goes on by itself"):
        experiments.benchmark(resume=True, seeds=3)
    assert len(called) == 3


def test_a_run_goes_on_without_its_facts(runner, monkeypatch, capsys):
    def full(path, data, **keywords):
        if path.name == "run.json":
            raise OSError(28, "No space left on device")
        write_atomic(path, data, **keywords)

    monkeypatch.setattr("xrl.runners.runner.write_atomic", full)
    folder = runner().run()
    assert (folder / "final_train_model.pth").exists() and not (folder / "run.json").exists()
    assert "run.json could NOT be written: [Errno 28]" in capsys.readouterr().err


def test_benchmark_without_evaluations_is_refused_before_anything_opens(runner, watched):
    with pytest.raises(ConfigError, match="eval_interval: 0 leaves nothing to benchmark; give"):
        runner(eval_interval=0).benchmark()
    assert watched.made == []


def test_run_takes_a_mode(runner):
    assert (runner().run(mode="benchmark") / "curve.json").is_file()
    assert len(runner().run(mode="test")) == 2
    assert not (runner(is_test=True).run(mode="train") / "curve.json").exists()
    with pytest.raises(ConfigError, match="mode: 'tset' is unknown; use one of train, test, benchmark, profile"):
        runner().run(mode="tset")


def test_evaluation_training_and_test_play_on_seeds_of_their_own(runner, watched):
    runner(env_seed=10, parallels=2, test_episode=3).run()
    runner(env_seed=10, parallels=2, is_test=True, test_episode=3).run()
    seeds = {made.seeds[0] for made in watched.made if made.steps}
    assert seeds == {10, 11, *(10 + EVALUATION_SEED + i for i in range(3)), *(10 + TEST_SEED + i for i in range(3))}


# Test mode ---------------------------------------------------------------------------------------------------------


def test_the_newest_model_is_played_and_its_scores_are_printed(runner, capsys):
    runner(seed=1, running_steps=25).run()
    folder = runner(seed=2, running_steps=25).run()
    capsys.readouterr()
    scores = runner(is_test=True, test_episode=4).run()
    out = capsys.readouterr().out
    assert str(folder / "best_model.pth") in out and f"4 episodes, mean {sum(scores) / 4:.1f}" in out
    assert "scores: " + " ".join(f"{score:g}" for score in scores) in out
    assert len(scores) == 4 and runner(is_test=True, test_episode=4).run() == scores


def test_a_model_that_is_not_there(runner, tmp_path, watched):
    with pytest.raises(ModelFileError, match=f"^{tmp_path}/models/DreamerV2/any-v0: no saved model here; train one"):
        runner(is_test=True).run()
    assert all(made.closed for made in watched.made)


@pytest.mark.parametrize("command", [{}, {"is_test": True}])
def test_a_misspelt_environment_is_named_before_anything_else(tmp_path, command):
    with pytest.raises(ConfigError, match=r"env_name: 'classic_controll' is unknown. Did you mean 'classic_control'"):
        get_runner("DreamerV2", "classic_controll", "CartPole-v1", model_dir=str(tmp_path), **command)
    with pytest.raises(ConfigError, match=r"env_id: 'CartPol-v1' is unknown in classic_control. Did you mean"):
        get_runner("DreamerV2", "classic_control", "CartPol-v1", model_dir=str(tmp_path), **command).run()
    assert not list(tmp_path.iterdir())


def test_a_replay_too_large_is_refused_before_the_first_evaluation(runner, tmp_path):
    with pytest.raises(ConfigError, match="buffer_size"):
        runner(buffer_size=10**13).benchmark()
    assert not list(tmp_path.rglob("*.pth"))


def test_the_curve_of_an_interrupted_benchmark_is_kept(runner, tmp_path, watched):
    def stop(env, result):
        signal.raise_signal(signal.SIGINT)
        return result

    watched.trouble, watched.trouble_at = stop, 70
    with pytest.raises(KeyboardInterrupt):
        runner(eval_interval=30, running_steps=200).benchmark()
    (curve,) = json.loads(next(tmp_path.rglob(CURVE)).read_text())
    assert curve["xs"][0] == 0 and len(curve["xs"]) == len(curve["ys"]) >= 2


def test_a_model_whose_config_does_not_fit_is_named(runner, tmp_path):
    runner().run()
    path = next(tmp_path.rglob("best_model.pth"))
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors, {**metadata, "config": {**metadata["config"], "units": 3}})
    with pytest.raises(ModelFileError, match=f"^{path}: its configuration does not fit.*units: unknown key"):
        runner(is_test=True).run()
    save_tensors(path, tensors, {**metadata, "method": "Other"})
    with pytest.raises(ModelFileError, match=f"^{path}: a model of Other, not of DreamerV2"):
        runner(is_test=True).run()


def test_networks_come_from_the_model_and_the_rest_from_the_user(runner, tmp_path, watched):
    """Trained at debug size; tested by someone who says nothing about it, but how many episodes, and means it."""
    runner(test_episode=2).run()
    shipped = load_config("DreamerV2", "watched", "any-v0").config.test_episode
    model_dir = str(tmp_path / "models")
    plain = get_runner("DreamerV2", "watched", "any-v0", is_test=True, model_dir=model_dir)
    assert len(plain.run()) == 2  # as in the training
    # The very value that would be the default without the training's: it was said, so it counts.
    said = get_runner("DreamerV2", "watched", "any-v0", is_test=True, model_dir=model_dir, test_episode=shipped)
    assert shipped != 2 and len(said.run()) == shipped
    watched.made.clear()
    longer = get_runner("DreamerV2", "watched", "any-v0", is_test=True, model_dir=model_dir, env_kwargs={"length": 9})
    assert all(score >= 45 for score in longer.run())


def test_the_preset_in_test_mode_does_not_reshape_the_networks(runner, tmp_path):
    runner(**{"world_model.rssm.deter": 12}).run()
    assert len(runner(is_test=True).run()) == 2


def test_the_users_file_counts_in_test_mode(runner, tmp_path):
    runner().run()
    path = tmp_path / "my.yaml"
    path.write_text("test_episode: 3\n")
    tester = get_runner("DreamerV2", "watched", "any-v0", path, is_test=True, model_dir=str(tmp_path / "models"))
    assert len(tester.run()) == 3


@pytest.mark.parametrize(("env", "env_id", "episodes"), [("classic_control", "CartPole-v1", 1), ("toy", "Catch-v0", 2)])
def test_a_window_at_its_pace(runner, monkeypatch, env, env_id, episodes):
    """Human rendering shows the one environment, fps agent steps a second."""
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    runner(env=env, env_id=env_id, running_steps=25, eval_interval=0).run()
    drawn, slept = [], []
    flip, update = pygame.display.flip, pygame.display.update
    monkeypatch.setattr(pygame.display, "flip", lambda: (drawn.append(1), flip()))
    monkeypatch.setattr(pygame.display, "update", lambda *arguments: (drawn.append(1), update(*arguments)))
    monkeypatch.setattr("xrl.environment.wrappers.time.sleep", slept.append)
    scores = runner(env=env, env_id=env_id, is_test=True, render_mode="human", fps=1000, test_episode=episodes).run()
    assert len(scores) == episodes and len(drawn) >= 9
    assert slept and max(slept) <= 1 / 1000


# Every way out -----------------------------------------------------------------------------------------------------


def assert_all_closed(watched) -> None:
    assert watched.made and [made.closed for made in watched.made] == [1] * len(watched.made)


@pytest.mark.parametrize("mode", ["train", "benchmark", "test"])
def test_environments_are_closed_in_the_end(runner, watched, mode):
    runner().run()
    watched.made.clear()
    runner().run(mode=mode)
    assert_all_closed(watched)


@pytest.mark.parametrize("when", ["training", "evaluation"])
def test_environments_are_closed_when_a_step_raises(runner, watched, when):
    """The message names the environment; no model is left half-written."""
    def broken(env, result):
        if (env is watched.made[0]) == (when == "training") and env.steps >= 3:
            raise LookupError("lost")
        return result

    watched.trouble = broken
    recorder = Recorder()
    with pytest.raises(EnvironmentFault, match=r"(?s)max_env_failures: 0.*environment .*raised LookupError: lost"):
        runner(callbacks=[recorder], max_env_failures=0).run()
    assert_all_closed(watched)
    assert [event[0] for event in recorder.events[-2:]] == ["train_end", "finish"]


@pytest.mark.parametrize("event", ["on_train_begin", "on_step", "on_episode_end", "on_update", "on_evaluation",
                                   "on_train_end", "on_finish"])
def test_environments_are_closed_when_a_callback_raises(runner, watched, event):
    def raise_it(*arguments):
        raise LookupError("mine")

    broken = type("Broken", (Callback,), {event: raise_it})()
    with pytest.raises(LookupError, match="mine"):
        runner(callbacks=[broken]).run()
    assert_all_closed(watched)


def test_environments_are_closed_when_the_agent_cannot_be_made(runner, watched):
    with pytest.raises(ConfigError, match="device"):
        runner(device="cuda:99").run()
    assert_all_closed(watched)


@pytest.mark.parametrize("step", [0, 45])
def test_ctrl_c_saves_and_closes(runner, watched, tmp_path, step):
    """Also in the evaluation at step 0."""
    def interrupt(env, result):
        if sum(made.steps for made in watched.made[:1]) == step and env.steps == (step or 2):
            signal.raise_signal(signal.SIGINT)
        return result

    watched.trouble = interrupt
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt):
        runner(callbacks=[recorder], test_episode=1).benchmark()
    assert_all_closed(watched)
    (folder,) = (tmp_path / "models/DreamerV2/any-v0").iterdir()
    assert read_metadata(folder / "interrupted_model.pth")["counters"]["agent_steps"] == step
    assert recorder.events[-1][0] == "finish" and not (folder / "final_train_model.pth").exists()
    watched.trouble = None
    assert len(runner(is_test=True, test_episode=1).run()) == 1


SLOW_ENVIRONMENT = '''
import os
from pathlib import Path

import gymnasium
import numpy as np
import xrl


class Slow(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self):
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.steps == 60:  # well into the updates
            Path("worker_%d" % os.getpid()).touch()
        return np.zeros(2, np.float32), 1.0, False, False, {}


xrl.REGISTRY_ENV["slow"] = Slow
'''


def test_ctrl_c_in_a_terminal(tmp_path):
    """A real SIGINT to the whole process group, the workers of vectorize: async included."""
    (tmp_path / "slow_environment.py").write_text(SLOW_ENVIRONMENT)
    command = [sys.executable, "-m", "xrl", "train", "--import", "slow_environment", "--method", "DreamerV2", "--env",
               "slow", "--env-id", "slow-v0", "preset=debug", "device=cpu", "parallels=2", "vectorize=async",
               "running_steps=1e7", "eval_interval=0", "logger=none"]
    environment = {**os.environ, "PYTHONPATH": str(Path(xrl.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        workers = wait_for(lambda: sorted(tmp_path.glob("worker_*")), 2, process)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, err
    assert "Traceback" not in err and err.endswith("xrl: interrupted\n")
    (model,) = tmp_path.glob("models/DreamerV2/slow-v0/*/*.pth")
    counters = read_metadata(model)["counters"]
    assert model.name == "interrupted_model.pth" and counters["agent_steps"] >= 118 and counters["updates"] > 0
    tensors_of(model)
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(int(worker.name.partition("_")[2]), 0)


def wait_for(look, count, process):
    deadline = time.monotonic() + 60
    while len(found := look()) < count:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.02)
    return found


def test_log_dir_and_model_dir(runner, tmp_path):
    folder = runner(log_dir=str(tmp_path / "logs"), logger="tensorboard").run()
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "best_model.pth", "final_train_model.pth", "videos", *KEPT}
    logs = tmp_path / "logs/DreamerV2/any-v0" / folder.name
    assert {path.name.split(".")[0] for path in logs.iterdir()} == {"metrics", "health", "events"}


def test_a_run_folder_can_be_moved(runner, tmp_path, watched):
    folder = runner().run()
    moved = tmp_path / "elsewhere" / "kept"
    shutil.copytree(folder, moved)
    from tests.agents.examples import Workshop
    shop = Workshop(tmp_path / "more")
    agent = shop.agent()
    assert agent.load_model(moved) == moved / "best_model.pth"
    assert same({f"policy/{name}": tensor for name, tensor in weights(agent).items()},
                {name: tensor for name, tensor in tensors_of(moved / "best_model.pth").items()
                 if name.startswith("policy/")})
    shop.close()
