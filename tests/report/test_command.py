"""The command that repeats a run: it must resolve to the very configuration."""

from __future__ import annotations

import shlex

import pytest

from xrl.common.config import load_config
from xrl.common.config_files import parse_assignments
from xrl.report.command import assignment, differing, imported, repeat_command, run_commands

CARTPOLE = ("DreamerV2", "classic_control", "CartPole-v1")


def again(line: str) -> object:
    program, command, *rest = shlex.split(line)
    assert (program, command) == ("xrl", "train")
    assert rest[::2][:3] == ["--method", "--env", "--env-id"]
    return load_config(rest[1], rest[3], rest[5], overrides=rest[6:]).config


@pytest.mark.parametrize(("names", "keys"), [
    (CARTPOLE, {}),
    (CARTPOLE, {"preset": "debug", "seed": 7}),
    (CARTPOLE, {"preset": "paper", "gamma": 0.5}),
    (CARTPOLE, {"env_kwargs": {"text": "it's; rm -rf ~", "deep": {"a": [1, None, True]}}}),
    (CARTPOLE, {"log_dir": "null", "model_dir": "a b $HOME\n'c'", "project_name": "1e5"}),
    (CARTPOLE, {"compile": "on", "deterministic": False, "checkpoint_every": "2.5min", "model_opt.lr": 1e-7}),
    (("DreamerV2", "atari", "ALE/Pong-v5"), {"running_steps": 10**6, "world_model.rssm.deter": 32}),
    (("DreamerV2", "gymnasium", "my/Env-v0 <&>"), {"preset": "official", "vectorize": "async", "parallels": 4}),
])
def test_it_resolves_to_the_same_configuration(names, keys):
    config = load_config(*names, overrides=keys).config
    assert again(repeat_command(config)) == config


def test_it_names_what_differs_and_nothing_else():
    config = load_config(*CARTPOLE, overrides={"seed": 7, "gamma": 0.995, "preset": "debug"}).config  # gamma: shipped
    assert differing(config) == {"preset": "debug", "seed": 7}
    assert repeat_command(config) == ("xrl train --method DreamerV2 --env classic_control --env-id CartPole-v1 "
                                      "preset=debug seed=7")


@pytest.mark.parametrize(("words", "modules"), [
    (["xrl", "train", "--import", "mine.envs", "seed=1"], ["mine.envs"]), (["xrl", "train", "--import=mine"], ["mine"]),
    (["python", "script.py"], []), (["xrl", "train", "--import"], []), ([], [])])
def test_modules_of_ones_own_are_imported_again(tmp_path, words, modules):
    imports = imported(words)
    line = shlex.split(repeat_command(load_config(*CARTPOLE).config, "train", imports))
    assert line[2:4] == (["--import", *modules] if modules else ["--method", "DreamerV2"])
    lines = [shlex.split(line) for _, line in run_commands(tmp_path, {"method": "M"}, imports)]
    assert [("--import" in line) for line in lines] == [bool(modules)] * 3 + [False]  # the report needs none


def test_a_benchmark_is_repeated_as_one():
    assert repeat_command(load_config(*CARTPOLE).config, "benchmark").startswith("xrl benchmark --method")


@pytest.mark.parametrize("value", ["on", "yes", "1e5", "", " x ", "a: b", "null", "[", "#", "x # y", "'", '"', "é\n\t",
                                   None, True, 1e-9, [1, "on"], {"a": {"b": "null"}}])
def test_an_assignment_is_read_back(value):
    assert parse_assignments([assignment("key", value)]) == [("key", value)]


def test_what_can_be_done_with_a_run(tmp_path):
    folder = tmp_path / "it's a run"
    config = {"method": "M", "env_name": "e", "env_id": "x", "model_dir": "m"}
    lines = [line for _, line in run_commands(folder, config)]
    assert [shlex.split(line) for line in lines] == [
        ["xrl", "train", "--resume", str(folder)], ["xrl", "dream", str(folder)],
        ["xrl", "test", "--method", "M", "--env", "e", "--env-id", "x", "model_dir=m"], ["xrl", "report", str(folder)]]
