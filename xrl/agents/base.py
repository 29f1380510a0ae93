"""The agent: what a runner sees of any method, and the only interaction loop there is."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from xrl.agents.checkpointing import Checkpointer
from xrl.agents.crash import save_what_is_left
from xrl.agents.evaluation import Recorder, check_failures, play, play_film
from xrl.agents.health_log import Filming, HealthLog
from xrl.agents.model_file import load_model_file, save_model_file
from xrl.agents.monitor import MetricLog, Progress
from xrl.agents.timing import Timing
from xrl.common.accelerate import keep_memory, set_deterministic
from xrl.common.callback import Callback, Episode, Evaluation
from xrl.common.config import as_config
from xrl.common.errors import ConfigError, NumericalError, TooManyFailures
from xrl.common.inspection import Inspection, Look
from xrl.common.interrupt import Interrupt, OrderlyStop, deferred_interrupt
from xrl.common.row import Row
from xrl.common.run_folder import INTERRUPTED_MODEL, find_model, new_run_folder
from xrl.common.seeding import EVALUATION_SEED, numpy_generator, seed_everything, torch_generator
from xrl.common.state import global_generators, numpy_state, restore_global_generators
from xrl.configs.schemas.base import RunConfig
from xrl.environment import RowEnvs, make_envs
from xrl.learners.base import Learner
from xrl.methods import check_spaces

Config = TypeVar("Config", bound=RunConfig)


class Agent(ABC, Generic[Config]):
    """The composition root of a method: policy, learner, memory and cadence.

    A method builds its networks in ``__init__`` (after ``super().__init__``) and supplies ``initial_state``,
    ``act``, ``observe`` and ``update``. Counters: ``agent_steps`` (actions taken, summed over environments;
    a reset is none), ``frames`` (agent steps x action repeat), ``updates``.

    Args:
        config: schema object, dict or Namespace, e.g. from ``get_configs``.
        envs: from ``make_envs``; the agent steps them and leaves closing them to whoever opened them.
        callbacks: told of everything that happens, after the agent's own log and progress bar.

    Raises:
        ConfigError: the method takes no such observations or actions.
    """

    policy: torch.nn.Module
    learner: Learner

    def __init__(self, config: Config | Mapping[str, Any] | Namespace, envs: RowEnvs,
                 callbacks: Sequence[Callback] = ()) -> None:
        self.config: Config = as_config(config)  # type: ignore[assignment]
        check_spaces(self.config.method, (spec.kind for spec in envs.obs_spec.values()), envs.action_spec.kind)
        self.envs = envs
        self.device = select_device(self.config.device)
        set_deterministic(self.config.deterministic, self.device)
        if self.device.type == "cpu":
            keep_memory()
        elif self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.timing = Timing()
        self.log = MetricLog()
        shows = [(HealthLog(envs.obs_spec), self.config.inspect), (Filming(), self.config.render)]
        self.callbacks: list[Callback] = [self.log, Progress(), *(show for show, wanted in shows if wanted), *callbacks]
        self.agent_steps = 0
        self.pretraining = False  # the environments wait for updates that come before the policy first acts
        self.row: Row | None = None
        self.state: Any = None
        self.scores = np.zeros(envs.num_envs)
        self.lengths = np.zeros(envs.num_envs, dtype=np.int64)
        self.interrupt = Interrupt()
        self.keeps_checkpoints = any(isinstance(callback, Checkpointer) for callback in callbacks)
        self.inexact = ""  # why this run is not the one that it would have been without being resumed
        self._folder: Path | None = None
        seed_everything(self.config.seed)
        self.rng = numpy_generator(self.config.seed, "memory and random actions")
        self.generator = torch_generator(self.config.seed, "acting", self.device)

    # What a method supplies ------------------------------------------------------------------------------------

    @abstractmethod
    def initial_state(self, num_envs: int) -> Any:
        """What ``act`` carries from step to step, before the first row."""

    @abstractmethod
    def act(self, row: Row, state: Any, generator: torch.Generator, explore: bool) -> tuple[np.ndarray, Any]:
        """Choose actions (E, A) after ``row``. Depends on nothing but its arguments and the weights."""

    @abstractmethod
    def observe(self, row: Row) -> None:
        """Store a row of the training environments."""

    @abstractmethod
    def update(self, new_steps: int) -> None:
        """Learn, if it is time; ``new_steps`` agent steps were just made. Calls ``updated`` after each update."""

    def dream(self, state: Any, action: np.ndarray, generator: torch.Generator) -> Any:
        """One imagined step of N latent states with actions (N, A), for methods with a world model."""
        raise ConfigError(f"method: {self.config.method} has no world model to dream in")

    def look(self, state: Any) -> Look:
        """What the networks make of N latent states, for methods with a world model."""
        raise ConfigError(f"method: {self.config.method} has no world model to look into")

    def settle(self) -> None:
        """Finish what is under way in the background, for methods that learn there. What the next action is chosen
        with stays as it was."""

    def first_update(self) -> str:
        """When learning begins, for a run that was over before."""
        return f"learning begins after start_training = {self.config.start_training}"

    def training_action(self) -> np.ndarray:
        """The next action (E, A) in training; methods that begin with random actions override this."""
        assert self.row is not None
        action, self.state = self.act(self.row, self.state, self.generator, explore=True)
        return action

    # Counters --------------------------------------------------------------------------------------------------

    @property
    def updates(self) -> int:
        return self.learner.updates

    @property
    def frames(self) -> int:
        return self.agent_steps * self.envs.action_repeat

    @property
    def counters(self) -> dict[str, int]:
        return {"agent_steps": self.agent_steps, "frames": self.frames, "updates": self.updates}

    # The loop --------------------------------------------------------------------------------------------------

    def train(self, train_steps: int) -> None:
        """Train for ``train_steps`` x parallels agent steps, from wherever the agent stands; call it again to go on.

        Raises:
            KeyboardInterrupt, SystemExit: after Ctrl-C, or SIGTERM and SIGUSR1, when the step under way is done and a
                model is saved.
            NumericalError: a loss is not finite; the weights from before it are saved.
            TooManyFailures: environments failed more than ``max_env_failures`` times.
        """
        self.train_until(self.agent_steps + train_steps * self.envs.num_envs)

    def train_until(self, target: int) -> None:
        """Train until ``agent_steps`` reaches ``target``; the last step may pass it by parallels - 1."""
        try:
            with deferred_interrupt() as self.interrupt, self._saving():
                if self.row is None:
                    self.restart_episodes()
                self.notify("on_start")
                self.timing.begin(self)
                self.notify("on_train_begin", target)
                while self.agent_steps < target or self.pretraining:
                    self.step()
                    check_failures(self.envs, self.config.max_env_failures)
                    self.interrupt.raise_if_pending()
                self.settle()
                self.learner.check()
                self.notify("on_pause")
                self.interrupt.raise_if_pending()  # a signal during all that must not be lost
                if self.updates == 0:
                    print(f"no update was made in {self.agent_steps} agent steps: {self.first_update()}",
                          file=sys.stderr)
        finally:
            try:
                self.notify("on_train_end")
            finally:
                self.timing.end()

    def step(self) -> None:
        """One step of every environment, and whatever learning is due."""
        self.row = row = self.envs.step(self.training_action())
        self._tell_failures()
        new_steps = int((~row.is_first).sum())
        self.agent_steps += new_steps
        self.observe(row)
        self._track_episodes(row)
        self.update(new_steps)
        self.notify("on_step")

    def restart_episodes(self) -> None:
        """Reset every environment; the episodes under way end here, cut, as the next row's is_first tells."""
        self.row = self.envs.reset()
        self._tell_failures()
        self.state = self.initial_state(self.envs.num_envs)
        self.scores[:] = 0
        self.lengths[:] = 0
        self.observe(self.row)

    def _tell_failures(self) -> None:
        for failure in self.envs.failed:
            self.notify("on_failure", failure)

    def _track_episodes(self, row: Row) -> None:
        self.scores = np.where(row.is_first, 0.0, self.scores + row.reward)
        self.lengths = np.where(row.is_first, 0, self.lengths + 1)
        for env in np.flatnonzero(row.is_last):
            self.notify("on_episode_end", Episode(float(self.scores[env]), int(self.lengths[env]), int(env)))

    def updated(self, metrics: dict[str, Tensor]) -> None:
        """For methods: one update is done. On a CPU its health is checked at once, which costs nothing there;
        on a GPU whenever the log is written and in the end (a bad update leaves the weights as they were)."""
        if self.device.type == "cpu":
            self.learner.check()
        self.notify("on_update", metrics)

    def notify(self, event: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            with self.timing.part(callback.part):
                getattr(callback, event)(self, *arguments)

    @contextmanager
    def _saving(self) -> Iterator[None]:
        """On a signal and on a numerical error, save before the exception goes on."""
        try:
            yield
        except OrderlyStop:  # not a Ctrl-C in the middle of an update, whose weights may be of two minds
            try:
                self.settle()
                self.notify("on_pause")
                print(f"interrupted; saved {self.save_model(INTERRUPTED_MODEL)}", file=sys.stderr)
            except NumericalError as error:  # of an update that was under way, or not looked at yet
                print(f"{error}; {save_what_is_left(self)}", file=sys.stderr)
            except OSError as error:
                print(f"interrupted; {INTERRUPTED_MODEL} could NOT be saved: {error}", file=sys.stderr)
            raise
        except TooManyFailures:
            self.notify("on_pause")
            raise
        except NumericalError as error:
            with suppress(NumericalError):
                self.settle()
            raise NumericalError(f"{error}; {save_what_is_left(self)}") from error

    # Evaluation ------------------------------------------------------------------------------------------------

    def evaluate(self, episodes: int, seed_offset: int = EVALUATION_SEED, render_mode: str | None = None) -> Evaluation:
        """Play whole episodes with the policy's mode, on fresh environments with seeds of their own.

        Nothing of the training is touched: neither its environments nor its generators nor its latent state, so
        a run with evaluations is, weight for weight, the run without them.
        """
        if episodes < 1:
            raise ConfigError(f"episodes: {episodes}: an evaluation plays at least one")
        self.settle()
        side_by_side = 1 if render_mode == "human" else min(episodes, self.config.test_parallels)
        generator = torch_generator(self.config.seed + seed_offset, "evaluation", self.device)
        recorder = Recorder()

        def watch(row: Row) -> None:
            recorder(row)
            self.interrupt.raise_if_pending()

        with make_envs(self.config, seed_offset=seed_offset, parallels=side_by_side, render_mode=render_mode) as envs:
            evaluation = play(self.act, self.initial_state(side_by_side), envs, episodes, generator, watch,
                              self.config.max_env_failures)
        return replace(evaluation, held_out=recorder.episodes())

    def film(self, seed_offset: int = EVALUATION_SEED) -> list[np.ndarray]:
        """The pictures, RGB (height, width, 3), of one episode, at most LONGEST_FILM of them; no window is opened.

        Raises ConfigError if the environment draws none.
        """
        self.settle()
        generator = torch_generator(self.config.seed + seed_offset, "evaluation", self.device)
        with make_envs(self.config, seed_offset=seed_offset, parallels=1, render_mode="rgb_array") as envs:
            return play_film(self.act, self.initial_state(1), envs, generator)

    def inspect(self, episodes: Sequence[Row]) -> Inspection | None:
        """What the world model makes of episodes, each of leading shape (T,); None for methods without one."""
        return None

    def test(self, episodes: int | None = None) -> list[float]:
        """Evaluate without a runner: the raw returns of ``episodes`` (default: test_episode) episodes."""
        evaluation = self.evaluate(self.config.test_episode if episodes is None else episodes)
        self.notify("on_evaluation", evaluation)
        return list(evaluation.scores)

    # Saving and loading ----------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """The run folder, made and given its config.yaml when first asked for."""
        if self._folder is None:
            self._folder = new_run_folder(self.config)
        return self._folder

    @folder.setter
    def folder(self, folder: Path) -> None:
        """Go on in the folder of an earlier run."""
        self._folder = folder

    def save_model(self, name: str) -> Path:
        """Write weights, optimisers, counters and config; a bare name goes into the run folder. Returns the path."""
        path = Path(name) if Path(name).parent != Path() else self.folder / name
        save_model_file(path, self)
        return path

    def load_model(self, place: str | Path) -> Path:
        """Load what ``save_model`` wrote: a file, a run folder, or a folder of run folders (see ``find_model``);
        a bare name is looked for in the run folder first.

        Raises:
            ModelFileError: not found, damaged, or of another method, format or shape; nothing is changed then.
        """
        own = Path(place) if self._folder is None else self._folder / place
        path = find_model(own if own.exists() else Path(place))
        load_model_file(path, self)
        return path

    def state_dict(self) -> dict[str, Any]:
        self.settle()
        return {"agent_steps": self.agent_steps, "policy": self.policy.state_dict(),
                "learner": self.learner.state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.settle()
        self.agent_steps = int(state["agent_steps"])
        self.row = None  # the latent state belonged to other weights: begin with fresh episodes
        self.policy.load_state_dict(state["policy"])
        self.learner.load_state_dict(state["learner"])
        self.generator.set_state(state["generator"].cpu())

    def run_state(self) -> dict[str, Any]:
        """Everything that decides the future of a run, at the end of a step: see ``xrl.common.state``."""
        assert self.row is not None
        return {
            "agent": self.state_dict(), "row": vars(self.row), "rng": numpy_state(self.rng),
            "scores": self.scores, "lengths": self.lengths, "generators": global_generators(),
            "inexact": self.inexact,
            "envs": self.envs.get_state(),
            "callbacks": {name: callback.state_dict(self) for name, callback in self._named_callbacks()}}

    def load_run_state(self, state: dict[str, Any]) -> None:
        """Go on from a ``run_state``. Where environments could not be saved, their episodes end here, cut."""
        self.load_state_dict(state["agent"])
        self.rng.bit_generator.state = state["rng"]
        self.inexact = str(state["inexact"])
        if state["envs"] is not None:
            self.envs.set_state(state["envs"])
            self.row = Row(**state["row"])
            self.row.check(self.envs.obs_spec, self.envs.action_spec, self.envs.num_envs)
            self.scores[:], self.lengths[:] = state["scores"], state["lengths"]
        else:
            self.envs.reseed(self.agent_steps)
            self.inexact = f"it was resumed with fresh episodes at agent step {self.agent_steps:,}"

    def load_callback_states(self, state: dict[str, Any]) -> None:
        """The rest of a ``run_state``, when all else has found its place: a log that is cut cannot be cut back."""
        for name, callback in self._named_callbacks():
            callback.load_state_dict(self, state["callbacks"].get(name, {}))
        restore_global_generators(state["generators"])

    def _named_callbacks(self) -> list[tuple[str, Callback]]:
        """Each under the name of its class, and a number where there are several."""
        names: list[str] = []
        for callback in self.callbacks:
            kind = type(callback).__name__
            count = sum(name.partition("#")[0] == kind for name in names)
            names.append(f"{kind}#{count}" if count else kind)
        return list(zip(names, self.callbacks, strict=True))

    def finish(self) -> None:
        """Close the log. The environments stay with whoever opened them."""
        for callback in self.callbacks:
            callback.on_finish(self)


def select_device(name: str) -> torch.device:
    """"auto", "cpu", "cuda" or "cuda:N" -> a device that exists. Raises ConfigError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device: {name!r} is no device; use auto, cpu, cuda or cuda:N") from None
    if device.type != "cuda":
        return device
    if (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: {name!r}: this machine has {torch.cuda.device_count()} CUDA devices; "
                          "use device: auto, or cpu")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
