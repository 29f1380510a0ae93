"""What every room shares; knows nothing of reinforcement-learning methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xrl.common.config import get_configs as get_configs

__all__ = ["get_configs"]


def __getattr__(name: str) -> Any:
    """Load on first use: the methods' table needs this package, and the config loader needs that table."""
    if name == "get_configs":
        from xrl.common.config import get_configs

        return get_configs
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
