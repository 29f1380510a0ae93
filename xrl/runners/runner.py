"""Experiments: train, test, benchmark and profile any method in any environment."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from xrl.agents.base import Agent
from xrl.agents.checkpointing import Checkpointer, surroundings
from xrl.agents.checkpointing import resume as resume_agent
from xrl.agents.health_log import draw_dream, film
from xrl.common.callback import Callback, Evaluation
from xrl.common.config import ResolvedConfig, as_config, load_config, save_config
from xrl.common.config_files import parse_assignments
from xrl.common.config_keys import flatten
from xrl.common.errors import ConfigError, ModelFileError, XrlError
from xrl.common.files import read_metadata, write_atomic
from xrl.common.interrupt import OrderlyStop
from xrl.common.provenance import command, provenance
from xrl.common.registry import load
from xrl.common.run_folder import BEST_MODEL, CONFIG, FACTS, FINAL_MODEL, experiment_name, find_model, locked
from xrl.common.seeding import TEST_SEED
from xrl.configs.schemas.base import RunConfig
from xrl.environment import make_envs
from xrl.environment.registry import find_entry
from xrl.methods import METHODS
from xrl.report.scores import CURVE, Curve, task_name, write_scores
from xrl.runners.advice import advice
from xrl.runners.profile import Profile, measure, small_run
from xrl.runners.resume import find_run, steps_of_finished_run


class Runner:
    """One configuration and the experiments on it. Each experiment opens what it needs and closes it, on every
    way out, and trains in a run folder of its own; they can follow one another on one runner.
    """

    def __init__(self, resolved: ResolvedConfig, *, is_test: bool = False, callbacks: Sequence[Callback] = ()) -> None:
        self.resolved, self.config = resolved, resolved.config
        self.is_test, self.callbacks = is_test, list(callbacks)

    def run(self, mode: str | None = None, resume: bool | str | Path = False) -> Any:
        """``mode``: "train", "test", "benchmark" or "profile"; by default "test" if made with is_test=True, else
        "train". ``resume``: see ``train``.

        Raises:
            ConfigError: another mode, or ``resume`` with one that trains nothing.
        """
        mode = mode or ("test" if self.is_test else "train")
        if resume and mode in ("train", "benchmark"):
            return self._train(benchmark=mode == "benchmark", resume=resume)
        if resume:
            raise ConfigError(f"resume: {mode} trains nothing that could be resumed; use it with train or benchmark")
        modes: dict[str, Callable[[], Any]] = {"train": self.train, "test": self.test, "benchmark": self.benchmark,
                                               "profile": self.profile}
        if mode not in modes:
            raise ConfigError(f"mode: {mode!r} is unknown; use one of {', '.join(modes)}")
        return modes[mode]()

    def train(self, resume: bool | str | Path = False) -> Path:
        """Train for ``running_steps``, evaluating every ``eval_interval``; returns the run folder.

        It holds the best evaluated model (BEST_MODEL, which the test mode loads) and the last one (FINAL_MODEL), and
        checkpoints. ``resume``: go on with an earlier run as if it had never stopped: True for the newest one that
        agrees with what this runner was asked for, or the path of one.

        Raises:
            CheckpointError: nothing to resume, or it is damaged beyond its oldest checkpoint.
            ConfigError: what was asked for would make it another run.
        """
        return self._train(benchmark=False, resume=resume)

    def benchmark(self, resume: bool | str | Path = False, *, seeds: int | Sequence[int] | None = None,
                  jobs: int | None = None, reference: str | Path | None = None,
                  baselines: str | Path | None = None) -> Path:
        """A fresh training run, evaluated at step 0 and then every ``eval_interval``; returns the run folder.

        Beside the models it writes the curve of evaluations, CURVE, in the form of published scores:
        ``[{task, method, seed, xs, ys}]``, xs in frames, ys mean returns.

        ``seeds``: train so many (or these) instead, ``jobs`` side by side, and write their statistics, beside the
        published scores in ``reference`` and normalised by ``baselines``; see ``run_benchmark``, whose folder is then
        returned.

        Raises:
            ConfigError: ``eval_interval`` is 0; ``seeds`` with ``resume``, which they do by themselves, or with
                callbacks, which a process does not get.
        """
        if seeds is not None:
            if resume:
                raise ConfigError("resume: a benchmark of several seeds goes on by itself; leave resume out")
            if self.callbacks:
                raise ConfigError("callbacks: each seed is a process of its own, where they cannot be called; leave "
                                  "them out, or train the seeds one by one")
            published, people = (None if place is None else Path(place) for place in (reference, baselines))
            return Path(load("xrl.runners.benchmark:run_benchmark")(
                self.resolved, seeds, jobs=jobs, reference=published, baselines=people))
        if self.config.eval_interval == 0:
            raise ConfigError("eval_interval: 0 leaves nothing to benchmark; give the agent steps between evaluations")
        return self._train(benchmark=True, resume=resume)

    def test(self) -> list[float]:
        """Play ``test_episode`` episodes with the newest saved model of this method and env_id; print and return
        the scores. What shapes the networks comes from the model's own config; what the user said still counts.

        Raises:
            ModelFileError: there is no model, or it cannot be read.
        """
        path = self._newest_model()
        config = self._config_of(path)
        with make_envs(config, parallels=1) as envs:
            agent = make_agent(config, envs, ())
            agent.load_model(path)
            evaluation = agent.evaluate(config.test_episode, TEST_SEED, config.render_mode)
            print(f"{path}: {len(evaluation.scores)} episodes, mean {evaluation.mean:.1f} +/- {evaluation.std:.1f}")
            print("scores:", " ".join(f"{score:g}" for score in evaluation.scores))
            if config.render:
                show(agent, path.parent, evaluation)
        return list(evaluation.scores)

    def profile(self, json_path: str | Path | None = None) -> Profile:
        """Time every part of a short run, print the table and a sentence of advice, and return the table; see
        docs/profile.md. Leaves nothing behind but, where asked for, ``json_path``. Callbacks are not called.

        Raises:
            ConfigError: the run makes no updates, or ``json_path`` cannot be written.
        """
        path = None if json_path is None else Path(json_path)
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise ConfigError(f"json_path (--json): {path} cannot be written; name a file in a folder that exists")
        with tempfile.TemporaryDirectory(prefix="xrl-profile-") as folder:
            config = small_run(self.config, folder)
            with make_envs(config) as envs:
                agent = make_agent(config, envs, ())
                try:
                    profile = measure(agent)
                finally:
                    agent.finish()
        print(f"{profile}\n{advice(profile)}")
        if path is not None:
            write_atomic(path, json.dumps({**profile.as_dict(), "advice": advice(profile)}, indent=1).encode())
        return profile

    def _newest_model(self) -> Path:
        try:
            return find_model(Path(self.config.model_dir) / experiment_name(self.config))
        except ModelFileError:
            make_envs(self.config, parallels=1).close()  # a misspelt environment is the better explanation
            raise

    def _config_of(self, path: Path) -> RunConfig:
        """The configuration that the model was trained with, and over it what the user said now."""
        metadata = read_metadata(path)
        if metadata["method"] != self.config.method:
            raise ModelFileError(f"{path}: a model of {metadata['method']}, not of {self.config.method}; "
                                 f"use method={metadata['method']!r}, or another model")
        try:
            saved = flatten(as_config(metadata["config"]))
        except ConfigError as error:
            raise ModelFileError(f"{path}: its configuration does not fit this version of xrl: {error}; "
                                 "load it with the xrl version that wrote it") from error
        return as_config({**saved, **self.resolved.said()})

    def _train(self, benchmark: bool, resume: bool | str | Path) -> Path:
        config, folder = self.config, None
        if resume:
            folder, config = find_run(None if resume is True else resume, config.model_dir, self._asked)
            if (made := steps_of_finished_run(folder)) >= config.running_steps:
                print(f"{folder}: nothing to do: {made:,} agent steps are made, and running_steps is "
                      f"{config.running_steps:,}; give a larger one to go on")
                return folder
        with make_envs(config) as envs:
            agent = make_agent(config, envs, self._training_callbacks(config, benchmark))
            try:
                with locked(folder or agent.folder):
                    if folder is None:
                        write_facts(agent)
                    else:
                        resume_agent(agent, folder, config.keep_checkpoints)
                        save_config(config, folder / CONFIG)
                    agent.train_until(config.running_steps)
                    save_or_explain(agent, FINAL_MODEL)
            except OrderlyStop:
                if agent.keeps_checkpoints:
                    print(f"go on with: xrl train --resume {quote(str(agent.folder))} (or from Python: "
                          f"runner.run(resume=...); an environment of your own comes with --import MODULE)",
                          file=sys.stderr)
                raise
            finally:
                agent.finish()
        print(f"models and logs: {agent.folder}")
        return agent.folder

    def _asked(self, path: Path) -> RunConfig:
        """The configuration in a file, and what the user said over it."""
        return as_config({**flatten(load_config(config_path=path).config), **self.resolved.said()})

    def _training_callbacks(self, config: RunConfig, benchmark: bool) -> list[Callback]:
        callbacks = [*self.callbacks, EvaluationGrid(config.eval_interval, benchmark=benchmark)]
        if config.checkpoint_every != 0:
            callbacks.append(Checkpointer(config.checkpoint_every, config.keep_checkpoints))
        return callbacks


class EvaluationGrid(Callback):
    """Evaluates every ``interval`` agent steps (0: never) and keeps the best model; for a ``benchmark`` it also
    evaluates at step 0 and keeps the curve on file."""

    part = "evaluation"

    def __init__(self, interval: int, benchmark: bool) -> None:
        self.interval, self.benchmark = interval, benchmark
        self.next = interval
        self.under_way = False
        self.frames: list[int] = []
        self.means: list[float] = []

    def on_train_begin(self, agent: Agent[Any], target_steps: int) -> None:
        if self.benchmark and not self.means:
            agent.test()
        if self.under_way:  # in the run that is resumed, when a signal stopped it
            self.evaluate(agent)

    def on_step(self, agent: Agent[Any]) -> None:
        if self.interval and agent.agent_steps >= self.next:
            self.evaluate(agent)

    def evaluate(self, agent: Agent[Any]) -> None:
        self.under_way = True
        agent.test()
        self.under_way = False
        self.next += self.interval

    def on_evaluation(self, agent: Agent[Any], evaluation: Evaluation) -> None:
        best = max(self.means, default=float("-inf"))
        self.frames.append(agent.frames)
        self.means.append(evaluation.mean)
        try:
            if evaluation.mean >= best:  # an equal score replaces an older model: it has seen more
                agent.save_model(BEST_MODEL)
            if self.benchmark:
                self.write_curve(agent)
        except OSError as error:
            print(f"the best model so far could NOT be saved: {error}; training goes on", file=sys.stderr)

    def state_dict(self, agent: Agent[Any]) -> dict[str, Any]:
        return {"interval": self.interval, "next": self.next, "under_way": self.under_way, "frames": self.frames,
                "means": self.means, "benchmark": self.benchmark}

    def load_state_dict(self, agent: Agent[Any], state: dict[str, Any]) -> None:
        if not state:
            return
        if self.benchmark and not state["benchmark"]:
            raise ConfigError("resume: this run was not started as a benchmark, so it has no evaluation at step 0 and "
                              "no curve; resume it with train")
        self.frames, self.means = [int(frames) for frames in state["frames"]], [float(mean) for mean in state["means"]]
        self.benchmark, self.under_way = bool(state["benchmark"]), bool(state["under_way"])
        self.next = int(state["next"])
        if self.interval != state["interval"] and self.interval:  # another grid: its next point ahead
            self.next = (agent.agent_steps // self.interval + 1) * self.interval

    def write_curve(self, agent: Agent[Any]) -> None:
        config = agent.config
        curve = Curve(task_name(config.env_name, config.env_id), config.method, str(config.seed), tuple(self.frames),
                      tuple(self.means))
        write_scores(agent.folder / CURVE, [curve])


def show(agent: Agent[Any], folder: Path, evaluation: Evaluation) -> None:
    """Films of what was tested, into ``folder``: an episode, and a dream of one."""
    shown = film(agent, folder, TEST_SEED, "test")
    if (inspection := agent.inspect(evaluation.held_out) if evaluation.held_out else None) is not None:
        shown += draw_dream(agent, inspection.dream, folder, "test-dream")
        for name, value in inspection.metrics.items():
            print(f"{name:32}{value:.4g}")
    for one in shown:
        print("written:", *sorted(map(str, one.path.parent.glob(f"{one.path.name}.*"))))


def write_facts(agent: Agent[Any]) -> None:
    """Beside the configuration: how, when and where a run was begun."""
    facts = {"created": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": command(), **provenance(),
             "device": surroundings(agent)["device"], "threads": surroundings(agent)["threads"]}
    try:
        write_atomic(agent.folder / FACTS, json.dumps(facts, indent=1).encode())
    except OSError as error:  # not worth a run
        print(f"{FACTS} could NOT be written: {error}; training goes on", file=sys.stderr)


def save_or_explain(agent: Agent[Any], name: str) -> None:
    """Save a model, and if that fails say what is left of the run. Raises XrlError."""
    try:
        agent.save_model(name)
    except OSError as error:
        raise XrlError(f"{agent.folder / name} could not be written: {error}; make room, then resume the run: it goes "
                       f"on from its last good checkpoint") from error


def make_agent(config: Any, envs: Any, callbacks: Sequence[Callback]) -> Agent[Any]:
    return load(METHODS[config.method].agent)(config, envs, callbacks)


def get_runner(method: str | None = None, env: str | None = None, env_id: str | None = None,
               config_path: str | Path | None = None, is_test: bool = False, *,
               callbacks: Sequence[Callback] = (), **overrides: Any) -> Runner:
    """See ``xrl.get_runner``."""
    return make_runner(load_config(method, env, env_id, config_path, overrides), is_test=is_test, callbacks=callbacks)


def make_runner(resolved: ResolvedConfig, *, is_test: bool = False, callbacks: Sequence[Callback] = ()) -> Runner:
    """A runner of an already resolved configuration. Raises ConfigError if the environment family is unknown."""
    find_entry(resolved.config.env_name)
    return Runner(resolved, is_test=is_test, callbacks=callbacks)


def resume_run(place: str | None, mode: str, *, method: str | None, env: str | None, env_id: str | None,
               overrides: Sequence[str]) -> Any:
    """Go on with the run at ``place`` (see ``find_run``), whose configuration need not be given again.

    Raises CheckpointError and ConfigError as ``Runner.train`` does.
    """
    model_dir = str(dict(parse_assignments(overrides)).get("model_dir", RunConfig.model_fields["model_dir"].default))

    def asked(path: Path) -> ResolvedConfig:
        return load_config(method, env, env_id, path, overrides)

    folder, _ = find_run(place, model_dir, lambda path: asked(path).config)
    return make_runner(asked(folder / CONFIG)).run(mode, resume=folder)
