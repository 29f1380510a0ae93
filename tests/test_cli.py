"""The command line: real for ``config``, with a recording runner for the commands that run one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import xrl
from xrl.__main__ import main
from xrl.common.errors import NumericalError

CATCH = ["--method", "DreamerV2", "--env", "toy", "--env-id", "Catch-v0"]


class Recorder:
    """Stands for the runner: notes how it was made and what was called; may raise instead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[dict] = []
        self.called: list = []
        self.error: BaseException | None = None
        monkeypatch.setattr("xrl.runners.runner.make_runner", self._make)

    def _make(self, resolved, is_test):
        self.made.append({"is_test": is_test, "said": resolved.said()})
        return self

    def run(self, mode):
        self._call(mode)

    def profile(self, json_path):
        self._call(("profile", json_path))

    def _call(self, what):
        self.called.append(what)
        if self.error is not None:
            raise self.error


@pytest.fixture
def runner(monkeypatch):
    return Recorder(monkeypatch)


@pytest.mark.parametrize(("command", "is_test", "called"), [
    ("train", False, "train"), ("test", True, "test"), ("benchmark", False, "benchmark"),
    ("profile", False, ("profile", None))])
def test_commands_reach_the_runner_with_their_overrides(runner, command, is_test, called):
    assert main([command, *CATCH, "running_steps=1e6", "actor.entropy=1e-3", "log_dir=null"]) == 0
    assert runner.made == [{"is_test": is_test, "said": {
        "method": "DreamerV2", "env_name": "toy", "env_id": "Catch-v0", "running_steps": 1_000_000,
        "actor.entropy": 1e-3, "log_dir": None}}]
    assert runner.called == [called]


def test_overrides_may_stand_anywhere(runner):
    assert main(["train", "seed=3", "--method", "DreamerV2", "gamma=0.9", "--env", "toy", "--env-id=Catch-v0",
                 "fps=5"]) == 0
    said = runner.made[0]["said"]
    assert (said["seed"], said["gamma"], said["fps"], said["env_id"]) == (3, 0.9, 5, "Catch-v0")


def test_json_belongs_to_profile(runner, capsys):
    assert main(["profile", *CATCH, "--json", "a/table.json"]) == 0
    assert runner.called == [("profile", "a/table.json")]
    assert main(["train", *CATCH, "--json", "a/table.json"]) == 2
    assert capsys.readouterr().err == (
        "xrl: error: command line: --json: train has no use for it; it belongs to profile\n")
    assert len(runner.made) == 1


def test_config_prints_values_origins_and_meanings_and_runs_nothing(runner, capsys):
    assert main(["config", *CATCH, "seed=3"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "seed 3 command line - seed of networks, sampling and policy" in lines
    assert runner.made == []


@pytest.mark.parametrize(("arguments", "message"), [
    ([*CATCH, "sed=3"], "xrl: error: command line: sed: unknown key (value 3). Did you mean 'seed'?\n"),
    ([*CATCH, "seed"], "xrl: error: command line: 'seed' must look like key=value\n"),
    (["--method", "DreamerV3x"], "xrl: error: command line: method: unknown method 'DreamerV3x'. "
                                 "Did you mean 'DreamerV2'? Known methods: DreamerV2\n"),
])
@pytest.mark.parametrize("command", ["train", "config"])
def test_mistakes_are_one_line_and_exit_code_2_before_anything_runs(runner, capsys, command, arguments, message):
    assert main([command, *arguments]) == 2
    assert capsys.readouterr() == ("", message)
    assert runner.made == []


def test_mistake_in_a_file_names_the_file(tmp_path, capsys):
    path = tmp_path / "my.yaml"
    path.write_text("parallels: 0\n")
    assert main(["train", *CATCH, "--config", str(path)]) == 2
    assert capsys.readouterr().err == f"xrl: error: {path}: parallels: must be greater than or equal to 1 (value 0).\n"


def test_errors_of_a_run_are_one_line_too(runner, capsys):
    runner.error = NumericalError("model/kl is NaN")
    assert main(["train", *CATCH]) == 2
    assert capsys.readouterr().err == "xrl: error: model/kl is NaN\n"


def test_bugs_keep_their_traceback(runner):
    runner.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        main(["train", *CATCH])


def test_interrupt_exits_with_130(runner, capsys):
    runner.error = KeyboardInterrupt()
    assert main(["train", *CATCH]) == 130
    assert capsys.readouterr().err == "xrl: interrupted\n"


@pytest.mark.parametrize("arguments", [[], ["trian"], ["train", "--methd", "x"], ["train", "--seed=3"]])
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: xrl" in capsys.readouterr().err


@pytest.fixture
def clean_imports(monkeypatch):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", os.getcwd())])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("my_cli_"):
            del sys.modules[name]


def test_import_finds_a_module_in_the_current_folder_before_the_config_resolves(tmp_path, monkeypatch, capsys,
                                                                                clean_imports):
    (tmp_path / "my_cli_module.py").write_text(
        "from xrl.methods import METHODS\nMETHODS['CliNew'] = METHODS['DreamerV2']\n")
    monkeypatch.chdir(tmp_path)
    try:
        assert main(["config", "--import", "my_cli_module", "--method", "clinew", "--env", "a", "--env-id", "b"]) == 0
    finally:
        xrl.METHODS.pop("CliNew", None)
    assert "CliNew" in capsys.readouterr().out


def test_import_of_a_missing_module_is_a_mistake(tmp_path, monkeypatch, capsys, clean_imports):
    monkeypatch.chdir(tmp_path)
    assert main(["config", "--import", "my_cli_nothing.py"]) == 2
    assert "--import: no module named 'my_cli_nothing.py'" in capsys.readouterr().err


def test_import_of_a_module_that_lacks_something_shows_where(tmp_path, monkeypatch, clean_imports):
    (tmp_path / "my_cli_broken.py").write_text("import my_cli_absent\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="my_cli_absent"):
        main(["config", "--import", "my_cli_broken"])


def test_python_dash_m_is_the_same_program():
    done = subprocess.run([sys.executable, "-m", "xrl", "config", *CATCH, "sed=3"], capture_output=True, text=True,
                          check=False, cwd=Path(__file__).parent.parent)
    assert done.returncode == 2
    assert done.stderr.endswith("Did you mean 'seed'?\n") and done.stderr.count("\n") == 1
