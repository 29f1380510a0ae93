"""Comparison with published scores, on made-up ones; the training is replaced by curves that are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xrl.common.config import load_config
from xrl.common.errors import ConfigError
from xrl.runners import reproduce as module
from xrl.runners.benchmark import SeedsFailed
from xrl.runners.reproduce import compare, reproduce

MILLION = 1_000_000


def curve(task, seed, points, method="dreamerv2"):
    xs, ys = zip(*points, strict=True)
    return {"task": task, "method": method, "seed": str(seed), "xs": list(xs), "ys": list(ys)}


def line(level, end=10, start=1):
    """A curve that stays where it is, in millions of frames."""
    return [(x * MILLION, level) for x in range(start, end + 1)]


@pytest.fixture
def reference(tmp_path):
    """Pong: 2 to 6 over three seeds; a fourth, far below, ended early. Boxing: 50. Of another method: -100."""
    path = tmp_path / "reference.json"
    path.write_text(json.dumps([
        *(curve("atari_pong", seed, line(level)) for seed, level in enumerate([2.0, 6.0, 4.0])),
        curve("atari_pong", 9, line(-20.0, end=2)), curve("atari_pong", 1, line(-100.0), "nosched"),
        curve("atari_boxing", 1, line(50.0))]))
    return path


@pytest.fixture
def baselines(tmp_path):
    path = tmp_path / "baselines.json"
    path.write_text(json.dumps({task: {"random": 0.0, "human_gamer": 10.0, "human_record": 20.0}
                                for task in ("atari_pong", "atari_boxing")}))
    return path


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Stands for run_benchmark: leaves the curves given for a game, or raises; keeps what it was called with."""
    outcome, calls = {}, []

    def run(resolved, seeds, *, jobs, reference):
        calls.append((resolved.config, seeds, jobs, reference))
        found = outcome[resolved.config.env_id]
        if isinstance(found, Exception):
            raise found
        folder = Path(resolved.config.model_dir) / resolved.config.env_id.replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        task = {"ALE/Pong-v5": "atari_pong", "ALE/Boxing-v5": "atari_boxing"}[resolved.config.env_id]
        records = [curve(task, seed, points, "DreamerV2") for seed, points in enumerate(found)]
        (folder / "scores.json").write_text(json.dumps(records))
        return folder

    monkeypatch.setattr(module, "run_benchmark", run)
    monkeypatch.chdir(tmp_path)
    run.outcome, run.calls = outcome, calls
    return run


def ours(*levels, end=10):
    return [line(level, end=end, start=0) for level in levels]


@pytest.mark.parametrize(("levels", "verdict"), [
    ((1.0, 3.5), "pass"), ((2.0, 2.0), "pass"), ((30.0,), "pass"), ((1.0, 2.9), "fail")])
def test_the_mean_of_ours_against_the_range_of_theirs(trained, reference, levels, verdict):
    trained.outcome["ALE/Pong-v5"] = ours(*levels)
    found = reproduce("atari-dreamerv2", "pong", len(levels), reference, frames=10 * MILLION)
    (pong,) = found.comparisons
    assert pong.verdict == verdict and found.failed == (("Pong",) if verdict == "fail" else ())
    assert pong.ours == levels and pong.frames == 10 * MILLION
    assert sorted(pong.published) == [2.0, 4.0, 6.0]  # neither the other method nor the seed that had ended


def curves(*records):
    return [module.Curve(**{**record, "xs": tuple(record["xs"]), "ys": tuple(record["ys"])}) for record in records]


def test_both_sides_are_read_at_the_frames_that_all_our_seeds_reached():
    rising = [(x * MILLION, float(x)) for x in range(1, 11)]
    theirs = curves(curve("atari_pong", 1, rising), curve("atari_pong", 2, rising[:2]))
    mine = curves(curve("atari_pong", 1, rising[:7]), curve("atari_pong", 2, [(0, -9.0), *rising]))
    found = compare("Pong", mine, theirs)
    assert found.frames == 7 * MILLION and found.ours == (5.0, 5.0)  # the mean of 3 to 7
    assert found.published == (5.0,) and found.verdict == "pass"
    early = compare("Pong", curves(curve("atari_pong", 1, rising[:2])), theirs)
    assert early.published == (1.5, 1.5)  # the short one is still there


def test_before_the_first_published_point_nothing_is_compared(trained, reference):
    trained.outcome["ALE/Pong-v5"] = [[(0, 1.0), (999_999, 50.0)]]
    found = reproduce("atari-dreamerv2", "pong", 1, reference, frames=999_999)
    assert found.comparisons[0].verdict == "not comparable" and found.comparisons[0].published == ()
    assert found.failed == ()
    text = (found.folder / "reproduce.md").read_text()
    assert "not comparable" in text and "at 999,999 of 200,000,000 frames" in text


