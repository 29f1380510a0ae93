"""Saved models of tiny networks to dream with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.agents.examples import tiny
from xrl.common.config import as_config
from xrl.environment import make_envs
from xrl.player.session import Player, load_player
from xrl.runners.runner import make_agent


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Saves an untrained model of an environment in a run folder, which it returns."""

    def made(env: str, env_id: str, name: str = "final_train_model.pth", **keys: Any) -> Path:
        config = as_config(tiny(tmp_path / "models", env, env_id, **keys))
        with make_envs(config) as envs:
            agent = make_agent(config, envs, ())
            agent.agent_steps = 123
            path = agent.save_model(name)
            agent.finish()
        return path.parent

    return made


@pytest.fixture
def players(save: Callable[..., Path]) -> Iterator[Callable[..., Player]]:
    """Loads an untrained model of an environment, and closes it in the end."""
    made: list[Player] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def loaded(env: str, env_id: str, **keys: Any) -> Player:
        made.append(load_player(save(env, env_id, **keys)))
        return made[-1]

    yield loaded
    torch.set_num_threads(threads)
    for player in made:
        player.close()
