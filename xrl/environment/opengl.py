"""Which OpenGL draws MuJoCo's pictures where there is no screen: EGL or OSMesa, found by trying."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from xrl.common.errors import ConfigError

VARIABLE = "MUJOCO_GL"  # MuJoCo and dm_control read it when they are imported, once and for all
BACKENDS = ("egl", "osmesa")
_NONE = ("off", "disable", "disabled", "false", "0")
_PATIENCE = 60.0  # seconds for one picture
_ONE_PICTURE = """
from dm_control import mujoco
ball = '<mujoco><worldbody><light pos="0 0 3"/><geom type="sphere" size="1"/></worldbody></mujoco>'
assert mujoco.Physics.from_xml_string(ball).render(64, 64).any(), "the picture is black"
"""
# Software that draws starts threads, and a worker process forked after that waits for ever for threads it has not.
_NO_THREADS = {"LP_NUM_THREADS": "0", "DISABLE_RENDER_THREAD_OFFLOADING": "1"}

_INSTALL = ("install EGL or OSMesa (on Debian and Ubuntu: apt-get install libegl1 libgl1, or apt-get install "
            "libosmesa6)")

_why_not: dict[str, str] = {}  # backend -> the last words of the process that tried it


def choose_renderer() -> bool:
    """Whether pictures can be drawn here. Call it before dm_control is imported.

    A backend that fails leaves its process in a state in which the next one fails as well, so each is tried in another
    process, and the first that draws is written to MUJOCO_GL, for this process and those that it starts. Whoever
    has set MUJOCO_GL has chosen.
    """
    for name, value in _NO_THREADS.items():
        os.environ.setdefault(name, value)
    if VARIABLE not in os.environ:
        os.environ[VARIABLE] = next((backend for backend in BACKENDS if _draws(backend)), _NONE[0])
    return os.environ[VARIABLE].lower() not in _NONE


def _draws(backend: str) -> bool:
    try:
        done = subprocess.run([sys.executable, "-c", _ONE_PICTURE], env={**os.environ, VARIABLE: backend},
                              capture_output=True, text=True, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        _why_not[backend] = f"no answer within {_PATIENCE:g} s"
        return False
    if done.returncode:
        _why_not[backend] = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return done.returncode == 0


def need_renderer(what: str, instead: str) -> None:
    """Raises ConfigError, with what each backend said and how to install one, unless pictures can be drawn.

    ``what`` wants them; ``instead`` does without.
    """
    if choose_renderer():
        return
    said = "; ".join(f"{backend}: {why}" for backend, why in _why_not.items())
    why = f"none works here ({said})" if said else f"{VARIABLE}={os.environ[VARIABLE]} says to use none"
    raise ConfigError(f"{what} draws pictures with OpenGL, and {why}; {_INSTALL}, set {VARIABLE} to one that works, or "
                      f"do without pictures: {instead}")


@contextmanager
def using_renderer() -> Iterator[None]:
    """Around the first import of dm_control. Raises ConfigError if the user's own MUJOCO_GL makes it fail."""
    choose_renderer()
    try:
        yield
    except Exception as error:  # PyOpenGL raises AttributeError where a library is missing
        raise ConfigError(f"{VARIABLE}={os.environ[VARIABLE]} does not work here: {type(error).__name__}: {error}; "
                          f"unset it, to let xrl look for one that does, or {_INSTALL}") from error
