"""Every YAML file that ships, of whichever method, runs at the size of the method's debug preset, through the public
API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import xrl
from tests.agents.examples import watched_environments
from tests.methods import CONFIGS, example_of, missing, quick, task_of
from xrl.common.config import load_config
from xrl.common.config_files import read_yaml
from xrl.common.config_keys import flatten, make_layer
from xrl.common.errors import ConfigError
from xrl.common.files import read_metadata
from xrl.common.registry import load
from xrl.environment import make_envs
from xrl.methods import METHODS

FILES = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml"))

SLOW = ("CarRacing-v3", "walker_walk")  # a picture takes them 10 to 20 ms


def method_of(file: Path) -> str:
    return next(name for name in METHODS if METHODS[name].configs == file.parts[0])


def environment_of(file: Path) -> tuple[str, str]:
    method, family = method_of(file), file.parts[1]
    if family == "presets":
        return task_of(method)
    if len(file.parts) == 3:
        return family, file.stem.replace("ALE-", "ALE/")
    return example_of(method, file.stem)


def said(file: Path) -> dict[str, Any]:
    """What the file says, as a configuration has it."""
    values = make_layer(str(file), read_yaml(CONFIGS / file), load(METHODS[method_of(file)].schema)).values
    names = {"method": method_of(file), "env_name": "-", "env_id": "-"}
    config = flatten(load_config(overrides={**names, **values}).config)
    return {key: config[key] for key in values}


def run(file: Path, model_dir: Path, **keys: Any) -> tuple[Path, Any]:
    """A run in which ``file`` takes part; returns the run's folder and configuration."""
    method, (env, env_id) = method_of(file), environment_of(file)
    preset = {"preset": file.stem} if file.parts[1] == "presets" else {}
    if env_id in SLOW:
        keys = {"running_steps": 60, **keys}
    with watched_environments():  # for its one thread
        runner = xrl.get_runner(method, env, env_id, model_dir=str(model_dir), **quick(method, **preset, **keys))
        labels = {file.as_posix(), f"preset {file.stem}"}
        assert labels & {*runner.resolved.origins.values()} or said(file).keys() <= quick(method).keys()
        return runner.run(), runner.config


@pytest.mark.parametrize("method", METHODS)
def test_every_method_ships_a_debug_preset_and_something_to_run(method):
    own = [file for file in FILES if file.parts[0] == METHODS[method].configs]
    assert Path(METHODS[method].configs, "presets", "debug.yaml") in own and len(own) > 1


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_shipped_file_trains_evaluates_saves_and_plays(file, tmp_path):
    method, (env, env_id) = method_of(file), environment_of(file)
    if module := missing(env):
        pytest.skip(f"{module}, which environments of {env} need, is not installed")
    if reason := undrawable(file):
        pytest.skip(reason)
    folder, config = run(file, tmp_path)
    counters = read_metadata(folder / "final_train_model.pth")["counters"]
    assert 0 <= counters["agent_steps"] - config.running_steps < config.parallels and counters["updates"] >= 1
    assert counters["frames"] == counters["agent_steps"] * config.environment.action_repeat
    assert (folder / "best_model.pth").is_file()
    # What the file says and this test does not is what the run had.
    ran = flatten(load_config(config_path=folder / "config.yaml").config)
    for key, value in said(file).items():
        if key not in quick(method):
            assert ran[key] == value, key
    with watched_environments():
        scores = xrl.get_runner(method, env, env_id, is_test=True, model_dir=str(tmp_path), test_episode=1).run()
    assert len(scores) == 1


def undrawable(file: Path) -> str | None:
    """Why this machine cannot draw the pictures that the file asks for."""
    config = load_config(method_of(file), *environment_of(file)).config
    if config.env_name != "dmc":
        return None
    try:
        make_envs(config, parallels=1).close()
    except ConfigError as error:
        return str(error) if "MUJOCO_GL" in str(error) else None
    return None


def test_pong_has_every_piece_of_the_atari_pipeline(tmp_path):
    """Colour, sticky actions and all 18 actions are one key each; the window of the paper's preset is Atari's."""
    folder, config = run(Path("dreamer_v2/atari.yaml"), tmp_path, preset="paper", **{"environment.grayscale": False})
    spaces = read_metadata(folder / "final_train_model.pth")["spaces"]
    assert spaces == {"observation": {"image": ["image", [64, 64, 3]]}, "action": ["discrete", 18]}
    assert config.environment.full_action_space and config.actor.advantage == "centered"
