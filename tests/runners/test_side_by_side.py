"""How a machine is shared among seeds, and which environments other processes can make."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.agents.examples import Watched, tiny
from xrl.common.config import as_config, save_config
from xrl.environment import REGISTRY_ENV, make_envs
from xrl.memory.memory_check import GIB
from xrl.runners import side_by_side as module
from xrl.runners.seed import Clock, entry_name
from xrl.runners.side_by_side import Child, Plan, elsewhere, last_line, memory_of_a_run, plan


@pytest.fixture
def machine(monkeypatch):
    def make(cores=8, memory=64, gpus=0):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
        monkeypatch.setattr(module, "available_memory", lambda: None if memory is None else int(memory * GIB))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr("xrl.agents.base.select_device",
                            lambda name: torch.device("cuda" if gpus and name != "cpu" else "cpu"))

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return make


@pytest.mark.parametrize(("cores", "memory", "left", "jobs", "expected"), [
    (8, 64, 5, None, Plan(5, 1)), (8, 64, 3, None, Plan(3, 2)), (2, 64, 5, None, Plan(2, 1)),
    (8, None, 5, None, Plan(5, 1)),
    (8, 9, 5, None, Plan(2, 4)),   # 90% of 9 GiB, at 4 GiB each
    (8, 1, 5, None, Plan(1, 8)),   # one in any case
    (8, 9, 5, 4, Plan(4, 2)),      # who names a number means it
    (2, 64, 5, 4, Plan(4, 1)), (8, 64, 2, 6, Plan(2, 4))])
def test_cores_and_memory_decide(machine, capsys, cores, memory, left, jobs, expected):
    machine(cores, memory)
    assert plan(as_config(tiny("models", "toy", "Catch-v0")), left, jobs, 4 * GIB) == expected
    said = "at a time, not 5: a run takes about 4.0 GiB of memory" in capsys.readouterr().out
    assert said == (memory in (1, 9) and jobs is None)


def test_who_names_a_number_of_threads_means_it(machine, monkeypatch):
    machine(8, 64)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert plan(as_config(tiny("models", "toy", "Catch-v0")), 2, None, GIB) == Plan(2, 1)


def test_gpus_take_one_seed_each(machine, monkeypatch):
    machine(gpus=3)
    config = as_config(tiny("models", "toy", "Catch-v0", device="auto"))
    assert plan(config, 5, None, GIB) == Plan(3, 2, ("0", "1", "2"))
    assert plan(config, 5, 5, GIB).jobs == 5  # more than there are: they share
    assert plan(as_config(tiny("models", "toy", "Catch-v0", device="cuda:1")), 5, None, GIB) == Plan(1, 8)
    assert plan(as_config(tiny("models", "toy", "Catch-v0", device="cpu")), 5, None, GIB) == Plan(5, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 7")
    assert plan(config, 5, None, GIB) == Plan(2, 4, ("4", "7"))


def test_what_a_seed_is_started_with(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(module.subprocess, "Popen",
                        lambda words, **keys: started.append((words, keys)) or SimpleNamespace())
    monkeypatch.setattr(module.sys, "path", ["", "/some/where"])
    (tmp_path / "seed_3").mkdir()
    for place in (1, 2):
        Child(tmp_path, 3, place, Plan(4, 2, ("5", "7")), ["mine"])
    (words, keys), (_, second) = started
    own = tmp_path / "seed_3"
    assert words[1:] == ["-m", "xrl.runners.seed", str(own / "seed.yaml"), str(own), "--import", "mine"]
    assert (keys["env"]["OMP_NUM_THREADS"], keys["env"]["CUDA_VISIBLE_DEVICES"]) == ("2", "7")
    assert second["env"]["CUDA_VISIBLE_DEVICES"] == "5"
    assert keys["env"]["PYTHONPATH"] == os.pathsep.join([os.getcwd(), "/some/where"])


@pytest.mark.parametrize(("keys", "expected"), [
    ({"env": "classic_control", "env_id": "CartPole-v1"}, GIB), ({"env": "toy", "env_id": "Catch-v0"}, 4 * GIB),
    # A row of Catch: a gray image, an action of 3 numbers, a reward, three flags.
    ({"env": "toy", "env_id": "Catch-v0", "replay.storage": "memory", "buffer_size": 2**20, "running_steps": 10**6},
     4 * GIB + 10**6 * (64 * 64 + 3 * 4 + 4 + 3))])
def test_memory_of_a_run(keys, expected):
    config = as_config(tiny("models", **keys))
    with make_envs(config, parallels=1) as envs:
        assert memory_of_a_run(config, envs) == pytest.approx(expected, rel=0.001)


# Environments ------------------------------------------------------------------------------------------------------


def test_shipped_families_need_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(module.subprocess, "run", None)  # no other process is asked
    assert elsewhere(as_config(tiny(tmp_path, "toy", "Catch-v0")), ["mine"], tmp_path) == (["mine"], "")


def asked(tmp_path, env, env_id="any-v0"):
    config = as_config(tiny(tmp_path, env, env_id))
    save_config(config, tmp_path / "seed.yaml")
    return elsewhere(config, [], tmp_path / "seed.yaml")


def test_a_class_whose_module_does_not_register_it(tmp_path, watched):
    """Another process finds the class, but not under this name."""
    modules, reason = asked(tmp_path, "watched")
    assert modules == ["tests.agents.examples"]
    assert reason.startswith("another process that imports tests.agents.examples does not make "
                             "tests.agents.examples:Watched: xrl: error: ") and "'watched' is unknown" in reason


def test_another_class_under_the_same_name(tmp_path, monkeypatch, watched):
    """The module registers one, this program another one in its place."""
    (tmp_path / "two_classes.py").write_text(
        "import xrl\nfrom tests.agents.examples import Watched\nclass Other(Watched): pass\n"
        "class Mine(Watched): pass\nxrl.REGISTRY_ENV['ours'] = Other\n")
    monkeypatch.syspath_prepend(tmp_path)
    import two_classes
    assert asked(tmp_path, "ours") == (["two_classes"], "")
    monkeypatch.setitem(REGISTRY_ENV, "ours", two_classes.Mine)
    assert "does not make two_classes:Mine: there it is two_classes:Other" in asked(tmp_path, "ours")[1]


def test_an_id_that_only_this_program_has_registered(tmp_path, monkeypatch):
    import gymnasium
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    monkeypatch.setattr(gymnasium, "registry", gymnasium.envs.registration.registry)
    gymnasium.register("OnlyHere-v0", Watched)
    reason = asked(tmp_path, "gymnasium", "OnlyHere-v0")[1]
    assert "another process that imports nothing does not make" in reason and "OnlyHere-v0" in reason


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 looks into the current folder first in any case")
def test_modules_come_from_where_they_come_from_here(tmp_path, monkeypatch, watched):
    """A folder of the same name in the current one is not in the way."""
    for place, name in (("ours", "Mine"), ("current", "Other")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "same_name.py").write_text(
            f"import xrl\nfrom tests.agents.examples import Watched\nclass {name}(Watched): pass\n"
            f"xrl.REGISTRY_ENV['ours'] = {name}\n")
    monkeypatch.syspath_prepend(tmp_path / "ours")
    import same_name  # noqa: F401
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.setattr(module.sys, "path", [path or str(Path(module.__file__).parents[2]) for path in module.sys.path])
    assert asked(tmp_path, "ours") == (["same_name"], "")


def test_names_of_what_makes_environments(monkeypatch, watched, tmp_path):
    def local():
        return Watched()

    assert entry_name(as_config(tiny(tmp_path))) == "tests.agents.examples:Watched"
    assert entry_name(as_config(tiny(tmp_path, "toy", "Catch-v0"))).startswith("xrl.environment.toy:")
    for maker in (local, lambda: Watched(), Watched(), SimpleNamespace(make=None)):
        monkeypatch.setitem(REGISTRY_ENV, "odd", maker)
        assert entry_name(as_config(tiny(tmp_path, "odd"))) is None


# Small things ------------------------------------------------------------------------------------------------------


def test_the_clock_goes_on_where_it_stopped(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("xrl.runners.seed.time.perf_counter", lambda: now[0])
    path = tmp_path / "clock.json"

    def train(goes_on, seconds):
        clock = Clock(path, goes_on)
        clock.on_train_begin(None, 0)
        now[0] += seconds
        clock.on_evaluation(None, None)
        now[0] += 1000  # lost: the process is killed
        return clock

    train(False, 5)
    assert Clock(path, goes_on=True).total() == 5
    train(True, 7)
    assert Clock(path, goes_on=True).total() == 12
    assert Clock(path, goes_on=False).total() == 0  # of another run


def test_the_last_line_of_a_log():
    assert last_line("a\nb \r 50% | \rend\n\n  \n") == "end" and last_line(" \n") == "(nothing written)"
