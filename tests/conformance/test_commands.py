"""What the commands do with a run of any method, with a world model or without: nothing here knows which it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import xrl
from tests.agents.examples import records, watched_environments
from tests.methods import dreams, quick, task_of
from xrl.__main__ import main
from xrl.common.config import load_config
from xrl.common.errors import ConfigError
from xrl.methods import METHODS
from xrl.player.app import answer, describe
from xrl.player.session import DreamSession, load_player
from xrl.runners import doctor as doctor_module
from xrl.runners import profile as profile_module


@pytest.fixture(scope="module", params=list(METHODS))
def method(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def run(method, tmp_path_factory) -> Path:
    """The folder of a finished run, a benchmark."""
    with watched_environments():
        return xrl.get_runner(method, *task_of(method), model_dir=str(tmp_path_factory.mktemp(method)),
                              **quick(method)).benchmark()


@pytest.fixture(autouse=True)
def one_thread():
    with watched_environments():
        yield


def words_of(method: str, folder: Path | None = None) -> list[str]:
    env, env_id = task_of(method)
    keys = quick(method) if folder is None else {"test_episode": 1, "model_dir": str(folder)}
    return ["--method", method, "--env", env, "--env-id", env_id, *(f"{key}={json.dumps(value)}"
                                                                    for key, value in keys.items())]


def test_test_plays_its_model(method, run, capsys):
    assert main(["test", *words_of(method, run.parents[2])]) == 0
    assert "1 episodes, mean" in capsys.readouterr().out


def test_config_lists_every_key(method, capsys):
    assert main(["config", *words_of(method)]) == 0
    shown = capsys.readouterr().out
    assert "running_steps" in shown and all(key.rpartition(".")[2] in shown for key in quick(method))


def test_profile_times_its_parts(method, monkeypatch, capsys):
    monkeypatch.setattr(profile_module, "PEAK_SIZE", {"cpu": 16})
    monkeypatch.setattr(profile_module, "PEAK_SECONDS", 0.0)
    assert main(["profile", *words_of(method)]) == 0
    table = capsys.readouterr().out
    assert all(part in table for part in ("environment step", "policy", "update"))
    assert f"{method} in {task_of(method)[1]}" in table


def test_the_doctor_takes_a_gradient_step(method, tmp_path):
    config = load_config(method, *task_of(method), overrides=quick(method, model_dir=str(tmp_path))).config
    finding = doctor_module._gradient_step(config)
    assert finding.status == "ok" and finding.found.startswith(f"{method}, tiny networks")
    assert doctor_module._replay(config).status in ("ok", "note")


def test_several_methods_are_compared_in_one_picture_and_one_table(run, method, tmp_path, capsys):
    assert main(["compare", str(run.parents[2]), "--out", str(tmp_path / "all.png"), "--threshold=-1e9"]) == 0
    table = capsys.readouterr().out
    assert method in table and "1 of 1" in table and (tmp_path / "all.md").read_text() in table
    records_of = [record for record in records(run / "metrics.jsonl") if "eval/return" in record]
    assert all(record["time/wall"] > 0 for record in records_of)


def test_the_report_is_one_page_of_what_there_is(method, run, tmp_path, capsys):
    assert main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert method in page and "</html>" in page
    assert ("Health of the world model" in page) == dreams(method)
    assert f"{method} has no world model" in page or dreams(method)


def test_a_run_is_plotted(run, tmp_path):
    assert main(["plot", str(run), "--out", str(tmp_path / "curve.png")]) == 0
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_what_a_run_says_of_its_world_model_it_has(method, run):
    keys = set().union(*records(run / "metrics.jsonl"))
    assert {"eval/return", "time/fps", "time/update"} <= keys
    assert any(key.startswith("health/") for key in keys) == dreams(method) == (run / "health.jsonl").is_file()


def test_dream_opens_a_world_model_and_refuses_what_has_none(method, run):
    if dreams(method):
        player = load_player(run)
        session = DreamSession(player, seed=1)
        assert describe(session)["method"] == method and "reward" in describe(session)["reward"]
        assert answer(session, '{"do": "new"}')
        action = 0 if session.buttons else [0.0] * session.spec.size
        assert answer(session, json.dumps({"do": "step", "action": action, "real": True}))
        session.close()
        player.close()
    else:
        with pytest.raises(ConfigError, match=f"{method} has no world model"):
            load_player(run)


def test_checkpoints_are_listed(run, capsys):
    assert main(["checkpoints", str(run)]) == 0
    assert "step" in capsys.readouterr().out
