"""Experiments: train, test and benchmark any method in any environment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xrl.agents.base import Agent
from xrl.common.callback import Callback, Evaluation
from xrl.common.checkpoint import read_metadata, write_atomic
from xrl.common.config import ResolvedConfig, as_config, load_config
from xrl.common.config_keys import flatten
from xrl.common.errors import ConfigError
from xrl.common.registry import load
from xrl.common.run_folder import BEST_MODEL, FINAL_MODEL, experiment_name, find_model
from xrl.common.seeding import TEST_SEED
from xrl.environment import make_envs
from xrl.methods import METHODS

CURVE = "curve.json"


class Runner:
    """One configuration and the experiments on it. Each experiment opens what it needs and closes it, on every
    way out, and trains in a run folder of its own; they can follow one another on one runner.
    """

    def __init__(self, resolved: ResolvedConfig, *, is_test: bool = False, callbacks: Sequence[Callback] = ()) -> None:
        self.resolved, self.config = resolved, resolved.config
        self.is_test, self.callbacks = is_test, list(callbacks)

    def run(self, mode: str | None = None) -> Any:
        """``mode``: "train", "test" or "benchmark"; by default "test" if made with is_test=True, else "train".

        Raises:
            ConfigError: another mode.
        """
        mode = mode or ("test" if self.is_test else "train")
        modes = {"train": self.train, "test": self.test, "benchmark": self.benchmark}
        if mode not in modes:
            raise ConfigError(f"mode: {mode!r} is unknown; use one of {', '.join(modes)}")
        return modes[mode]()

    def train(self) -> Path:
        """Train for ``running_steps``, evaluating every ``eval_interval``; returns the run folder.

        It holds the best evaluated model (BEST_MODEL, which the test mode loads) and the last one (FINAL_MODEL).
        """
        return self._train(evaluate_first=False)

    def benchmark(self) -> Path:
        """A fresh training run, evaluated at step 0 and then every ``eval_interval``; returns the run folder.

        Beside the models it writes the curve of evaluations, CURVE, in the published score format:
        ``[{task, method, seed, xs, ys}]``, xs in frames.

        Raises:
            ConfigError: ``eval_interval`` is 0.
        """
        if self.config.eval_interval == 0:
            raise ConfigError("eval_interval: 0 leaves nothing to benchmark; give the agent steps between evaluations")
        return self._train(evaluate_first=True)

    def test(self) -> list[float]:
        """Play ``test_episode`` episodes with the newest saved model of this method and env_id; print and return
        the scores. What shapes the networks comes from the model's own config; what the user said still counts.

        Raises:
            ModelFileError: there is no model, or it cannot be read.
        """
        path = find_model(Path(self.config.model_dir) / experiment_name(self.config))
        saved = flatten(as_config(read_metadata(path)["config"]))
        config = as_config({**saved, **self.resolved.said()})
        with make_envs(config, parallels=1) as envs:
            agent = make_agent(config, envs, ())
            agent.load_model(path)
            evaluation = agent.evaluate(config.test_episode, TEST_SEED, config.render_mode)
        print(f"{path}: {len(evaluation.scores)} episodes, mean {evaluation.mean:.1f} +/- {evaluation.std:.1f}")
        print("scores:", " ".join(f"{score:g}" for score in evaluation.scores))
        return list(evaluation.scores)

    def _train(self, evaluate_first: bool) -> Path:
        grid = EvaluationGrid(self.config.eval_interval, evaluate_first)
        with make_envs(self.config) as envs:
            agent = make_agent(self.config, envs, [*self.callbacks, grid])
            try:
                agent.train_until(self.config.running_steps)
                agent.save_model(FINAL_MODEL)
                if evaluate_first:
                    grid.write_curve(agent)
            finally:
                agent.finish()
        print(f"models and logs: {agent.folder}")
        return agent.folder


class EvaluationGrid(Callback):
    """Evaluates every ``interval`` agent steps (0: never), keeps the best model and remembers the curve."""

    def __init__(self, interval: int, evaluate_first: bool) -> None:
        self.interval, self.evaluate_first = interval, evaluate_first
        self.next = interval
        self.frames: list[int] = []
        self.means: list[float] = []

    def on_train_begin(self, agent: Agent[Any], target_steps: int) -> None:
        if self.evaluate_first:
            agent.test()

    def on_step(self, agent: Agent[Any]) -> None:
        if self.interval and agent.agent_steps >= self.next:
            self.next += self.interval
            agent.test()

    def on_evaluation(self, agent: Agent[Any], evaluation: Evaluation) -> None:
        # An equal score replaces an older model: it has seen more.
        if evaluation.mean >= max(self.means, default=float("-inf")):
            agent.save_model(BEST_MODEL)
        self.frames.append(agent.frames)
        self.means.append(evaluation.mean)

    def write_curve(self, agent: Agent[Any]) -> None:
        config = agent.config
        record = {"task": config.env_id, "method": config.method, "seed": config.seed, "xs": self.frames,
                  "ys": self.means}
        write_atomic(agent.folder / CURVE, json.dumps([record]).encode())


def make_agent(config: Any, envs: Any, callbacks: Sequence[Callback]) -> Agent[Any]:
    return load(METHODS[config.method].agent)(config, envs, callbacks)


def get_runner(method: str | None = None, env: str | None = None, env_id: str | None = None,
               config_path: str | Path | None = None, is_test: bool = False, *,
               callbacks: Sequence[Callback] = (), assignments: Sequence[str] = (), **overrides: Any) -> Runner:
    """See ``xrl.get_runner``. ``assignments`` are the command line's ``key=value`` words."""
    resolved = load_config(method, env, env_id, config_path, list(assignments) if assignments else overrides)
    return Runner(resolved, is_test=is_test, callbacks=callbacks)
