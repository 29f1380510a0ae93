"""Every YAML file that ships runs, at toy size, through the public API."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import xrl
import xrl.configs
from tests.agents.examples import watched_environments
from xrl.common.config import load_config
from xrl.common.config_keys import flatten
from xrl.common.files import read_metadata
from xrl.methods import METHODS

ROOT = Path(next(iter(xrl.configs.__path__)))
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.yaml"))

# An environment for the files that name a family only; "default" is for the families without a file.
EXAMPLES = {"atari": ("atari", "ALE/Pong-v5"), "default": ("classic_control", "MountainCar-v0")}
# Sizes that no test can afford, as the debug preset has them; everything else is the file's.
TOY = {"running_steps": 60, "start_training": 30, "eval_interval": 30, "test_episode": 1, "buffer_size": 500,
       "pretrain": 1, "train_every": 15, "batch_size": 2, "seq_len": 6, "horizon": 3, "log_interval": 20,
       "replay.min_length": 8, "imagination.starts": 4, "environment.time_limit": 15, "device": "cpu",
       "world_model.rssm.deter": 8, "world_model.rssm.hidden": 8, "world_model.rssm.stoch": 4,
       "world_model.rssm.classes": 4, "world_model.conv.depth": 2, "world_model.encoder.units": 8,
       "world_model.decoder.units": 8, "world_model.reward.units": 8, "world_model.discount.units": 8,
       "actor.units": 8, "critic.units": 8}


def method_of(file: Path) -> str:
    return next(name for name in METHODS if METHODS[name].configs == file.parts[0])


def environment_of(file: Path) -> tuple[str, str]:
    if len(file.parts) == 3 and file.parts[1] != "presets":
        return file.parts[1], {"Pong-v5": "ALE/Pong-v5"}.get(file.stem, file.stem)
    return EXAMPLES.get(file.stem, ("toy", "Catch-v0"))


def run(file: Path, model_dir: Path, **keys):
    """A run in which ``file`` takes part; returns the run's folder and configuration."""
    env, env_id = environment_of(file)
    preset = {"preset": file.stem} if file.parts[1] == "presets" else {}
    with watched_environments():  # for its one thread
        runner = xrl.get_runner(method_of(file), env, env_id, model_dir=str(model_dir), **{**TOY, **preset, **keys})
        assert set(runner.resolved.origins.values()) & {file.as_posix(), f"preset {file.stem}"}
        return runner.run(), runner.config


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_shipped_file_trains_evaluates_saves_and_plays(file, tmp_path):
    folder, config = run(file, tmp_path)
    counters = read_metadata(folder / "final_train_model.pth")["counters"]
    assert counters["agent_steps"] == 60 and counters["updates"] >= 3
    assert counters["frames"] == 60 * config.environment.action_repeat
    assert (folder / "best_model.pth").is_file()
    # What the file says and this test does not is what the run had.
    ran = flatten(load_config(config_path=folder / "config.yaml").config)
    for key, value in flat(yaml.safe_load((ROOT / file).read_text())).items():
        if key not in TOY:
            assert ran[key] == (tuple(value) if isinstance(value, list) else type(ran[key])(value)), key
    env, env_id = environment_of(file)
    with watched_environments():
        scores = xrl.get_runner(method_of(file), env, env_id, is_test=True, model_dir=str(tmp_path),
                                test_episode=1).run()
    assert len(scores) == 1


def test_pong_has_every_piece_of_the_atari_pipeline(tmp_path):
    """Colour, sticky actions and all 18 actions are one key each; the window of the paper's preset is Atari's."""
    folder, config = run(Path("dreamer_v2/atari.yaml"), tmp_path, preset="paper", **{"environment.grayscale": False})
    spaces = read_metadata(folder / "final_train_model.pth")["spaces"]
    assert spaces == {"observation": {"image": ["image", [64, 64, 3]]}, "action": ["discrete", 18]}
    assert config.environment.full_action_space and config.actor.advantage == "centered"


def flat(tree: dict, prefix: str = "") -> dict:
    found = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found
