"""Benchmarks of several seeds: real processes, killed and stopped ones, what is run again and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

import xrl
from tests.agents.examples import Watched, same
from xrl.common.checkpoint import find_checkpoints
from xrl.common.config import load_config
from xrl.common.errors import ConfigError
from xrl.common.files import load_tensors
from xrl.common.run_folder import locked
from xrl.environment import REGISTRY_ENV
from xrl.runners import benchmark as module
from xrl.runners.benchmark import SeedsFailed, read_result, run_benchmark, write_results
from xrl.runners.runner import get_runner

CARTPOLE = ("DreamerV2", "classic_control", "CartPole-v1")
SMALL = {"preset": "debug", "device": "cpu", "logger": "none", "running_steps": 60, "start_training": 20,
         "eval_interval": 20, "checkpoint_every": 20}
PLACE = Path("benchmarks/DreamerV2/CartPole-v1")


def resolved(model_dir, names=CARTPOLE, **keys):
    return load_config(*names, None, {**SMALL, "model_dir": str(model_dir), **keys})


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    """One thread for each of two seeds, as in this process: then they compute the same to the last bit."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory):
    """The model_dir of a benchmark of two seeds that has finished; not to be changed."""
    model_dir = tmp_path_factory.mktemp("finished")
    run_benchmark(resolved(model_dir), 2, jobs=2)
    return model_dir


@pytest.fixture
def finished(two_seeds, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(two_seeds, tmp_path / "models"))


def result_of(model_dir, seed, place=PLACE):
    return read_result(model_dir / place, seed)


# Whole benchmarks --------------------------------------------------------------------------------------------------


def test_each_seed_is_the_run_that_it_would_be_alone(two_seeds, tmp_path):
    for seed in (1, 2):
        alone = get_runner(*CARTPOLE, **{**SMALL, "model_dir": str(tmp_path), "seed": seed, "env_seed": 1000 * seed})
        expected = alone.benchmark()
        run = two_seeds / PLACE / f"seed_{seed}" / result_of(two_seeds, seed)["run"]
        assert (run / "curve.json").read_text() == (expected / "curve.json").read_text()
        models = [load_tensors(folder / "final_train_model.pth")[0] for folder in (run, expected)]
        assert same(*models)
        scores = get_runner(*CARTPOLE, is_test=True, model_dir=str(tmp_path), env_seed=1000 * seed).run()
        assert result_of(two_seeds, seed)["best"]["test_scores"] == scores


def test_a_result_says_what_it_was_made_with(two_seeds):
    result = result_of(two_seeds, 2)
    assert result["seed"] == 2 and result["frames"] == 60 and result["wall_s"] > 0 and result["threads"] == 1
    assert {"python", "torch", "xrl"} <= result["versions"].keys() and result["machine"]["cores"] == os.cpu_count()
    assert len(result["last"]["test_scores"]) == 2 and result["last"]["frames"] == 60
    assert result["best"]["frames"] in (0, 20, 40, 60) and result["device"] == "cpu"


def test_the_results_are_those_of_all_seeds(two_seeds):
    folder = two_seeds / PLACE
    curves = json.loads((folder / "scores.json").read_text())
    assert [(curve["task"], curve["seed"]) for curve in curves] == [("CartPole-v1", "1"), ("CartPole-v1", "2")]
    for seed, curve in enumerate(curves, start=1):
        (own,) = json.loads(next(folder.glob(f"seed_{seed}/*/*/*/curve.json")).read_text())
        assert (curve["xs"], curve["ys"]) == (own["xs"], own["ys"]) and own["xs"] == [0, 20, 40, 60]
    summary = json.loads((folder / "summary.json").read_text())
    means = [statistics.fmean(curve["ys"][1:]) for curve in curves]  # not the untrained policy's
    assert summary["score"]["mean"]["value"] == pytest.approx(statistics.fmean(means))
    assert [row["score"] for row in summary["seeds"]] == pytest.approx(means)
    tests = [result_of(two_seeds, seed)["best"]["test_mean"] for seed in (1, 2)]
    assert summary["best_model"]["mean"]["value"] == pytest.approx(statistics.fmean(tests))
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "| CartPole-v1 " in (folder / "table.md").read_text() and "iqm_low" in (folder / "table.csv").read_text()


