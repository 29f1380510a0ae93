"""One run, one folder, and which model is meant by a place."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from xrl.common.errors import ModelFileError
from xrl.common.run_folder import experiment_name, find_model, new_run_folder
from xrl.configs.schemas.base import RunConfig


def config(**keys) -> RunConfig:
    return RunConfig(**{"method": "DreamerV2", "env_name": "atari", "env_id": "ALE/Pong-v5"} | keys)


def put(path: Path, seconds: float) -> Path:
    """A model file of that age: larger is newer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (seconds, seconds))
    return path


def test_the_name_of_a_run(tmp_path):
    folder = new_run_folder(config(seed=7, model_dir=str(tmp_path / "m")))
    assert folder.parent == tmp_path / "m/DreamerV2/ALE-Pong-v5" and folder.is_dir()
    assert re.fullmatch(r"seed_7_\d{8}-\d{6}", folder.name)
    assert experiment_name(config(env_id="a/b/c-v0")) == Path("DreamerV2/a-b-c-v0")


def test_runs_within_one_second_are_kept_apart(tmp_path, monkeypatch):
    monkeypatch.setattr("xrl.common.run_folder.time.strftime", lambda form: "20300101-000000")
    folders = [new_run_folder(config(model_dir=str(tmp_path))) for _ in range(3)]
    assert [folder.name for folder in folders] == ["seed_1_20300101-000000" + end for end in ("", "-1", "-2")]


def test_a_file_is_itself_whatever_its_name(tmp_path):
    assert find_model(put(tmp_path / "m.bin", 1)) == tmp_path / "m.bin"


def test_in_a_run_the_best_comes_before_the_final_one_whatever_their_age(tmp_path):
    put(tmp_path / "older.pth", 1)
    newer = put(tmp_path / "interrupted_model.pth", 9)
    assert find_model(tmp_path) == newer
    final = put(tmp_path / "final_train_model.pth", 5)
    assert find_model(tmp_path) == final
    best = put(tmp_path / "best_model.pth", 3)
    assert find_model(tmp_path) == best


def test_the_run_that_saved_last_is_the_newest(tmp_path):
    """Not the one whose name sorts last, and not one that has nothing yet."""
    put(tmp_path / "seed_9_20200101-000000/best_model.pth", 10)
    put(tmp_path / "seed_1_20300101-000000/best_model.pth", 20)
    put(tmp_path / "seed_1_20300101-000000/final_train_model.pth", 30)
    put(tmp_path / "seed_2_20300101-000000/interrupted_model.pth", 25)
    (tmp_path / "seed_3_20300101-000000").mkdir()
    assert find_model(tmp_path) == tmp_path / "seed_1_20300101-000000/best_model.pth"
    os.utime(tmp_path / "seed_2_20300101-000000/interrupted_model.pth", (40, 40))
    assert find_model(tmp_path).name == "interrupted_model.pth"


@pytest.mark.parametrize("empty", [True, False])
def test_no_model(tmp_path, empty):
    place = tmp_path / "there"
    if not empty:
        put(place / "run/config.yaml", 1)
        put(place / "run/.best_model.pth.123.tmp", 1)
    with pytest.raises(ModelFileError, match=f"^{place}: no saved model here; train one first"):
        find_model(place)


@pytest.mark.parametrize("ending", [".pth", ".pt", ".safetensors"])
def test_models_are_found_whatever_their_usual_ending(tmp_path, ending):
    model = put(tmp_path / "run" / f"mine{ending}", 1)
    put(tmp_path / "run" / "config.yaml", 2)
    assert find_model(tmp_path) == find_model(tmp_path / "run") == model
