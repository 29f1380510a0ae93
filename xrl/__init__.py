"""xrl: deep reinforcement learning on PyTorch, one registry entry per method.

Everything heavy loads on first use: ``import xrl`` needs neither torch nor an emulator.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xrl.common.errors import ConfigError
from xrl.common.registry import load

if TYPE_CHECKING:
    from xrl.common.config import get_configs as get_configs
    from xrl.environment import REGISTRY_ENV as REGISTRY_ENV
    from xrl.environment import make_envs as make_envs
    from xrl.methods import METHODS as METHODS
    from xrl.report.plot import plot as plot

__version__ = "0.1.0"
__all__ = ["METHODS", "REGISTRY_ENV", "__version__", "get_configs", "get_runner", "make_envs", "plot"]

_LAZY = {
    "METHODS": "xrl.methods:METHODS",
    "REGISTRY_ENV": "xrl.environment:REGISTRY_ENV",
    "get_configs": "xrl.common.config:get_configs",
    "make_envs": "xrl.environment:make_envs",
    "plot": "xrl.report.plot:plot",
}


def get_runner(
    method: str | None = None,
    env: str | None = None,
    env_id: str | None = None,
    config_path: str | Path | None = None,
    is_test: bool = False,
    algo: str | None = None,
    callbacks: Sequence[Any] = (),
    **overrides: Any,
) -> Any:
    """The runner of one experiment: ``run()`` trains (or, with ``is_test``, plays the newest saved model),
    ``benchmark()`` evaluates on a fixed grid while training.

    ``algo`` is another name for ``method``; ``callbacks`` are told of everything (`xrl.common.callback.Callback`);
    ``overrides`` are config keys, as nested dicts or dotted:
    ``**{"actor.entropy": 1e-3}``.
    Raises ConfigError for an unknown method, environment or key, or a value that cannot be.
    """
    if method is not None and algo is not None:
        raise ConfigError(f"keyword argument: algo: stands for method; give one, not both {method!r} and {algo!r}")
    return load("xrl.runners.runner:get_runner")(
        method=method if method is not None else algo, env=env, env_id=env_id, config_path=config_path,
        is_test=is_test, callbacks=callbacks, **overrides)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return load(_LAZY[name])


def __dir__() -> list[str]:
    return sorted(__all__)