def test_finished_seeds_are_not_run_again_and_new_ones_join_them(finished, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(module, "train_side_by_side", lambda folder, left, *rest: started.append(list(left)))
    assert run_benchmark(resolved(finished), 2) == finished / PLACE
    assert started == [] and "finished earlier: seeds 1 2" in capsys.readouterr().out
    run_benchmark(resolved(finished), 4)
    run_benchmark(resolved(finished), [7, 2])
    run_benchmark(resolved(finished, seed=2), 2)
    assert started == [[3, 4], [7], [3]]
    own = load_config(config_path=finished / PLACE / "seed_7/seed.yaml").config
    assert (own.seed, own.env_seed, own.model_dir) == (7, 7000, str(finished / PLACE / "seed_7"))


@pytest.mark.parametrize(("key", "value", "message"), [
    ("gamma", 0.5, "gamma was 0.995 and is 0.5 now"), ("running_steps", 80, "running_steps was 60 and is 80 now"),
    ("eval_interval", 30, "eval_interval was 20 and is 30 now"), ("test_episode", 3, "test_episode was 2 and is 3"),
    ("environment.time_limit", 9, "environment.time_limit was 0 and is 9 now")])
def test_other_settings_are_refused(finished, key, value, message):
    with pytest.raises(ConfigError, match=f"CartPole-v1: its seeds have other settings: {message}.*another model_dir"):
        run_benchmark(resolved(finished, **{key: value}), 2)


def test_settings_that_change_nothing_are_not_compared(finished):
    run_benchmark(resolved(finished, log_interval=7, checkpoint_every=0, keep_checkpoints=9, env_seed=4), 2)


def test_what_the_folder_holds_may_be_damaged(finished):
    (finished / PLACE / "seed_2/result.json").write_text('{"seed":')
    with pytest.raises(ConfigError, match=r"seed_2/result\.json: cannot be read: JSONDecodeError.*remove it"):
        run_benchmark(resolved(finished), 2)
    (finished / PLACE / "benchmark.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"benchmark\.json: cannot be read: .*remove"):
        run_benchmark(resolved(finished), 2)


def test_other_versions_are_mentioned(finished, capsys):
    path = finished / PLACE / "benchmark.json"
    saved = json.loads(path.read_text())
    run_benchmark(resolved(finished), 2)
    assert "other versions" not in capsys.readouterr().out
    path.write_text(json.dumps({**saved, "versions": {**saved["versions"], "torch": "1.0"}}))
    run_benchmark(resolved(finished), 2)
    assert "begun with other versions of the programs" in capsys.readouterr().out


@pytest.mark.parametrize(("package", "kept", "lost"), [
    ("matplotlib.figure", {"scores.json", "table.md", "summary.json", "table.csv"}, {"curves.png"}),
    ("scipy.stats", {"scores.json", "table.md", "curves.png"}, {"summary.json", "table.csv"})])
def test_without_the_packages_of_the_report(finished, monkeypatch, package, kept, lost):
    folder = finished / PLACE
    for name in kept | lost:
        (folder / name).unlink()
    monkeypatch.setitem(sys.modules, package, None)
    text = write_results(folder, None)
    assert 'pip install matplotlib scipy' in text and "| best model |" in text
    names = {path.name for path in folder.iterdir()}
    assert kept <= names and not lost & names


def test_scores_against_people(finished, baselines, capsys):
    folder = finished / PLACE
    run_benchmark(resolved(finished), 2, baselines=baselines)
    table = json.loads((folder / "summary.json").read_text())["table"]
    (row, *over), notes = table["rows"], table["notes"]
    assert row["gamer"] == pytest.approx((row["mean"] - 5) / 10) == pytest.approx(2 * row["record"])
    assert {line["task"] for line in over} >= {"1 game: median of games", "1 game: mean of games, each clipped at 1"}
    corrected = "atari_james_bond: human_gamer 29.0 in baselines.json is wrong and was replaced by 302.8"
    assert any(note.startswith(corrected) for note in notes)
    assert corrected in (folder / "table.md").read_text() and corrected in capsys.readouterr().out
    assert ",gamer,gamer_low,gamer_high,record," in (folder / "table.csv").read_text()


@pytest.fixture
def baselines(tmp_path):
    path = tmp_path / "baselines.json"
    path.write_text(json.dumps({"CartPole-v1": {"random": 5.0, "human_gamer": 15.0, "human_record": 25.0},
                                "atari_james_bond": {"random": 29.0, "human_gamer": 29.0}}))
    return path


def full_disk(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("spoilt", ["write_scores", "plot", "read_result"])
def test_results_that_cannot_be_written_stop_no_seed(finished, monkeypatch, capsys, spoilt):
    asked, place = [], str(finished / PLACE)

    def train(folder, left, shares, modules, ended):
        for seed, rest in ((1, [2, 3]), (2, [3])):
            asked.append(seed)
            ended(seed, None, rest)

    monkeypatch.setattr(module, "train_side_by_side", train)
    with monkeypatch.context() as patch:
        patch.setattr(module, spoilt, full_disk)
        with pytest.raises(ConfigError, match=f"{place}: the results cannot be written: .*No space left on device"):
            run_benchmark(resolved(finished), 3)
    assert asked == [1, 2] and "what the seeds make so far cannot be written: [Errno 28]" in capsys.readouterr().err
    monkeypatch.setattr(module, "train_side_by_side", lambda *given: given[-1](3, "log.txt: lost", []))
    monkeypatch.setattr(module, spoilt, full_disk)
    with pytest.raises(SeedsFailed, match=r"1 of 3 seeds failed: seed 3: log.txt: lost; .*; and .*No space left"):
        run_benchmark(resolved(finished), 3)


# Mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [0, -1, [], [1, 1], [-1, 2]])
def test_seeds_that_cannot_be(tmp_path, seeds):
    with pytest.raises(ConfigError, match=r"^seeds: .*: give how many"):
        run_benchmark(resolved(tmp_path), seeds)
    assert not list(tmp_path.iterdir())


def test_mistakes_are_found_before_anything_is_trained(tmp_path):
    reference = tmp_path / "reference.json"
    curve = {"task": "CartPole-v0", "method": "x", "seed": "1", "xs": [1], "ys": [1]}
    reference.write_text(json.dumps([curve]))
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"CartPole-v0": {"random": 0, "human_gamer": 1, "human_record": 1}}))
    for keys, arguments, message in [
            ({}, {"jobs": 0}, "jobs: 0 is too few"), ({"eval_interval": 0}, {}, "eval_interval: 0 leaves nothing"),
            ({}, {"reference": reference}, "reference.json: has no curve of CartPole-v1; Did you mean 'CartPole-v0'"),
            ({}, {"baselines": other}, "has no task 'CartPole-v1'. Did you mean 'CartPole-v0'"),
            ({}, {"baselines": tmp_path / "no.json"}, "no.json: no such file"),
            ({"env_id": "CartPol-v1"}, {}, "env_id: 'CartPol-v1' is unknown"),
            ({"device": "cuda:99"}, {}, "device: 'cuda:99'")]:
        with pytest.raises(ConfigError, match=message):
            run_benchmark(resolved(tmp_path / "models", (None, None, None), method="DreamerV2",
                                   env_name="classic_control", **{"env_id": "CartPole-v1", **keys}), 2, **arguments)
    assert not list(tmp_path.glob("models/**/log.txt"))


