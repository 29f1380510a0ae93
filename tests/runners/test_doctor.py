"""The doctor on this machine, and on machines that are made to look ill."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from tests.agents.examples import Watched
from xrl.common.callback import Callback
from xrl.common.config import load_config
from xrl.common.errors import ConfigError
from xrl.environment.check import Finding
from xrl.report import video
from xrl.report.video import encode_gif
from xrl.runners import doctor as module
from xrl.runners import machine
from xrl.runners.doctor import Diagnosis, doctor, line, run_doctor

GIB = 2**30


@pytest.fixture
def planned(tmp_path):
    """The configuration of a planned run that keeps its files in tmp_path."""
    def make(env="toy", env_id="Catch-v0", **keys):
        keys = {"model_dir": str(tmp_path), "device": "cpu", **keys}
        return load_config("DreamerV2", env, env_id, overrides=keys).config

    return make


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    monkeypatch.setattr(machine, "WRITTEN", machine.MIB)


def by_name(diagnosis):
    return {finding.name: finding for finding in diagnosis.findings}


# The whole -----------------------------------------------------------------------------------------------------------


def test_this_machine_can_run_and_nothing_is_left_behind(planned, tmp_path):
    heard = []
    diagnosis = doctor(planned(), heard.append)
    findings = by_name(diagnosis)
    assert diagnosis.ok and diagnosis.exit_code == 0 and tuple(heard) == diagnosis.findings
    assert {"python", "pytorch", "gpu", "cores", "replay", "write speed", "roms", "rendering", "display", "videos",
            "matplotlib", "scipy", "aiohttp", "tensorboard", "wandb", "browser", "env spaces", "env same seed",
            "gradient step"} <= set(findings)
    assert len(findings) == len(diagnosis.findings) and max(map(len, findings)) <= module.NAMES
    assert torch.__version__ in findings["pytorch"].found
    assert "finite numbers" in findings["gradient step"].found and "DreamerV2" in findings["gradient step"].found
    assert list(tmp_path.iterdir()) == []


def test_the_gradient_step_is_of_the_debug_preset_in_the_run_s_own_environment(planned, watched, monkeypatch):
    small = module._tiny(planned("watched", "any-v0", env_kwargs={"length": 3}, **{"environment.action_repeat": 2}))
    assert (small.preset, small.batch_size, small.env_kwargs, small.environment.action_repeat) == (
        "debug", 4, {"length": 3}, 2)
    updates = []
    monkeypatch.setattr(Callback, "on_update", lambda *arguments: updates.append(arguments[1].updates))
    assert module._gradient_step(planned("watched", "any-v0", env_kwargs={"length": 30})).status == "ok"
    assert set(updates) == {1}  # one update, told to several callbacks
    assert watched.made[-1].length == 30 and watched.made[-1].closed == 1


def test_losses_that_are_not_finite_fail(planned, monkeypatch):
    def spoiled(losses, agent, metrics):
        losses.metrics = {"model/kl": float("nan"), "actor/loss": 1.0}

    monkeypatch.setattr(module._Losses, "on_update", spoiled)
    finding = module._gradient_step(planned())
    assert finding.status == "failed" and "model/kl not finite" in finding.found and "actor/loss" not in finding.found


def test_no_update_ever_is_said(planned, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 5)
    finding = module._gradient_step(planned(parallels=1))
    assert finding.status == "failed" and finding.found.startswith("no update in ")
    assert finding.found.endswith("failures of environments: 0")
    monkeypatch.setattr(module, "PATIENCE", 10_000)
    monkeypatch.setattr(module, "SECONDS", 0.0)
    assert module._gradient_step(planned()).status == "failed"


@pytest.mark.parametrize("trouble", [
    lambda env, result: 1 / 0, lambda env, result: (result[0], float("nan"), *result[2:])])
def test_an_environment_that_always_fails_ends_the_gradient_step(planned, watched, trouble):
    Watched.trouble = trouble
    finding = module._gradient_step(planned("watched", "any-v0", max_env_failures=3))
    assert finding.status == "failed" and finding.found.startswith("no update in 0 agent steps")
    assert sum(env.steps for env in watched.made) < 20


@pytest.mark.parametrize(("env", "env_id"), [("classic_control", "CartPol-v1"), ("atari", "ALE/Pon-v5")])
def test_a_wrong_environment_is_told_once(planned, monkeypatch, env, env_id):
    config = planned().model_copy(update={"env_name": env, "env_id": env_id})
    findings = by_name(doctor(config))
    assert [name for name, finding in findings.items() if finding.status == "failed"] == ["env environment"]
    for name in ("replay", "gradient step"):
        assert findings[name].status == "note" and findings[name].found.startswith("not asked: the environment cannot")


def test_one_crashing_question_leaves_the_others(planned, monkeypatch):
    def crash():
        raise ZeroDivisionError("so be it")

    monkeypatch.setattr(machine, "rendering", crash)
    monkeypatch.setattr(machine, "browser", lambda: sys.exit(5))
    diagnosis = doctor(planned())
    findings = by_name(diagnosis)
    assert not diagnosis.ok and diagnosis.exit_code == 1
    assert findings["rendering"].status == "failed" and "ZeroDivisionError: so be it" in findings["rendering"].found
    assert findings["browser"].status == "failed" and findings["gradient step"].status == "ok"


def test_an_environment_at_fault_fails_the_diagnosis(planned, watched):
    Watched.trouble, Watched.trouble_at = lambda env, result: 1 / 0, 10
    diagnosis = doctor(planned("watched", "any-v0"))
    assert diagnosis.exit_code == 1
    assert "ZeroDivisionError" in by_name(diagnosis)["env failure"].found


def test_a_broken_pytorch_is_found_and_named(planned, monkeypatch):
    for name in ("torch", "xrl.runners.profile", "xrl.runners.runner"):
        monkeypatch.setitem(sys.modules, name, None)
    findings = by_name(doctor(planned()))
    failed = {name for name, finding in findings.items() if finding.status == "failed"}
    assert failed == {"pytorch", "gpu", "cores", "gradient step"}
    assert findings["pytorch"].fix == "pip install --force-reinstall torch"
    code = "import xrl.runners.doctor, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


# What is printed ---------------------------------------------------------------------------------------------------


def test_lines_are_ascii_and_aligned():
    plain = line(Finding("gpu", "ok", "none"))
    wrong = line(Finding("env rewards", "failed", "über\n  all", "set x=1"))
    assert plain == "ok       gpu              none"
    assert wrong == f"FAILED   env rewards      \\xfcber all\n{' ' * 26}fix: set x=1"
    assert plain.index("none") == wrong.index("\\xfc")


@pytest.mark.parametrize(("statuses", "code", "told"), [
    (["ok", "ok"], 0, "2 ok in 1.5 s: this machine is ready"),
    (["ok", "note", "warning", "warning"], 0, "1 ok, 1 note, 2 warnings in 1.5 s: this machine is ready"),
    (["failed", "ok"], 1, "1 ok, 1 failed in 1.5 s: not ready")])
def test_only_failures_fail(statuses, code, told):
    diagnosis = Diagnosis(tuple(Finding("x", status, "y") for status in statuses), 1.5)
    assert (diagnosis.exit_code, diagnosis.ok, diagnosis.summary) == (code, code == 0, told)
    assert str(diagnosis).splitlines()[-1] == told and len(str(diagnosis).splitlines()) == len(statuses) + 2


@pytest.mark.parametrize(("arguments", "env", "env_id"), [
    ({}, "classic_control", "CartPole-v1"),
    ({"overrides": ["env_name=toy", "env_id=Catch-v0"]}, "toy", "Catch-v0"),
    ({"method": "dreamerv2", "env": "atari", "env_id": "ALE/Boxing-v5"}, "atari", "ALE/Boxing-v5"),
    ({"config_path": "mine.yaml"}, "toy", "Catch-v0")])
def test_the_command_line_has_a_default_run(monkeypatch, capsys, tmp_path, arguments, env, env_id):
    asked = []

    def heard(config, tell):
        asked.append(config)
        tell(Finding("x", "failed", "y", "z"))
        return Diagnosis((Finding("x", "failed", "y", "z"),), 0.0)

    monkeypatch.setattr(module, "doctor", heard)
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("method: DreamerV2\nenv_name: toy\nenv_id: Catch-v0\n")
    assert run_doctor(**arguments) == 1
    assert (asked[0].method, asked[0].env_name, asked[0].env_id) == ("DreamerV2", env, env_id)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"doctor: DreamerV2 in {env}/{env_id}"
    assert printed[2].startswith("FAILED   x") and printed[3].endswith("fix: z") and printed[-1].endswith("not ready")


def test_half_an_environment_is_refused():
    with pytest.raises(ConfigError, match="env_id: missing"):
        run_doctor(env="toy")


# One question each -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "status"), [((3, 9), "failed"), ((3, 10), "note"), ((3, 11), "ok")])
def test_python(monkeypatch, version, status):
    monkeypatch.setattr(machine.sys, "version_info", (*version, 0))
    assert machine.python().status == status


@pytest.mark.parametrize(("built", "usable", "seen", "status", "found", "fix"), [
    (None, False, "", "ok", "none; networks run on the CPU", ""),
    (None, False, "GPU 0: NVIDIA X", "warning", "GPU 0: NVIDIA X, but this PyTorch is built for the CPU alone",
     "--force-reinstall torch=="),
    ("13.0", False, "", "ok", "none that PyTorch can see", ""),
    ("13.0", False, "GPU 0: NVIDIA X", "warning", "cannot use it (driver too old)", "update the driver"),
    ("13.0", True, "GPU 0: NVIDIA X", "ok", "cuda:0 of 2; cuda:1 of 2", "")])
def test_gpu(monkeypatch, built, usable, seen, status, found, fix):
    def is_available():
        if built and seen and not usable:
            machine.warnings.warn("driver too old", stacklevel=1)
        return usable

    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(machine, "_cuda_device", lambda index: f"cuda:{index} of 2")
    monkeypatch.setattr(machine, "nvidia_gpus", lambda: seen)
    finding = machine.gpu()
    assert finding.status == status and found in finding.found
    assert (fix in finding.fix) if fix else finding.fix == ""


def test_what_the_driver_lists(monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda name: f"/bin/{name}")
    listed = "GPU 0: NVIDIA H200 (UUID: GPU-1)\nGPU 1: NVIDIA H200 (UUID: GPU-2)\n"
    monkeypatch.setattr(machine.subprocess, "run", lambda *a, **k: types.SimpleNamespace(stdout=listed))
    assert machine.nvidia_gpus() == "GPU 0: NVIDIA H200, GPU 1: NVIDIA H200"


@pytest.mark.parametrize(("text", "most"), [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2),
                                            ("50000 100000", 1), ("9900000 100000", 8), ("", 8)])
def test_cores_of_a_container(monkeypatch, tmp_path, text, most):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    (tmp_path / "cpu.max").write_text(text)
    assert machine.usable_cores(tmp_path / "cpu.max") == most


@pytest.mark.parametrize(("threads", "asked", "status"), [(4, None, "ok"), (2, None, "ok"), (1, "1", "note"),
                                                          (16, None, "warning")])
def test_cores(monkeypatch, threads, asked, status):
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    finding = machine.cores()
    assert finding.status == status
    assert finding.fix == ("" if status == "ok" else "export OMP_NUM_THREADS=4")
    assert f"takes {threads} thread{'' if threads == 1 else 's'} (" in finding.found


def test_room_for_the_replay(planned, monkeypatch, tmp_path):
    """Catch: a row is 64 x 64 bytes of image, 4 x 3 of action, 4 of reward and 3 flags."""
    row = 64 * 64 + 12 + 4 + 3
    config = planned(buffer_size=1_000_000)
    free = GIB
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=free))
    monkeypatch.setattr(module, "available_memory", lambda: 2 * GIB)
    full = module._answers("replay", lambda: module._replay(config))[0]
    assert full.status == "failed" and f"needs {1e6 * row / GIB:.2f} GiB of disk" in full.found
    assert f"buffer_size={int(1e6 * 0.9 * free / (1e6 * row))} or less" in full.fix
    free = 100 * GIB
    note = module._replay(config)
    assert note.status == "note" and "up to 3.8 GiB on disk; 100.0 GiB of disk free" in note.found
    assert note.fix == f"buffer_size={int(2 * GIB / row)}"
    in_memory = planned(buffer_size=1_000_000, **{"replay.storage": "memory"})
    full = module._answers("replay", lambda: module._replay(in_memory))[0]
    assert full.status == "failed" and "GiB of memory" in full.found
    monkeypatch.setattr(module, "available_memory", lambda: 200 * GIB)
    assert module._replay(config).status == module._replay(in_memory).status == "ok"


def test_write_speed(monkeypatch, tmp_path):
    deep = tmp_path / "not" / "there"
    assert machine.write_speed(deep).found.endswith(f"MiB/s in {tmp_path}") and list(tmp_path.iterdir()) == []
    monkeypatch.setattr(machine, "SLOW_DISK", 1e12)
    assert machine.write_speed(deep).status == "warning"
    monkeypatch.setattr(machine.os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    full = machine.write_speed(deep)
    assert full.status == "failed" and "No space left" in full.found and "model_dir=" in full.fix


def test_roms(planned, monkeypatch, tmp_path):
    from ale_py import roms

    assert module._roms(planned()).found.endswith(f"pong opens (ale-py {sys.modules['ale_py'].__version__})")
    assert "video_pinball opens" in module._roms(planned("atari", "ALE/VideoPinball-v5")).found
    monkeypatch.setattr(roms, "get_rom_path", lambda game: None)
    assert machine.roms("pong").fix == "pip install --upgrade ale-py"
    monkeypatch.undo()
    (tmp_path / "pong.bin").write_bytes(b"no game")
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    (damaged,) = module._answers("roms", machine.roms)
    assert damaged.status == "failed" and damaged.fix == "pip install --force-reinstall ale-py"


def test_videos(monkeypatch):
    assert machine.videos().status == "ok"
    with monkeypatch.context() as patch:
        patch.setattr(video, "encode_gif", lambda frames, fps: encode_gif(frames[:1], fps))
        assert machine.videos().found == "of 3 frames MP4 and GIF hold 3, 1"
    monkeypatch.setattr(video, "CODEC", "none")
    finding = machine.videos()
    assert finding.status == "warning" and "writes no MP4" in finding.found and "opencv-python-headless" in finding.fix


def test_packages(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ill_installed.py").write_text("import never_there_either")
    assert machine.package("never_there", needed=False) == Finding("never_there", "note", "not installed",
                                                                   "pip install never_there")
    assert machine.package("never_there", needed=True).status == "failed"
    ill = machine.package("ill_installed", needed=False)
    assert ill.status == "failed" and "never_there_either" in ill.found
    assert ill.fix == "pip install --force-reinstall ill_installed"
    assert machine.package("pytest", needed=False).found == pytest.__version__


def test_display_and_browser(monkeypatch):
    monkeypatch.setattr(machine, "has_display", lambda: False)
    assert machine.display().status == "note" and machine.display().fix.startswith("xvfb-run -a")
    monkeypatch.setattr(machine, "has_display", lambda: True)
    assert machine.display().status == "ok"
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert machine.browser().status == "note"
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/firefox" if name == "firefox" else None)
    assert machine.browser() == Finding("browser", "ok", "firefox")
