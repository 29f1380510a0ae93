"""What draws pictures is found without a screen, and where nothing does, vectors go on and the remedy is named."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from xrl.common.errors import ConfigError
from xrl.environment import opengl

# Whoever reads this variable refuses to be EGL and refuses to be OSMesa: a machine that has neither.
NEITHER = {"PYOPENGL_PLATFORM": "neither"}
WALKER = {"method": "DreamerV2", "env_name": "dmc", "env_id": "walker_walk"}


@pytest.fixture
def undecided(monkeypatch):
    """This process before it has looked for a renderer; what it decides is forgotten afterwards."""
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if name != opengl.VARIABLE})
    monkeypatch.setattr(opengl, "_why_not", {})
    return monkeypatch


def run(code: str, **environment: str) -> str:
    """In a process that has decided nothing yet."""
    inherited = {name: value for name, value in os.environ.items() if name != opengl.VARIABLE}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=inherited | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(("works", "tried", "chosen"), [
    ({"egl", "osmesa"}, ["egl"], "egl"), ({"osmesa"}, ["egl", "osmesa"], "osmesa"), (set(), ["egl", "osmesa"], "off")])
def test_egl_then_osmesa_once(undecided, works, tried, chosen):
    asked = []
    undecided.setattr(opengl, "_draws", lambda backend: asked.append(backend) or backend in works)
    assert [opengl.choose_renderer() for _ in range(2)] == [chosen != "off"] * 2
    assert asked == tried and os.environ[opengl.VARIABLE] == chosen and os.environ["LP_NUM_THREADS"] == "0"


@pytest.mark.parametrize(("value", "draws"), [("osmesa", True), ("glfw", True), ("off", False), ("Disabled", False)])
def test_whoever_has_set_the_variable_has_chosen(undecided, value, draws):
    undecided.setattr(opengl, "_draws", None)
    os.environ[opengl.VARIABLE] = value
    assert opengl.choose_renderer() is draws


def test_a_machine_without_any_is_told_what_each_said_and_how_to_install_one(undecided):
    os.environ.update(NEITHER)
    with pytest.raises(ConfigError, match=r"^this draws .* \(egl: ImportError: Cannot use EGL.*; osmesa: ImportError: "
                                          r"Cannot use OSMesa.*apt-get install libegl1 libgl1, or apt-get install "
                                          r"libosmesa6\), set MUJOCO_GL.*: do that$"):
        opengl.need_renderer("this", "do that")


def test_one_that_hangs_or_dies_is_none(undecided):
    undecided.setattr(opengl, "_PATIENCE", 0.5)
    for code, reason in (("import time; time.sleep(60)", "no answer within 0.5 s"),
                         ("import os; os.kill(os.getpid(), 11)", "exit code -11")):
        undecided.setattr(opengl, "_ONE_PICTURE", code)
        assert not opengl._draws("egl") and opengl._why_not["egl"] == reason


def test_a_variable_that_says_none_is_named(undecided):
    os.environ[opengl.VARIABLE] = "off"
    with pytest.raises(ConfigError, match="MUJOCO_GL=off says to use none"):
        opengl.need_renderer("this", "do that")


def test_vectors_need_no_renderer_and_pictures_are_refused_before_anything_runs():
    """Also in workers, and a proprioceptive run first: its import of dm_control must not stand in the way."""
    code = f"""
from xrl.common.errors import ConfigError
from xrl.environment import make_envs
keys = {WALKER!r}
with make_envs({{**keys, "env_kwargs": {{"vision": False}}, "parallels": 2, "vectorize": "async"}}) as envs:
    print(envs.reset().obs["velocity"].shape)
for more in ({{}}, {{"vectorize": "async"}}, {{"env_kwargs": {{"vision": False}}}}):
    try:
        make_envs({{**keys, **more}}, render_mode="rgb_array" if "env_kwargs" in more else None)
    except ConfigError as error:
        print("libosmesa6" in str(error), str(error).partition(" draws")[0])
"""
    assert run(code, **NEITHER).splitlines() == [
        "(2, 9)", "True env_id: walker_walk", "True env_id: walker_walk", "True render_mode: rgb_array"]


def test_a_choice_of_the_users_that_fails_is_named():
    code = f"""
from xrl.environment import make_envs
try:
    make_envs({{**{WALKER!r}, "env_kwargs": {{"vision": False}}}})
except Exception as error:
    print(type(error).__name__, error)
"""
    assert run(code, MUJOCO_GL="egl", **NEITHER).startswith("ConfigError MUJOCO_GL=egl does not work here: ImportError")


def test_what_was_found_draws_in_a_process_that_others_are_forked_from(renderer):
    """Workers that draw, started by a process that has drawn; a failed backend before it does no harm."""
    code = f"""
from xrl.environment import make_envs
import numpy as np
keys = {{**{WALKER!r}, "parallels": 2, "env_timeout": 20}}
pictures = []
for vectorize in ("sync", "async"):
    with make_envs({{**keys, "vectorize": vectorize}}) as envs:
        pictures += [envs.reset().obs["image"], envs.step(np.ones((2, 6), np.float32)).obs["image"]]
print([float(picture.std().round()) > 0 for picture in pictures])
print((pictures[0] == pictures[2]).all() and (pictures[1] == pictures[3]).all())
"""
    assert run(code).splitlines() == ["[True, True, True, True]", "True"]