def test_two_benchmarks_do_not_share_a_folder(finished, monkeypatch):
    monkeypatch.setattr("xrl.common.run_folder.PATIENCE", 0.0)
    with locked(finished / PLACE), pytest.raises(ConfigError, match="another process is training"):
        run_benchmark(resolved(finished), 3)


# Stopped and killed ------------------------------------------------------------------------------------------------

SCRIPT = """
import json, os, sys
os.sched_getaffinity = lambda pid: {0}  # one thread, as in this test's own process
from xrl.common.config import load_config
from xrl.runners.benchmark import run_benchmark
run_benchmark(load_config("DreamerV2", "classic_control", "CartPole-v1", None, json.loads(sys.argv[1])), 1)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_benchmark_that_is_killed_or_stopped_goes_on(tmp_path, monkeypatch, number):
    """The seed notices either way, saves and ends; the same call then trains the rest of the very same run."""
    keys = {**SMALL, "running_steps": 500, "eval_interval": 250, "checkpoint_every": 50}
    words = json.dumps({**keys, "model_dir": str(tmp_path / "models")})
    environment = {**os.environ, "PYTHONPATH": str(Path(xrl.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT, words], env=environment, text=True, cwd=tmp_path,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    own = tmp_path / "models" / PLACE / "seed_1"
    steps = 0
    try:
        wait_for(lambda: steps_made(own) >= 100)
        parent.send_signal(number)
        out, _ = parent.communicate(timeout=60)
        wait_for(lambda: "interrupted; saved" in (own / "log.txt").read_text())
        steps = steps_made(own)
    finally:
        parent.kill()
        parent.wait()
    assert 100 <= steps < 500 and not (own / "result.json").exists()
    assert number == signal.SIGKILL or "CartPole-v1: stopped; the same command goes on" in out
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    run_benchmark(resolved(tmp_path / "models", **keys), 1)
    log = (own / "log.txt").read_text()
    assert f"going on from agent step {steps:,}" in log and len(list(own.glob("*/*/*/config.yaml"))) == 1
    alone = get_runner(*CARTPOLE, **{**keys, "model_dir": str(tmp_path / "alone"), "env_seed": 1000}).benchmark()
    result = read_result(own.parent, 1)
    assert (own / result["run"] / "curve.json").read_text() == (alone / "curve.json").read_text()


def steps_made(own: Path) -> int:
    """Of the newest checkpoint."""
    checkpoints = [checkpoint for run in own.glob("*/*/*/") for checkpoint in find_checkpoints(run)]
    return max((checkpoint.counters["agent_steps"] for checkpoint in checkpoints), default=0)


def wait_for(there):
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# Environments of one's own -----------------------------------------------------------------------------------------

FRAGILE = '''
from pathlib import Path
import gymnasium, numpy, xrl


class Fragile(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), numpy.float32)
    action_space = gymnasium.spaces.Discrete(2)
    steps = seed = 0

    def reset(self, *, seed=None, options=None):
        self.seed = seed or self.seed
        return numpy.zeros(2, numpy.float32), {}

    def step(self, action):
        self.steps += 1
        if self.steps == 30 and self.seed == 2000 and not Path(__file__).with_name("mended").exists():
            raise LookupError("lost")
        return numpy.zeros(2, numpy.float32), 1.0, self.steps % 5 == 0, False, {}


xrl.REGISTRY_ENV["fragile"] = Fragile
'''


def test_a_seed_that_fails_stops_no_other_and_is_tried_again(tmp_path, monkeypatch, capsys, watched):
    """And an environment of a module of one's own trains in other processes, which import that module."""
    (tmp_path / "fragile_environment.py").write_text(FRAGILE)
    monkeypatch.syspath_prepend(tmp_path)
    import fragile_environment  # noqa: F401
    names, place = ("DreamerV2", "fragile", "any-v0"), tmp_path / "models/benchmarks/DreamerV2/any-v0"
    settings = resolved(tmp_path / "models", names, max_env_failures=0)
    with pytest.raises(SeedsFailed, match=rf"^1 of 2 seeds failed: seed 2: {place}/seed_2/log.txt: .*LookupError: "
                                          "lost; the same command tries them again"):
        run_benchmark(settings, 2, jobs=2)
    out = capsys.readouterr().out
    assert "2 at a time" in out and f"seed 2: FAILED: {place}/seed_2/log.txt: " in out
    assert [curve["seed"] for curve in json.loads((place / "scores.json").read_text())] == ["1"]
    (tmp_path / "mended").touch()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    run_benchmark(settings, 2)
    assert len(json.loads((place / "scores.json").read_text())) == 2
    sys.modules.pop("fragile_environment")


