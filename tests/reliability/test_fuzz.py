"""The short fuzzing run; and that the fuzzer would notice."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def fuzz(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module("fuzz")
    for name in [path.stem for path in BENCHMARKS.glob("*.py")]:
        sys.modules.pop(name, None)


def test_mutated_configs_and_checkpoints_load_or_are_refused(tmp_path):
    command = [sys.executable, "benchmarks/fuzz.py", "--configs", "150", "--checkpoints", "40", "--output",
               str(tmp_path / "fuzz.json")]
    done = subprocess.run(command, cwd=BENCHMARKS.parent, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "fuzz.json").read_text())
    for name, count in (("configs", 150), ("checkpoints", 40)):
        part = record[name]
        assert part["tried"] == sum(part["outcomes"].values()) == count
        assert part["outcomes"]["refused"] > 0
        assert part["findings"] == []
    assert record["configs"]["outcomes"]["loaded"] > 0
    assert any(outcome.startswith("went on") for outcome in record["checkpoints"]["outcomes"])


def misbehave(how):
    if how == "hangs":
        time.sleep(60)
    if how == "crashes":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "eats memory":
        bytearray(2**33)
    if how == "raises":
        raise KeyError("nobody caught this")
    return {"kind": "good", "outcome": "loaded"}


def test_the_children_are_watched(fuzz, monkeypatch):
    monkeypatch.setattr(fuzz, "HUNG", 0.5)
    items = ["good", "raises", "hangs", "good", "crashes", "eats memory", "good"]
    results = fuzz.in_children(misbehave, items, 500)
    assert [result["outcome"] for result in results] == [
        "loaded", "TRACEBACK", "HUNG", "loaded", "CRASHED THE PROCESS", "TRACEBACK", "loaded"]
    assert "nobody caught this" in results[1]["message"] and "MemoryError" in results[5]["message"]
    assert len(fuzz.summary(results)["findings"]) == 4


@pytest.mark.parametrize(("message", "outcome"), [
    ("x.yaml: seed: must be 1", None), ("x.yaml: a\nb", "MESSAGE NOT OF ONE LINE"),
    ("seed: must be 1", "MESSAGE WITHOUT THE FILE"), ("x.yaml " + "a" * 2000, "MESSAGE TOO LONG")])
def test_a_message_that_helps_nobody_is_a_finding(fuzz, message, outcome):
    assert fuzz.complaint(message, Path("x.yaml")).get("outcome") == outcome


def test_what_is_tried_depends_on_the_seed_alone(fuzz, tmp_path):
    mutants = fuzz.mutants
    strategy = mutants.configs(fuzz.base_configs(), tmp_path / "canary")
    first, again, other = (mutants.collect(strategy, 30, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len({text for _, text in first}) > 20


def test_the_canary_dies_where_yaml_is_read_carelessly(fuzz, tmp_path):
    import yaml

    canary = tmp_path / "canary"
    yaml.load(f"a: {fuzz.mutants.snippets(canary)[0]}", Loader=yaml.UnsafeLoader)
    assert canary.exists()
    canary.unlink()
    import pickle
    pickle.loads(fuzz.mutants.pickle_of(canary))
    assert canary.exists()
