"""Fixtures of agents and runners."""

from __future__ import annotations

import os

# Before torch loads. Tiny tensors: threads cost ten times what they bring, and pytest-xdist has its own processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests.agents.examples import Workshop, watched_environments


@pytest.fixture
def watched():
    with watched_environments() as environment:
        yield environment


@pytest.fixture
def workshop(tmp_path, watched):
    """Makes agents in tmp_path/models; closed afterwards."""
    shop = Workshop(tmp_path / "models")
    yield shop
    shop.close()
