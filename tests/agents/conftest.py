"""Fixtures of agents and runners. Modules of ``tests`` are importable once a test module is, not yet here."""

from __future__ import annotations

import pytest


@pytest.fixture
def watched():
    from tests.agents.examples import watched_environments

    with watched_environments() as environment:
        yield environment


@pytest.fixture
def workshop(tmp_path, watched):
    """Makes agents in tmp_path/models; closed afterwards."""
    from tests.agents.examples import Workshop

    shop = Workshop(tmp_path / "models")
    yield shop
    shop.close()
