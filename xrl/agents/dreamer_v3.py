"""DreamerV3 put together: replay with latent states, world-model policy, learner, and when each has its turn."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xrl.agents.base import Agent
from xrl.agents.inspection import Inspector
from xrl.agents.replayed import reserved_replay
from xrl.common.accelerate import Feed, captured
from xrl.common.callback import Callback
from xrl.common.checkpoint import REPLAY
from xrl.common.inspection import Inspection, Look
from xrl.common.row import Row
from xrl.common.schedule import Ratio
from xrl.common.seeding import torch_generator
from xrl.configs.schemas.dreamer_v3 import DreamerV3Config
from xrl.environment import RowEnvs
from xrl.learners.dreamer_v3 import DreamerV3Learner
from xrl.memory import SequenceReplay
from xrl.memory.latent_ring import LatentRing, OnlineQueue
from xrl.policies.dreamer_v3 import DreamerV3Policy
from xrl.world_models.rssm import State


class DreamerV3Agent(Agent[DreamerV3Config]):
    """The policy acts from the first step on, untrained; updates begin when the replay holds as many windows as a batch
    has rows, and then come at ``train_ratio`` replayed rows per row of the environments.

    Raises:
        ConfigError: the replay does not fit into memory.
    """

    def __init__(self, config: DreamerV3Config | Mapping[str, Any] | Namespace, envs: RowEnvs,
                 callbacks: Sequence[Callback] = ()) -> None:
        super().__init__(config, envs, callbacks)
        self.policy: DreamerV3Policy = DreamerV3Policy(envs.obs_spec, envs.action_spec, self.config).to(self.device)
        noise = torch_generator(self.config.seed, "learning", self.device)
        self.learner: DreamerV3Learner = DreamerV3Learner(self.policy, self.config, noise)
        acting_step = partial(self.policy.act, generator=self.generator, explore=True)
        self.acting_step = captured(acting_step, self.config.cuda_graph, self.generator)
        self.feed = Feed(self.device)
        self.replay: SequenceReplay | None = None
        self.latents: LatentRing | None = None
        self.window = self.config.seq_len + self.config.replay.context
        self.online = OnlineQueue(envs.num_envs, self.window)
        self.due = Ratio(self.config.train_ratio / (self.config.batch_size * self.config.seq_len))
        self.rows = 0  # of all environments, reset rows included
        self.loaded_at = 0  # agent steps of a loaded model
        self.trained: tuple[np.ndarray, np.ndarray] | None = None  # environments and first rows of the last batch

    # Acting ----------------------------------------------------------------------------------------------------

    def initial_state(self, num_envs: int) -> State:
        return self.policy.initial(num_envs)

    def act(self, row: Row, state: State, generator: torch.Generator, explore: bool) -> tuple[np.ndarray, State]:
        action, state = self.policy.act(state, *self.to_device(row), generator=generator, explore=explore)
        return action.cpu().numpy(), state

    def training_action(self) -> np.ndarray:
        assert self.row is not None
        action, self.state = self.acting_step(self.state, *self.to_device(self.row))
        self.store_state(self.state)
        return action.cpu().numpy()

    def to_device(self, row: Row) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Observations, action and is_first of a row."""
        tensors = self.feed({**row.obs, "action": row.action, "is_first": row.is_first})
        action, is_first = tensors.pop("action"), tensors.pop("is_first")
        return tensors, action, is_first

    def dream(self, state: State, action: np.ndarray, generator: torch.Generator) -> State:
        return self.policy.dream(state, torch.from_numpy(action).to(self.device), generator)

    def look(self, state: State) -> Look:
        return self.policy.look(state)

    def inspect(self, episodes: Sequence[Row]) -> Inspection:
        generator = torch_generator(self.config.seed, "inspection", self.device)
        return Inspector(self.policy, episodes, lambda reward: reward, self.config.horizon, generator).inspect()

    # Replay ----------------------------------------------------------------------------------------------------

    def observe(self, row: Row) -> None:
        if self.replay is None:
            self.make_replay()
        assert self.replay is not None
        self.replay.insert(row)
        self.rows += self.envs.num_envs
        if self.config.replay.online:
            self.online.inserted(self.replay.end - 1)

    def store_state(self, state: State) -> None:
        """The posterior of the newest row, for sequences that will go on from it."""
        if self.latents is None:
            return
        assert self.replay is not None
        classes = state.stoch.unflatten(-1, (self.config.model.stoch, -1)).argmax(-1)
        self.latents.put(np.array(self.replay.end - 1), np.arange(self.envs.num_envs), state.deter.cpu().numpy(),
                         classes.cpu().numpy(), self.replay.oldest)

    def settle(self) -> None:
        """Hand the posteriors of the last update to the replay. Not sooner than somebody needs them: a GPU would have
        to be waited for."""
        if self.trained is None:
            return
        (envs, first), self.trained = self.trained, None
        if self.latents is None:
            return
        assert self.replay is not None and self.learner.posterior is not None
        deter, stoch = (part.cpu().numpy() for part in self.learner.posterior)
        numbers = first + self.config.replay.context + np.arange(self.config.seq_len)[:, None]
        self.latents.put(numbers, envs, deter, stoch, self.replay.oldest)

    def make_replay(self) -> None:
        """Reserve the replay, and the latent states in memory."""
        config, size = self.config, self.config.widths
        states = (config.buffer_size // self.envs.num_envs, self.envs.num_envs, size.deter, config.model.stoch,
                  size.classes)
        beside = LatentRing.nbytes_needed(*states) if config.replay.context else 0
        self.replay = reserved_replay(self, self.window, config.replay.storage, beside=beside)
        self.latents = LatentRing(*states) if config.replay.context else None

    # Learning --------------------------------------------------------------------------------------------------

    def update(self, new_steps: int) -> None:
        """One question per row, as in the official code: with many environments several updates can fall due."""
        assert self.replay is not None
        begun = self.agent_steps - self.loaded_at >= self.config.start_training
        if not begun or self.replay.window_count < self.config.rows_to_begin:
            return
        for row in range(self.rows - self.envs.num_envs + 1, self.rows + 1):
            for _ in range(self.due(row)):
                self.learn()

    def learn(self) -> None:
        """One update on new windows first, the rest drawn from all."""
        assert self.replay is not None
        self.settle()
        envs, first = self.online.take(self.config.batch_size, self.replay.oldest)
        if len(envs) < self.config.batch_size:
            drawn = self.replay.draw(self.config.batch_size - len(envs), self.rng)
            envs, first = np.concatenate([envs, drawn[0]]), np.concatenate([first, drawn[1]])
        rows = self.replay.windows(envs, first)
        if self.latents is None:
            metrics = self.learner.update(rows)
        else:  # the row before only lends its state: what is learned begins behind it, with its flags as they are
            metrics = self.learner.update(without_first(rows), self.latents.get(first, envs))
        self.trained = envs, first
        self.updated(metrics)

    # State -----------------------------------------------------------------------------------------------------

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Weights and counters; the replay starts empty and fills before learning goes on."""
        super().load_state_dict(state)
        self.trained = None
        self.loaded_at = self.agent_steps
        self.due = Ratio(self.due.ratio)

    def run_state(self) -> dict[str, Any]:
        """And what this method adds: the replay's files and latent states, the state of acting, cadences."""
        assert self.replay is not None
        self.settle()
        latents = None if self.latents is None else self.latents.state_dict(self.replay.end)
        return super().run_state() | {
            "replay": self.replay.save(self.folder / REPLAY), "latents": latents, "online": self.online.state_dict(),
            "latent": {"deter": self.state.deter, "stoch": self.state.stoch}, "due": self.due.state_dict(),
            "rows": self.rows, "loaded_at": self.loaded_at}

    def load_run_state(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError or ValueError where the replay or the latent states do not fit."""
        super().load_run_state(state)
        self.make_replay()
        assert self.replay is not None
        self.replay.load(state["replay"], self.folder / REPLAY)
        if self.latents is not None:
            self.latents.load_state_dict(state["latents"])
        self.online.load_state_dict(state["online"])
        self.state = State(*(state["latent"][name].to(self.device) for name in ("deter", "stoch")))
        for found, fresh in zip(self.state, self.initial_state(self.envs.num_envs), strict=True):
            if found.shape != fresh.shape or found.dtype != fresh.dtype:
                raise ValueError(f"a latent state of shape {tuple(found.shape)}, not {tuple(fresh.shape)}")
        self.due.load_state_dict(state["due"])
        self.rows, self.loaded_at = int(state["rows"]), int(state["loaded_at"])


def without_first(rows: Row) -> Row:
    """All but the first row of each sequence, (T, B) -> (T-1, B)."""
    parts = {name: value[1:] for name, value in vars(rows).items() if name != "obs"}
    return Row({name: value[1:] for name, value in rows.obs.items()}, **parts)
