from __future__ import annotations

import os

import pytest

from xrl.environment.opengl import VARIABLE, choose_renderer
from xrl.environment.registry import REGISTRY_ENV


@pytest.fixture
def registered():
    """REGISTRY_ENV, restored after the test."""
    before = dict(REGISTRY_ENV)
    yield REGISTRY_ENV
    REGISTRY_ENV.clear()
    REGISTRY_ENV.update(before)


@pytest.fixture
def headless(monkeypatch):
    """Windows without a screen."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("SDL_AUDIODRIVER", "dummy")


@pytest.fixture
def renderer():
    """The name of what draws MuJoCo's pictures here; without one the test is skipped."""
    if not choose_renderer():
        pytest.skip("no OpenGL draws without a screen here: apt-get install libegl1 libgl1, or libosmesa6")
    return os.environ[VARIABLE]