def test_the_report(trained, reference, baselines, tmp_path):
    trained.outcome.update({"ALE/Pong-v5": ours(3.0, 5.0), "ALE/Boxing-v5": ours(10.0)})
    found = reproduce("atari-dreamerv2", "pong, atari_boxing,Pong", 2, str(reference), 1e7, str(baselines),
                      ["model_dir=here", "preset=paper", "precision=bf16"], jobs=3)
    assert found.failed == ("Boxing",) and found.folder == Path("here/reproduce/atari-dreamerv2")
    text = (found.folder / "reproduce.md").read_text()
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines() if row.startswith("|")]
    label = "at 10,000,000 of 200,000,000 frames"
    assert text.startswith("# atari-dreamerv2: trained 2 of 2 games: 1 pass, 1 fail, 0 not comparable, " + label + "\n")
    assert rows[2] == ["Pong", "pass", "2", "4.000", "3.000", "5.000", "2.000", "4.000", "6.000", "3", label, "0.400",
                       "0.200"]
    assert rows[3][:4] == ["Boxing", "fail", "1", "10.0"] and rows[3][-2:] == ["1.000", "0.500"]
    assert "preset paper, as shipped but for the frames and precision: bf16 instead of fp32. Which configuration " \
           "produced the published curves is not stated by their authors." in text
    assert f"Over 2 games, ours, {label}: gamer median 0.700, gamer mean 0.700, record mean 0.350" in text
    # The published ones as their authors count, with the seed that ended: the mean of 2, 4, 6 and -20, and 50.
    assert f"published, {label}, all seeds: gamer median 2.400" in text
    saved = json.loads((found.folder / "reproduce.json").read_text())
    assert [(game["game"], game["verdict"]) for game in saved["games"]] == [("Pong", "pass"), ("Boxing", "fail")]
    assert (saved["frames"], saved["of_frames"]) == (10 * MILLION, 200 * MILLION)
    assert (found.folder / "reproduce.csv").read_text().splitlines()[1].startswith("Pong,pass,2,4.0,3.0,5.0,")
    assert (found.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    config, seeds, jobs, given = trained.calls[0]
    assert (config.running_steps, seeds, jobs, given) == (2_500_000, 2, 3, reference)


@pytest.mark.parametrize(("frames", "overrides", "steps", "interval", "said"), [
    (None, [], 50 * MILLION, 250_000, "as shipped but for the frames."),
    (1e6, [], 250_000, 25_000, "as shipped but for the frames and eval_interval: 25000 instead of 250000."),
    (1e6, ["eval_interval=50"], 250_000, 50, "eval_interval: 50 instead of 250000."),
    (1e6, ["environment.action_repeat=2", "log_interval=3"], 500_000, 50_000,
     "environment.action_repeat: 2 instead of 4; eval_interval")])
def test_what_is_trained(trained, reference, frames, overrides, steps, interval, said):
    trained.outcome["ALE/Pong-v5"] = ours(3.0)
    found = reproduce("atari-dreamerv2", ["pong"], 1, reference, frames, overrides=overrides)
    config = trained.calls[0][0]
    assert (config.running_steps, config.eval_interval) == (steps, interval)
    text = (found.folder / "reproduce.md").read_text()
    assert said in text or said.removesuffix(".") in text
    shipped = load_config("DreamerV2", "atari", "ALE/Pong-v5").config
    assert config.gamma == shipped.gamma and config.world_model == shipped.world_model


def test_a_game_that_fails_stops_no_other(trained, reference):
    trained.outcome.update({"ALE/Pong-v5": SeedsFailed("1 of 2 seeds failed: lost"), "ALE/Boxing-v5": ours(50.0)})
    found = reproduce("atari-dreamerv2", "pong,boxing", 2, reference)
    assert [comparison.verdict for comparison in found.comparisons] == ["error", "pass"] and found.failed == ("Pong",)
    text = (found.folder / "reproduce.md").read_text()
    assert "Pong: 1 of 2 seeds failed: lost" in text
    assert "trained 1 of 2 games: 1 pass, 0 fail, 0 not comparable, 1 error, at" in text


@pytest.mark.parametrize("preset", ["debug", "paper"])
def test_a_preset_that_learns_nothing_is_named(trained, reference, preset):
    trained.outcome["ALE/Pong-v5"] = ours(-21.0)
    found = reproduce("atari-dreamerv2", "pong", 1, reference, overrides=[f"preset={preset}"])
    text = (found.folder / "reproduce.md").read_text()
    assert ("preset=debug learns nothing" in text) == (preset == "debug")
    assert "trained 1 of 1 game: 0 pass, 1 fail" in text


def test_what_was_compared_so_far_stays_when_it_is_interrupted(trained, reference):
    trained.outcome["ALE/Pong-v5"] = ours(3.0)
    trained.outcome["ALE/Boxing-v5"] = ConfigError("stands for anything that ends the call")
    with pytest.raises(ConfigError):
        reproduce("atari-dreamerv2", "pong,boxing", 1, reference)
    text = Path("models/reproduce/atari-dreamerv2/reproduce.md").read_text()
    assert "1 of 2 games" in text and "Not trained yet: Boxing." in text


def test_all_games_are_those_that_were_published(trained, reference):
    with pytest.raises(ConfigError, match="has no curve of 'dreamerv2' in 'atari_alien'; leave this game out"):
        reproduce("atari-dreamerv2", "all", 1, reference)


@pytest.mark.parametrize(("keys", "message"), [
    ({"name": "atari-dreamerv3"}, "reproduce: 'atari-dreamerv3' is unknown. Did you mean 'atari-dreamerv2'"),
    ({"games": "pongg"}, "games: 'pongg' is none of the 55.*Did you mean 'pong'"), ({"games": []}, "games: none"),
    ({"games": "alien"}, "reference.json: has no curve of 'dreamerv2' in 'atari_alien'"),
    ({"frames": 3e8}, "frames: 300000000.0 must be .* at most the 200,000,000"),
    ({"frames": 39}, "frames: 39 is too short"),
    ({"frames": float("nan")}, "frames: nan must be"), ({"frames": -1.0}, "frames: -1.0 must be"),
    ({"overrides": ["running_steps=5"]}, "running_steps: 5: the length of a reproduction is given in frames"),
    ({"overrides": ["gama=1"]}, "gama: unknown key"), ({"overrides": ["env_id=x"]}, "'env_id' is given twice"),
    ({"baselines": "nowhere.json"}, "nowhere.json: no such file"), ({"reference": "no.json"}, "no.json: no such file")])
def test_mistakes_are_found_before_anything_is_trained(trained, reference, keys, message):
    with pytest.raises(ConfigError, match=message):
        reproduce(**{"name": "atari-dreamerv2", "games": "pong", "seeds": 1, "reference": reference, **keys})
    assert trained.calls == []


def test_a_last_evaluation_that_misses_the_published_curve_is_refused(trained, reference):
    with pytest.raises(ConfigError, match=r"^eval_interval: 80,000: Pong: not comparable: the last evaluation is "
                                          "at 960,000 frames, the first published point at 1,000,000; choose an "
                                          "eval_interval that divides 250,000 agent steps"):
        reproduce("atari-dreamerv2", "pong", 1, reference, 1e6, overrides=["eval_interval=80_000"])
    assert trained.calls == []


def test_too_few_frames_for_a_verdict_are_said_first(trained, reference, capsys):
    trained.outcome["ALE/Pong-v5"] = ConfigError("stands for the training")
    with pytest.raises(ConfigError, match="stands for"):
        reproduce("atari-dreamerv2", "pong", 1, reference, 4e5)
    assert capsys.readouterr().out.startswith("Pong: not comparable: the last evaluation is at 400,000 frames, "
                                              "the first published point at 1,000,000; give more frames")


def test_the_folders_of_all_games_are_compared_before_the_first_is_trained(trained, reference):
    folder = Path("models/benchmarks/DreamerV2/ALE-Boxing-v5")
    folder.mkdir(parents=True)
    (folder / "benchmark.json").write_text(json.dumps({"config": {"gamma": 0.5}, "versions": {}, "commit": None}))
    with pytest.raises(ConfigError, match=r"ALE-Boxing-v5: its seeds have other settings: gamma was 0.5"):
        reproduce("atari-dreamerv2", "pong,boxing", 1, reference, 1e6)
    assert trained.calls == []


def test_a_game_without_a_baseline_is_named_first(trained, reference, baselines):
    baselines.write_text(json.dumps({"atari_boxing": {"random": 0, "human_gamer": 1, "human_record": 2}}))
    with pytest.raises(ConfigError, match="has no task 'atari_pong'"):
        reproduce("atari-dreamerv2", "pong", 1, reference, baselines=baselines)
    assert trained.calls == []
