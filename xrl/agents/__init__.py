"""Agents, by name: those of METHODS, each loaded when first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xrl.common.registry import load
from xrl.methods import METHODS

if TYPE_CHECKING:
    from xrl.agents.base import Agent
    from xrl.agents.dreamer_v2 import DreamerV2Agent

__all__ = ["Agent", "DreamerV2Agent"]


def __getattr__(name: str) -> Any:
    paths = ["xrl.agents.base:Agent", *(entry.agent for entry in METHODS.values())]
    for path in paths:
        if path.rpartition(":")[2] == name:
            return load(path)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
