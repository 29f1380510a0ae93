"""Acting, storing and learning from what is stored: when each has its turn. Knows no method."""

from __future__ import annotations

import sys
from abc import abstractmethod
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from xrl.agents.background import BackgroundLearner
from xrl.agents.base import Agent
from xrl.common.accelerate import Feed, captured
from xrl.common.callback import Callback
from xrl.common.checkpoint import REPLAY
from xrl.common.row import Row
from xrl.common.schedule import Every
from xrl.common.seeding import torch_generator
from xrl.configs.schemas.replayed import ReplayedConfig
from xrl.environment import RowEnvs
from xrl.learners.replayed import Batch, SequenceLearner
from xrl.memory import SequenceReplay, check_disk, check_fits
from xrl.world_models.rssm import State

Config = TypeVar("Config", bound=ReplayedConfig)


class ReplayedAgent(Agent[Config]):
    """Random actions until ``start_training``, ``pretrain`` updates, then one update per ``train_every`` agent steps.

    A method makes its networks in ``build``, and supplies ``act`` and what is shown of its world model.

    Raises:
        ConfigError: the replay does not fit into memory.
    """

    learner: SequenceLearner
    policy: Any  # a module that has ``initial`` and ``act``; a method names its own

    def __init__(self, config: Config | Mapping[str, Any] | Namespace, envs: RowEnvs,
                 callbacks: Sequence[Callback] = ()) -> None:
        super().__init__(config, envs, callbacks)
        self.replay: SequenceReplay | None = None
        self.build(torch_generator(self.config.seed, "learning", self.device))
        self.background = BackgroundLearner(self.policy, self.learner) if self.config.policy_lag else None
        acting = self.background.acting if self.background else self.policy
        acting_step = partial(acting.act, generator=self.generator, explore=True)
        self.acting_step = captured(acting_step, self.config.cuda_graph, self.generator)
        self.feed = Feed(self.device)
        self.batch_ahead: Batch | None = None
        self.should_train = Every(self.config.train_every)
        self.said: set[str] = set()
        self.policy_acts = False  # instead of chance
        self.learning = False
        self.loaded_at = 0  # agent steps of a loaded model: its replay starts empty and fills first

    @abstractmethod
    def build(self, noise: torch.Generator) -> None:
        """Make ``policy``, on the device, and ``learner``, whose random numbers come from ``noise``."""

    def initial_state(self, num_envs: int) -> State:
        state: State = self.policy.initial(num_envs)
        return state

    def act(self, row: Row, state: State, generator: torch.Generator, explore: bool) -> tuple[np.ndarray, State]:
        action, state = self.policy.act(state, *self.to_device(row), generator=generator, explore=explore)
        return action.cpu().numpy(), state

    def to_device(self, row: Row) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Observations, action and is_first of a row."""
        tensors = self.feed({**row.obs, "action": row.action, "is_first": row.is_first})
        action, is_first = tensors.pop("action"), tensors.pop("is_first")
        return tensors, action, is_first

    def training_action(self) -> np.ndarray:
        if not self.policy_acts:
            return self.envs.action_spec.random(self.rng, self.envs.num_envs)
        assert self.row is not None
        with self.background.stream() if self.background else nullcontext():
            action, self.state = self.acting_step(self.state, *self.to_device(self.row))
            return action.cpu().numpy()

    def observe(self, row: Row) -> None:
        if self.replay is None:
            self.replay = self.make_replay()
        self.replay.insert(row)

    def update(self, new_steps: int) -> None:
        if not self.learning:
            self.maybe_start_learning()
            return
        # One question per agent step: with many environments several updates can fall due at once.
        for step in range(self.agent_steps - new_steps + 1, self.agent_steps + 1):
            if self.should_train(step):
                self.learn()

    def maybe_start_learning(self) -> None:
        """Once enough is stored: in a new run the first updates, then fresh episodes for the policy to act in."""
        assert self.replay is not None
        if self.agent_steps - self.loaded_at < self.config.start_training:
            return
        if not self.replay.ready:
            self.say_once(f"no updates yet: {self.replay.why_not_ready()}")
            return
        if self.replay.sampling_unfinished:
            self.say_once("replay: no episode of replay.min_length has ended yet; sampling the unfinished ones")
        self.learning = True
        if not self.policy_acts:
            self.pretraining = True

    def step(self) -> None:
        """One step of every environment, or one of the first updates, so that a run can stop between those as well."""
        if not self.pretraining:
            super().step()
        elif self.updates < self.config.pretrain:
            self.learn()
            self.notify("on_pretrain")
        else:
            self.settle()
            if self.background is not None:
                self.background.hand_over()
            self.policy_acts, self.pretraining = True, False
            self.restart_episodes()

    def say_once(self, message: str) -> None:
        if message.partition(":")[0] not in self.said:
            self.said.add(message.partition(":")[0])
            tqdm.write(message, file=sys.stderr)

    def learn(self) -> None:
        """One update. Its batch sees every row so far, or with batches_ahead: 1 those up to the update before; with
        policy_lag: 1 it runs beside the environments, until the next one is due."""
        assert self.replay is not None
        if not self.replay.ready:  # the unfinished episode that was sampled so far has ended too short
            self.say_once(f"no update: {self.replay.why_not_ready()}")
            return
        batch = self.batch_ahead or self.draw()
        if self.background is None:
            metrics = self.learner.update(batch)
            self.batch_ahead = self.draw() if self.config.batches_ahead else None
            self.updated(metrics)
        else:
            self.settle()
            self.background.begin(batch)
            self.batch_ahead = self.draw() if self.config.batches_ahead else None

    def draw(self) -> Batch:
        assert self.replay is not None
        return self.learner.to_device(self.replay.sample(self.config.batch_size, self.rng))

    def settle(self) -> None:
        if self.background is not None and (metrics := self.background.finish()) is not None:
            self.updated(metrics)

    @property
    def updates(self) -> int:
        return self.learner.updates if self.background is None else self.background.updates_begun

    def make_replay(self) -> SequenceReplay:
        keys = self.config.replay
        return reserved_replay(self, self.config.seq_len, keys.storage, keys.sampling, keys.min_length,
                               keys.prioritize_ends)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"policy_acts": self.policy_acts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Weights and counters; the replay starts empty and fills before learning goes on."""
        super().load_state_dict(state)
        self.policy_acts = bool(state["policy_acts"])
        self.loaded_at = self.agent_steps
        self.learning = False
        self.should_train = Every(self.config.train_every)
        self.batch_ahead = None
        if self.background is not None:
            self.background.updates_begun = self.learner.updates
            self.background.hand_over()

    def run_state(self) -> dict[str, Any]:
        """And what this method adds: the replay's files, latent states, cadences, what learns beside acting."""
        assert self.replay is not None
        state = super().run_state()
        acting = None if self.background is None else self.background.acting.state_dict()
        return state | {
            "replay": self.replay.save(self.folder / REPLAY),
            "latent": {"deter": self.state.deter, "stoch": self.state.stoch},
            "should_train": self.should_train.state_dict(), "said": sorted(self.said), "pretraining": self.pretraining,
            "learning": self.learning, "loaded_at": self.loaded_at, "acting": acting,
            "batch_ahead": None if self.batch_ahead is None else self.batch_ahead._asdict()}

    def load_run_state(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError or ValueError where the replay or the latent state does not fit."""
        super().load_run_state(state)
        self.replay = self.make_replay()
        self.replay.load(state["replay"], self.folder / REPLAY)
        self.state = State(*(state["latent"][name].to(self.device) for name in ("deter", "stoch")))
        for found, fresh in zip(self.state, self.initial_state(self.envs.num_envs), strict=True):
            if found.shape != fresh.shape or found.dtype != fresh.dtype:
                raise ValueError(f"a latent state of shape {tuple(found.shape)}, not {tuple(fresh.shape)}")
        self.should_train.load_state_dict(state["should_train"])
        self.said, self.pretraining = set(state["said"]), state["pretraining"]
        self.learning, self.loaded_at = state["learning"], state["loaded_at"]
        if self.background is not None:
            self.background.acting.load_state_dict(state["acting"])
        if (ahead := state["batch_ahead"]) is not None:
            tensors = {name: value.to(self.device) for name, value in ahead.items() if name != "obs"}
            obs = {name: value.to(self.device) for name, value in ahead["obs"].items()}
            self.batch_ahead = Batch(obs, **tensors)

    def finish(self) -> None:
        if self.background is not None:
            self.background.close()
        super().finish()


def reserved_replay(agent: Agent[Any], seq_len: int, storage: str, sampling: Literal["steps", "episodes"] = "steps",
                    min_length: int = 1, prioritize_ends: bool = False, beside: int = 0) -> SequenceReplay:
    """A replay for the agent's rows, whose place is reserved; says what it will take, before a long run finds out.

    ``beside``: bytes of memory that the method keeps besides. Raises ConfigError where there is no room.
    """
    config, envs = agent.config, agent.envs
    specs = envs.obs_spec, envs.action_spec
    needed = SequenceReplay.nbytes_needed(*specs, config.buffer_size, envs.num_envs)
    on_disk = storage == "disk"
    folder = agent.folder / REPLAY if on_disk or agent.keeps_checkpoints else None
    if folder is not None:
        stored = sum(path.stat().st_size for path in folder.glob("rows_*")) if folder.exists() else 0
        check_disk(needed - stored, config.buffer_size, folder)
    if in_memory := beside + (0 if on_disk else needed):
        check_fits(in_memory, config.buffer_size)
    print(f"replay: {config.buffer_size:,} agent steps, up to {needed / 2**30:.3g} GiB "
          f"{'on disk' if on_disk else 'of memory'}"
          + (f", and {beside / 2**30:.3g} GiB of memory beside it" if beside else ""), file=sys.stderr)
    return SequenceReplay(
        *specs, num_envs=envs.num_envs, capacity=config.buffer_size, seq_len=seq_len, sampling=sampling,
        min_length=min_length, prioritize_ends=prioritize_ends, folder=folder, mapped=on_disk,
        keep_files=agent.keeps_checkpoints)
