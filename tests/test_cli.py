"""The command line: real for ``config``, with a recording runner for the commands that run one."""

import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import xrl
from xrl.__main__ import _parser, main
from xrl.common.errors import NumericalError
from xrl.common.registry import load

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


# Every command, down to the function that does it -----------------------------------------------------------------

PATHS = ["train", "test", "benchmark", "profile", "doctor", "config"]  # take key=value, and no path
FLAGS = {"--json": "a", "--seeds": "3", "--jobs": "2", "--reference": "a", "--baselines": "a", "--games": "pong",
         "--frames": "1e6", "--out": "a", "--threshold": "a", "--panels": None, "--port": "80", "--host": "h",
         "--open": None, "--resume": "a", "--method": "DreamerV2", "--env": "toy", "--env-id": "x", "--config": "a"}
MEANT = {  # what no command but these has a use for
    "--json": {"profile"}, "--seeds": {"benchmark", "reproduce"}, "--jobs": {"benchmark", "reproduce"},
    "--reference": {"benchmark", "reproduce", "plot"}, "--baselines": {"benchmark", "reproduce"},
    "--games": {"reproduce"}, "--frames": {"reproduce"}, "--out": {"report", "plot", "compare"},
    "--threshold": {"compare"}, "--panels": {"plot"},
    "--port": {"dream"}, "--host": {"dream"}, "--open": {"dream"}, "--resume": {"train", "benchmark"},
    **{flag: {"train", "test", "benchmark", "profile", "doctor", "config"}
       for flag in ("--method", "--env", "--env-id", "--config")}}
COMMANDS = [*PATHS, "reproduce", "report", "dream", "plot", "checkpoints", "replay-crash", "methods", "compare"]


