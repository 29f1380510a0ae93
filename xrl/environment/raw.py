"""The base class for environments that users write from nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from argparse import Namespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gymnasium import Space


class RawEnvironment(ABC):
    """An environment that is configured by the run: ``__init__(self, env_config)`` receives the run keys.

    ``env_config`` is a Namespace: ``env_id``, ``env_seed`` (of this very copy), ``render_mode``, ``fps``, ... and
    the entries of ``env_kwargs``. A subclass sets ``observation_space`` and ``action_space`` (Gymnasium spaces)
    and may set ``max_episode_steps`` (agent steps x action repeat), after which an episode is truncated.

    A subclass that can be saved, so that a resumed run goes on in the middle of an episode, implements both

    - ``get_state(self) -> dict``: everything that decides its future, its generators included: nested dicts (str keys)
      and lists of numpy arrays, numbers, bools, strings, bytes and None;
    - ``set_state(self, state)``: the inverse, called on a new instance that was never reset.

    There are no default methods: having them is the sign that the state can be saved.
    """

    observation_space: Space[Any]
    action_space: Space[Any]
    max_episode_steps: int | None = None

    def __init__(self, env_config: Namespace | None = None) -> None:
        self.env_config = env_config

    @abstractmethod
    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode: ``(observation, info)``. An override that accepts ``seed`` gets it, at the first reset."""

    @abstractmethod
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step: ``(observation, reward, terminated, truncated, info)``."""

    # Not abstract: an environment that is never looked at and holds nothing needs neither.
    def render(self) -> Any:
        """An RGB frame (H, W, 3) of uint8, or None where the environment draws its own window."""
        return None

    def close(self) -> None:  # noqa: B027
        """Release what the environment holds."""
