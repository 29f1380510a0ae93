from __future__ import annotations

import pytest

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
