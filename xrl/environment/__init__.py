"""Environments: families by name, one canonical form, and a vector that yields rows. No torch in here.

``import xrl.environment`` is light; Gymnasium loads with the first environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xrl.common.registry import load
from xrl.environment.raw import RawEnvironment
from xrl.environment.registry import REGISTRY_ENV

if TYPE_CHECKING:
    from xrl.environment.build import make_envs
    from xrl.environment.check import check_env
    from xrl.environment.vector import RowEnvs

__all__ = ["REGISTRY_ENV", "RawEnvironment", "RowEnvs", "check_env", "make_envs"]

_LAZY = {"make_envs": "xrl.environment.build:make_envs", "check_env": "xrl.environment.check:check_env",
         "RowEnvs": "xrl.environment.vector:RowEnvs"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return load(_LAZY[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