class Loaded:
    """Stands for what the command line loads: notes target and arguments, returns ``answer``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.called: list = []
        self.answer: object = "the answer"
        monkeypatch.setattr("xrl.__main__.load", self._load)

    def _load(self, target):
        real = inspect.signature(load(target))

        def call(*arguments, **keywords):
            real.bind(*arguments, **keywords)  # it takes them
            self.called.append((target, arguments, keywords))
            return self.answer

        return call


@pytest.fixture
def loaded(monkeypatch):
    return Loaded(monkeypatch)


@pytest.mark.parametrize(("words", "target", "arguments", "keywords"), [
    (["report", "RUN"], "xrl.report.html:write_report", ("RUN", None), {}),
    (["report", "RUN", "--out", "a.html"], "xrl.report.html:write_report", ("RUN", Path("a.html")), {}),
    (["dream", "RUN"], "xrl.player.server:serve", ("RUN", "127.0.0.1", 0), {"open_browser": False}),
    (["dream", "RUN", "--port", "8123", "--host", "0.0.0.0", "--open"], "xrl.player.server:serve",
     ("RUN", "0.0.0.0", 8123), {"open_browser": True}),
    (["plot", "RUN"], "xrl.report.plot:plot", ("RUN",), {"reference": None, "out": "curves.png", "panels": False}),
    (["plot", "A", "B", "--reference", "r.json", "--out", "c.svg", "--panels"], "xrl.report.plot:plot", ("A", "B"),
     {"reference": "r.json", "out": "c.svg", "panels": True}),
    (["compare", "A", "B"], "xrl.report.compare:compare", ("A", "B"), {"threshold": None, "out": "comparison.png"}),
    (["compare", "A", "--threshold", "t=-2", "--out", "c.pdf"], "xrl.report.compare:compare", ("A",),
     {"threshold": "t=-2", "out": "c.pdf"}),
    (["checkpoints", "RUN"], "xrl.runners.resume:describe_checkpoints", ("RUN",), {}),
    (["methods"], "xrl.common.catalogue:describe_methods", (), {}),
])
def test_a_command_calls_its_function_and_prints_what_it_says(loaded, capsys, words, target, arguments, keywords):
    assert main(words) == 0
    assert loaded.called == [(target, arguments, keywords)]
    assert capsys.readouterr().out == ("" if words[0] == "dream" else "the answer\n")


def test_doctor_is_given_the_planned_run_and_gives_the_exit_code(loaded):
    for loaded.answer in (0, 1):
        assert main(["doctor", *CATCH, "parallels=4"]) == loaded.answer
    assert loaded.called[0] == ("xrl.runners.doctor:run_doctor", ("DreamerV2", "toy", "Catch-v0", None,
                                                                  ["parallels=4"]), {})
    assert main(["doctor"]) == 1 and loaded.called[-1][1] == (None, None, None, None, [])


@pytest.mark.parametrize(("failed", "code"), [([], 0), (["pong"], 1)])
def test_reproduce_is_given_its_set_and_fails_where_a_game_does(loaded, failed, code):
    loaded.answer = SimpleNamespace(failed=failed)
    assert main(["reproduce", "atari-dreamerv2", "device=cpu", "--games", "pong,boxing", "--seeds", "3", "--reference",
                 "a.json", "--frames", "1e6", "--jobs", "2", "--baselines", "b.json"]) == code
    assert loaded.called == [("xrl.runners.reproduce:reproduce", (
        "atari-dreamerv2", "pong,boxing", 3, "a.json", 1e6, "b.json", ["device=cpu"]), {"jobs": 2})]


@pytest.mark.parametrize("left_out", ["--games", "--seeds", "--reference"])
def test_reproduce_asks_for_what_it_needs(loaded, capsys, left_out):
    given = {"--games": "pong", "--seeds": "3", "--reference": "a.json"}
    words = [word for flag, value in given.items() if flag != left_out for word in (flag, value)]
    assert main(["reproduce", "atari-dreamerv2", *words]) == 2
    assert f"reproduce: needs {left_out}; for instance: xrl reproduce" in capsys.readouterr().err
    assert loaded.called == []


@pytest.mark.parametrize("words", [[], ["device=cpu"]])
def test_reproduce_asks_for_the_name_of_its_set(loaded, capsys, words):
    assert main(["reproduce", *words, "--games", "pong", "--seeds", "3", "--reference", "a"]) == 2
    assert "needs the name of a published set first" in capsys.readouterr().err and loaded.called == []


def test_a_benchmark_of_several_seeds(loaded, monkeypatch, clean_imports, tmp_path):
    (tmp_path / "my_cli_seeds.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", *CATCH, "fps=5", "--seeds", "3", "--jobs", "2", "--reference", "r.json",
                 "--baselines", "b.json", "--import", "my_cli_seeds"]) == 0
    ((target, (resolved, seeds), keywords),) = loaded.called
    assert (target, seeds) == ("xrl.runners.benchmark:run_benchmark", 3) and resolved.config.fps == 5
    assert keywords == {"modules": ("my_cli_seeds",), "jobs": 2, "reference": Path("r.json"),
                        "baselines": Path("b.json")}
    assert main(["benchmark", *CATCH, "--seeds", "1"]) == 0
    assert loaded.called[-1][2] == {"modules": (), "jobs": None, "reference": None, "baselines": None}


@pytest.mark.parametrize(("words", "message"), [
    (["--jobs", "2"], "--jobs: belongs to several seeds; give --seeds too"),
    (["--reference", "a"], "--reference: belongs to several seeds; give --seeds too"),
    (["--seeds", "3", "--resume"], "--resume: a benchmark of several seeds goes on by itself; leave it out")])
def test_flags_of_several_seeds_belong_together(loaded, capsys, words, message):
    assert main(["benchmark", *CATCH, *words]) == 2
    assert message in capsys.readouterr().err and loaded.called == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_flag_of_another_command_is_refused_by_name(loaded, capsys, command):
    paths = [] if command in PATHS else ["RUN"]
    for flag, value in FLAGS.items():
        if command in MEANT[flag]:
            continue
        assert main([command, *paths, flag, *([value] if value else [])]) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"xrl: error: command line: {flag}: {command} has no use for it; it belongs to "), flag
        users = told.strip().rpartition("belongs to ")[2].replace(" and ", ", ")
        assert set(users.split(", ")) == MEANT[flag]
    assert loaded.called == []


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_of_its_own(loaded, capsys, command):
    """With its flags and no others, and an example that the parser takes."""
    assert main([command, "--help"]) == 0
    told = capsys.readouterr().out
    assert {flag for flag in FLAGS if f" {flag} " in told.partition("options:")[2]} == {
        flag for flag in FLAGS if command in MEANT[flag]}
    example = next(line for line in told.splitlines() if line.startswith("example: xrl "))
    assert _parser().parse_intermixed_args(example.split()[2:]).command == command
    assert loaded.called == []


def test_no_command_is_told_how_to_get_help(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().err.endswith("xrl: error: name a command; `xrl --help` lists them\n")


def test_a_path_is_no_key(loaded, capsys):
    assert main(["report", "seed=3"]) == 2
    assert "report: 'seed=3' is no path; report takes no keys" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["report", "dream", "checkpoints", "replay-crash"])
@pytest.mark.parametrize("words", [[], ["A", "B"]])
def test_commands_of_one_path_want_exactly_one(loaded, capsys, command, words):
    assert main([command, *words]) == 2
    told = capsys.readouterr().err
    assert f"{command}: needs one PATH, a" in told or f"{command}: needs one PATH, the" in told
    assert told.endswith(f", and got {len(words)}\n") and told.count("\n") == 1 and loaded.called == []


def test_a_plot_wants_at_least_one(loaded, capsys):
    assert main(["plot"]) == 2
    assert "plot: needs at least one PATH, a run, a folder of runs or a file of scores, and got 0" in (
        capsys.readouterr().err)


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    told = capsys.readouterr().out
    assert caught.value.code == 0 and all(f"\n  {command} " in told for command in COMMANDS)


def test_config_prints_values_origins_and_meanings_and_runs_nothing(runner, capsys):
    assert main(["config", *CATCH, "seed=3"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "seed 3 command line - seed of networks, sampling and policy" in lines
    assert runner.made == []


@pytest.mark.parametrize(("arguments", "message"), [
    ([*CATCH, "sed=3"], "xrl: error: command line: sed: unknown key (value 3). Did you mean 'seed'?\n"),
    ([*CATCH, "seed"], "xrl: error: command line: 'seed' must look like key=value\n"),
    (["--method", "DreamerV2x"], "xrl: error: command line: method: unknown method 'DreamerV2x'. "
                                 f"Did you mean 'DreamerV2'? Known methods: {', '.join(xrl.METHODS)}\n"),
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