def test_environments_of_this_program_alone_are_trained_in_it(tmp_path, monkeypatch, capsys, watched):
    """One after another; a failure stops no other there either, and what is finished is on file while others train."""
    place, on_file = tmp_path / "benchmarks/DreamerV2/any-v0", []

    def trouble(env, result):
        if env.seeds[0] == 2000:
            on_file.extend(json.loads((place / "scores.json").read_text()))
            raise LookupError("lost")
        return result

    watched.trouble, watched.trouble_at = trouble, 30
    monkeypatch.setitem(REGISTRY_ENV, "mine", lambda: Watched())
    with pytest.raises(SeedsFailed, match=r"1 of 3 seeds failed: seed 2: .*seed_2/log.txt: TooManyFailures: .*lost"):
        run_benchmark(resolved(tmp_path, ("DreamerV2", "mine", "any-v0"), max_env_failures=0), 3)
    out = capsys.readouterr().out
    assert "seeds 1 2 3, one after another in this process: REGISTRY_ENV['mine'] is defined where another" in out
    assert [curve["seed"] for curve in on_file] == ["1"]
    assert [curve["seed"] for curve in json.loads((place / "scores.json").read_text())] == ["1", "3"]
    assert "LookupError: lost" in (place / "seed_2/log.txt").read_text()
    assert {1000, 2000, 3000} <= {made.seeds[0] for made in watched.made if made.seeds}
