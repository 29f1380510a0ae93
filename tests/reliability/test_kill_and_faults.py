"""The kill test and the fault table in short; the scripts would notice a difference."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module
    for name in [path.stem for path in BENCHMARKS.glob("*.py")]:
        sys.modules.pop(name, None)


def test_a_killed_run_ends_as_the_undisturbed_one_and_a_difference_is_seen(script, monkeypatch, tmp_path):
    kill = script("kill")
    words = ["--env", "classic_control", "--env-id", "CartPole-v1", *kill.TINY, "running_steps=120", "logger=none"]
    monkeypatch.setitem(kill.CASES, "CartPole", words)
    run = kill.train("CartPole", tmp_path)
    expected = kill.outcome(run)
    found = kill.trial("CartPole", expected, 1.0, 0, 0.3, False)
    assert found["different"] == {} and found["notes"]

    for number, (path, changed) in enumerate([("checkpoints/*/state.safetensors", {"parameters", "state"}),
                                              ("replay/rows_*", {"replay"})]):
        other = Path(shutil.copytree(run, tmp_path / f"other_{number}"))
        file = sorted(other.glob(path))[-1]
        arrays = load_file(file)
        name = max(arrays, key=lambda key: ("agent/policy" in key or key == "reward", key))
        arrays[name] = np.nextafter(arrays[name], np.float32(9))
        save_file(arrays, file)
        got = kill.outcome(other)
        assert {key for key in expected if got[key] != expected[key]} == changed


def test_an_environment_that_raises_costs_one_episode(script, tmp_path):
    faults = script("faults")
    found = faults.environment(tmp_path, "raises", "sync")
    assert found["ok"], json.dumps(found)
    assert found["exit_code"] == 0
