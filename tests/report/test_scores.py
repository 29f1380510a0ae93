"""Curves on file: the published format, the log of a run, and the names of tasks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import ale_py
import gymnasium
import pytest

from xrl.common.errors import ConfigError
from xrl.report import run_log
from xrl.report.scores import (
    ATARI_GAMES,
    Curve,
    atari_env_id,
    find_curves,
    read_scores,
    run_curve,
    task_name,
    write_scores,
)

PUBLISHED = Path(__file__).parents[2] / "../shared/reference/scores/atari-dreamerv2.json"
RECORD = {"task": "atari_pong", "method": "dreamerv2", "seed": "3", "xs": [1e6, 2e6], "ys": [-20.5, 7]}


def write_run(folder: Path, *lines: str | dict, curve: dict | None = None, log: Path | None = None, **config) -> Path:
    """A run folder as a run leaves it; ``log``: where metrics.jsonl is."""
    folder.mkdir(parents=True)
    config = {"method": "DreamerV2", "env_name": "toy", "env_id": "Catch-v0", "seed": 4, "log_dir": None, **config}
    (folder / "config.yaml").write_text(json.dumps(config))
    log = folder if log is None else log
    log.mkdir(parents=True, exist_ok=True)
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (log / "metrics.jsonl").write_text(text)
    if curve is not None:
        (folder / "curve.json").write_text(json.dumps([curve]))
    return folder


def evaluation(frames: int, score: float) -> dict:
    return {"agent_steps": frames // 2, "frames": frames, "updates": 1, "eval/return": score, "eval/return_std": 0.0}


def test_the_published_format_is_read_and_written(tmp_path):
    (tmp_path / "theirs.json").write_text(json.dumps([RECORD, {**RECORD, "seed": 7}]))
    curves = read_scores(tmp_path / "theirs.json")
    assert curves == [Curve("atari_pong", "dreamerv2", seed, (1e6, 2e6), (-20.5, 7.0)) for seed in ("3", "7")]
    write_scores(tmp_path / "ours.json", curves)
    assert json.loads((tmp_path / "ours.json").read_text()) == [RECORD, {**RECORD, "seed": "7"}]


@pytest.mark.parametrize(("text", "message"), [
    ("[{", r"not JSON .*must be a JSON list of \{\"task\""),
    ("", "not JSON"),
    ("[]", "an empty list; it must be a JSON list"),
    ('{"a": 1}', "a JSON object; it must be a JSON list"),
    ("[3]", "record 0: is a JSON value"),
    ("[" * 100_000, "not JSON"),
])
def test_a_file_that_holds_no_scores(tmp_path, text, message):
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"scores.json: .*{message}"):
        read_scores(path)


@pytest.mark.parametrize(("change", "message"), [
    ({"task": None}, "'task' is null, not a string"),
    ({"seed": True}, "'seed' is true, not a string"),
    ({"xs": 3}, "'xs' is 3, not a list of numbers"),
    ({"xs": [], "ys": []}, r"'xs' is \[\], not a list"),
    ({"ys": [1.0]}, "2 'xs' but 1 'ys'"),
    ({"ys": [1.0, float("nan")]}, r"ys\[1\] is NaN, not a finite number"),
    ({"ys": [10**400, 1.0]}, r"ys\[0\] is 1000\S+, not a finite number"),
    ({"ys": ["1", 1.0]}, r"ys\[0\] is \"1\", not a finite number"),
    ({"ys": [True, 1.0]}, r"ys\[0\] is true"),
    ({"xs": [2e6, 2e6]}, r"'xs' must increase, but xs\[1\] = 2e\+06 follows 2e\+06"),
])
def test_a_record_of_the_wrong_form(tmp_path, change, message):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps([RECORD, {**RECORD, **change}]))
    with pytest.raises(ConfigError, match=f"scores.json: record 1: {message}"):
        read_scores(path)


@pytest.mark.parametrize("field", list(RECORD))
def test_a_record_without_a_field(tmp_path, field):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps([{key: value for key, value in RECORD.items() if key != field}]))
    with pytest.raises(ConfigError, match=f"record 0: '{field}' is missing; the file must be a JSON list"):
        read_scores(path)


def test_no_such_file(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.json: no such file; it should be a JSON list"):
        read_scores(tmp_path / "nowhere.json")


def test_a_run_is_read_from_its_log(tmp_path):
    run = write_run(tmp_path / "run", evaluation(0, 1.0), {"frames": 5, "episode/return": 9.0}, evaluation(20, 2.5))
    assert run_curve(run) == Curve("Catch-v0", "DreamerV2", "4", (0.0, 20.0), (1.0, 2.5))


def test_a_line_that_is_still_being_written_does_not_count(tmp_path):
    run = write_run(tmp_path / "run", evaluation(10, 1.0), json.dumps(evaluation(20, 2.5))[:60])
    assert run_curve(run).xs == (10.0,)


@pytest.mark.parametrize(("line", "message"), [
    ('{"eval/return": \n', "line 1 is not JSON"),
    ('{"frames": 3, "eval/return": NaN}\n', "line 1: frames 3 and eval/return NaN must be finite numbers"),
    ('{"eval/return": 3}\n', "line 1: frames null"),
])
def test_a_damaged_log(tmp_path, line, message):
    run = write_run(tmp_path / "run", line, evaluation(10, 1.0))
    with pytest.raises(ConfigError, match=f"metrics.jsonl: {message}"):
        run_curve(run)


def test_an_evaluation_that_was_repeated_replaces_the_one_before(tmp_path):
    """A run resumed elsewhere writes again what came after its checkpoint."""
    log = tmp_path / "logs/DreamerV2/ALE-Pong-v5/run"
    run = write_run(tmp_path / "run", evaluation(10, 1.0), evaluation(20, 3.0), evaluation(20, 2.0), log=log,
                    env_name="atari", env_id="ALE/Pong-v5", log_dir=str(tmp_path / "logs"))
    assert run_curve(run) == Curve("atari_pong", "DreamerV2", "4", (10.0, 20.0), (1.0, 2.0))


def test_a_log_that_was_diverted_later_goes_on_from_the_one_before(tmp_path):
    logs = tmp_path / "logs"
    run = write_run(tmp_path / "run", evaluation(20, 2.0), log=logs / "DreamerV2/Catch-v0/run", log_dir=str(logs))
    (run / "metrics.jsonl").write_text(json.dumps(evaluation(10, 1.0)) + "\n")
    assert run_curve(run).xs == (10.0, 20.0)


def test_the_curve_of_a_benchmark_comes_before_its_log(tmp_path):
    curve = {"task": "ALE/MsPacman-v5", "method": "DreamerV2", "seed": 4, "xs": [0, 40], "ys": [1, 2]}
    run = write_run(tmp_path / "run", evaluation(10, 9.0), curve=curve, env_name="atari", env_id="ALE/MsPacman-v5")
    assert run_curve(run) == Curve("atari_ms_pacman", "DreamerV2", "4", (0.0, 40.0), (1.0, 2.0))


def test_what_is_no_run(tmp_path):
    (tmp_path / "empty").mkdir()
    for read in (run_curve, find_curves):
        with pytest.raises(ConfigError, match=r"empty: an empty folder \(a run is a folder with config.yaml\); name"):
            read(tmp_path / "empty")
        with pytest.raises(ConfigError, match="nowhere: no such file or folder"):
            read(tmp_path / "nowhere")
        with pytest.raises(ConfigError, match=r": no run \(a run is a folder with config.yaml\)"):
            read(tmp_path)
    with pytest.raises(ConfigError, match=r"no evaluation yet .*eval_interval"):
        find_curves(write_run(tmp_path / "fresh", {"frames": 5, "episode/return": 9.0}))
    (tmp_path / "fresh/config.yaml").write_text("method: DreamerV2")
    with pytest.raises(ConfigError, match=r"config.yaml: 'env_name' is missing"):
        run_curve(tmp_path / "fresh")


def test_runs_are_found_below_a_folder(tmp_path):
    for seed in (1, 2):
        run = write_run(tmp_path / f"DreamerV2/Catch-v0/seed_{seed}", evaluation(10, seed), seed=seed)
    write_run(run / "crash", evaluation(10, 99.0))
    write_run(tmp_path / "DreamerV2/Catch-v0/.unfinished", evaluation(10, 99.0))
    assert [(curve.seed, curve.ys) for curve in find_curves(tmp_path)] == [("1", (1.0,)), ("2", (2.0,))]


def test_a_run_without_an_evaluation_is_left_out_under_a_warning(tmp_path):
    write_run(tmp_path / "a", evaluation(10, 1.0))
    write_run(tmp_path / "b")
    with pytest.warns(UserWarning, match=r"left out: \S+b: no evaluation yet"):
        assert len(find_curves(tmp_path)) == 1


def test_a_benchmark_is_read_from_its_scores_alone(tmp_path):
    folder = tmp_path / "benchmarks/DreamerV2/Catch-v0"
    write_run(folder / "seed_1/DreamerV2/Catch-v0/seed_1_now", evaluation(10, 1.0), seed=1)
    assert [curve.ys for curve in find_curves(tmp_path)] == [(1.0,)]  # interrupted before any seed was finished
    (folder / "scores.json").write_text(json.dumps([RECORD]))
    for place in (tmp_path, folder, folder / "scores.json"):
        assert [curve.task for curve in find_curves(place)] == ["atari_pong"]


def test_two_runs_of_one_seed_are_two_experiments(tmp_path):
    """Nobody knows which of them another seed belongs to: each run of the method has its own name."""
    for name, seed in (("seed_1_a", 1), ("seed_1_b", 1), ("seed_2_c", 2)):
        write_run(tmp_path / "DreamerV2/Catch-v0" / name, evaluation(10, 1.0), seed=seed)
    write_run(tmp_path / "DreamerV2/Other-v0/seed_1_a", evaluation(10, 1.0), seed=1, env_id="Other-v0")
    assert [(curve.task, curve.method, curve.seed) for curve in find_curves(tmp_path)] == [
        ("Catch-v0", "DreamerV2 (DreamerV2/Catch-v0/seed_1_a)", "1"), ("Catch-v0", "DreamerV2 (seed_1_b)", "1"),
        ("Catch-v0", "DreamerV2 (seed_2_c)", "2"), ("Other-v0", "DreamerV2", "1")]


def test_the_seeds_of_a_benchmark_stay_together_beside_a_run_of_one_of_them(tmp_path):
    folder = tmp_path / "benchmarks/DreamerV2/Catch"
    folder.mkdir(parents=True)
    record = {**RECORD, "task": "Catch-v0", "method": "DreamerV2"}
    (folder / "scores.json").write_text(json.dumps([{**record, "seed": "1"}, {**record, "seed": "2"}]))
    write_run(tmp_path / "DreamerV2/Catch-v0/seed_1_now", evaluation(10, 1.0), seed=1)
    assert [(curve.method, curve.seed) for curve in find_curves(tmp_path)] == [
        ("DreamerV2 (seed_1_now)", "1"), ("DreamerV2 (Catch)", "1"), ("DreamerV2 (Catch)", "2")]


def test_a_file_with_two_curves_of_one_seed_is_no_two_seeds(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps([RECORD, {**RECORD, "seed": "4"}, {**RECORD, "seed": 3}]))
    for place in (path, tmp_path):
        with pytest.raises(ConfigError, match=r"scores\.json: records 0 and 2 are both of atari_pong, dreamerv2, "):
            find_curves(place)


def test_links_and_pipes_in_a_run_are_not_read(tmp_path):
    run = write_run(tmp_path / "run", evaluation(10, 1.0))
    (tmp_path / "theirs.json").write_text(json.dumps([RECORD]))
    (run / "curve.json").symlink_to(tmp_path / "theirs.json")
    assert run_curve(run).xs == (10.0,)
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    with pytest.raises(ConfigError, match="no evaluation yet"):
        run_curve(run)


def test_a_log_that_is_too_long_says_that_it_was_cut(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", *(evaluation(10 * number, 1.0) for number in range(1, 9)))
    monkeypatch.setattr(run_log, "LARGEST_LOG", 300)
    with pytest.warns(UserWarning, match=r"run/metrics.jsonl: Only the first .* were read"):
        assert run_curve(run).xs == (10.0, 20.0, 30.0)


# Names ---------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def emulated() -> set[str]:
    gymnasium.register_envs(ale_py)
    return set(gymnasium.registry)


@pytest.mark.parametrize("game", ATARI_GAMES)
def test_each_published_game_has_one_environment(emulated, game):
    env_id = atari_env_id(game)
    assert env_id in emulated
    assert task_name("atari", env_id) == f"atari_{game}"
    bare = env_id.removeprefix("ALE/").removesuffix("-v5")
    assert {atari_env_id(name) for name in (f"atari_{game}", env_id, bare, bare.upper())} == {env_id}


def test_some_names_by_hand():
    assert atari_env_id("james_bond") == "ALE/Jamesbond-v5"
    assert atari_env_id("UpNDown") == atari_env_id("up_n_down") == "ALE/UpNDown-v5"
    assert task_name("atari", "ALE/Riverraid-v5") == "atari_riverraid"
    assert task_name("atari", "ALE/Defender-v5") == "atari_defender"  # not published, yet in the baselines
    assert task_name("classic_control", "CartPole-v1") == "CartPole-v1"
    assert task_name("mine", "ALE/Pong-v5") == "ALE/Pong-v5"  # somebody's own Pong is not the published task


@pytest.mark.parametrize("game", ["pongg", "ALE/Pongg-v5", "atari_pongg"])
def test_an_unknown_game(game):
    with pytest.raises(ConfigError, match=f"games: '{game}' is none of the 55 .*Did you mean 'pong'"):
        atari_env_id(game)


def test_the_games_are_those_that_were_published():
    if not PUBLISHED.exists():
        pytest.skip(f"the published scores are not here: {PUBLISHED}")
    assert sorted({curve.task for curve in read_scores(PUBLISHED)}) == [f"atari_{game}" for game in ATARI_GAMES]
