"""What every run shows without being asked: a log and a progress bar. Both are ordinary callbacks."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from xrl.common.callback import Callback, Episode, Evaluation
from xrl.common.logger import Logger, cut_logs
from xrl.common.run_folder import experiment_name

if TYPE_CHECKING:
    from xrl.agents.base import Agent


class MetricLog(Callback):
    """Averages the metrics of updates over ``log_interval`` agent steps, on the device, and writes them in one go."""

    part = "logging"

    def __init__(self) -> None:
        self.logger: Logger | None = None
        self.names: list[str] = []
        self.pending: list[Tensor] = []
        self.written_at: int | None = None
        self.clock = (0.0, 0, 0)  # seconds, agent steps and updates at the last record
        self.marks: dict[str, Any] = {}  # what the logger needs to know of an earlier process of this run
        self.trained = 0.0  # seconds, before the training under way
        self.begun: float | None = None

    def on_train_begin(self, agent: Agent[Any], target_steps: int) -> None:
        self.clock = (time.perf_counter(), agent.agent_steps, agent.updates)
        self.begun = self.clock[0]
        if self.written_at is None:
            self.written_at = agent.agent_steps

    def on_update(self, agent: Agent[Any], metrics: dict[str, Tensor]) -> None:
        self.names = list(metrics)
        self.pending.append(torch.stack(list(metrics.values())))

    def on_step(self, agent: Agent[Any]) -> None:
        if agent.agent_steps >= (self.written_at or 0) + agent.config.log_interval:
            agent.settle()
            self.flush(agent)
            agent.learner.check()

    def on_episode_end(self, agent: Agent[Any], episode: Episode) -> None:
        self.write(agent, {"episode/return": episode.score, "episode/length": episode.length})

    def on_evaluation(self, agent: Agent[Any], evaluation: Evaluation) -> None:
        scores = evaluation.scores
        self.write(agent, {
            "eval/return": evaluation.mean, "eval/return_std": evaluation.std, "eval/return_min": min(scores),
            "eval/return_max": max(scores), "eval/length": sum(evaluation.lengths) / len(scores),
            "eval/episodes": len(scores), "time/wall": self.seconds()})

    def on_failure(self, agent: Agent[Any], failure: Any) -> None:
        print(f"environment {failure.env} failed and was restarted ({agent.envs.failures} of at most "
              f"{agent.config.max_env_failures}); its episode is cut:\n{failure.detail}", file=sys.stderr)
        self.write(agent, {"env/failures": agent.envs.failures})

    def on_train_end(self, agent: Agent[Any]) -> None:
        if self.pending:
            self.flush(agent)
        self.trained, self.begun = self.seconds(), None

    def seconds(self) -> float:
        """How long this run has trained, its evaluations included, over all its resumptions."""
        return self.trained + (0.0 if self.begun is None else time.perf_counter() - self.begun)

    def state_dict(self, agent: Agent[Any]) -> dict[str, Any]:
        marks = self.marks if self.logger is None else self.logger.marks()
        return {"names": self.names, "pending": list(self.pending), "written_at": self.written_at,
                "place": agent.config.log_dir, "marks": {**marks, "seconds": self.seconds()}}

    def load_state_dict(self, agent: Agent[Any], state: dict[str, Any]) -> None:
        """Cuts the log where the checkpoint was written."""
        if state:
            self.names, self.marks = list(state["names"]), dict(state["marks"])
            self.trained = float(self.marks.pop("seconds", 0.0))  # a checkpoint of before it was kept has none
            self.written_at = None if state["written_at"] is None else int(state["written_at"])
            self.pending = [values.to(agent.device) for values in state["pending"]]
        if not state or state["place"] == agent.config.log_dir:  # in another place nothing was written since
            cut_logs(self._folder(agent), self.marks)

    def on_finish(self, agent: Agent[Any]) -> None:
        if self.logger is not None:
            self.logger.close()
            self.logger = None

    def flush(self, agent: Agent[Any]) -> None:
        """Write the means of what has gathered: the one place where metrics leave the device. What is not finite,
        of updates that were left out, does not count."""
        self.written_at = agent.agent_steps
        record: dict[str, float] = {}
        if self.pending:
            values = torch.stack(self.pending)
            finite = values.isfinite()
            means = values.where(finite, 0.0).sum(0) / finite.sum(0)
            record = {name: mean for name, mean in zip(self.names, means.tolist(), strict=True) if math.isfinite(mean)}
            self.pending = []
        now = (time.perf_counter(), agent.agent_steps, agent.updates)
        seconds, steps, updates = (new - old for new, old in zip(now, self.clock, strict=True))
        self.clock = now
        if seconds > 0:
            record |= {"time/fps": steps * agent.envs.action_repeat / seconds, "time/updates_per_s": updates / seconds}
        record |= agent.timing.read(agent, int(steps), seconds)
        self.write(agent, record)
        agent.notify("on_record", record)

    def write(self, agent: Agent[Any], metrics: dict[str, float]) -> None:
        self.opened(agent).write(metrics, agent.counters)

    def opened(self, agent: Agent[Any]) -> Logger:
        """Where everything that is said about this run goes."""
        if self.logger is None:
            config = agent.config
            self.logger = Logger(config.logger, self._folder(agent), project=config.project_name,
                                 name=agent.folder.name, config=config.model_dump(mode="json"), marks=self.marks)
        return self.logger

    @staticmethod
    def _folder(agent: Agent[Any]) -> Path:
        log_dir = agent.config.log_dir
        return agent.folder if log_dir is None else (
            Path(log_dir) / experiment_name(agent.config) / agent.folder.name)


class Progress(Callback):
    """A live bar over agent steps: frames, episode return, updates, frames per second. In a file, a line now and
    then."""

    part = "logging"

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None
        self.returns: deque[float] = deque(maxlen=10)
        self.clock = (0.0, 0)

    def on_train_begin(self, agent: Agent[Any], target_steps: int) -> None:
        live = sys.stderr.isatty()
        self.clock = (time.perf_counter(), agent.frames)
        self.bar = tqdm(total=target_steps, initial=agent.agent_steps, unit="step", dynamic_ncols=True,
                        mininterval=0.2 if live else 30.0, desc=f"{agent.config.method} {agent.config.env_id}",
                        bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
                                   "[{elapsed}<{remaining}]{postfix}")

    def on_step(self, agent: Agent[Any]) -> None:
        if self.bar is None:
            return
        if self.bar.update(agent.agent_steps - self.bar.n):
            self.bar.set_postfix_str(self._numbers(agent), refresh=False)

    def on_episode_end(self, agent: Agent[Any], episode: Episode) -> None:
        self.returns.append(episode.score)

    def on_evaluation(self, agent: Agent[Any], evaluation: Evaluation) -> None:
        tqdm.write(f"frames {agent.frames}: evaluation {evaluation.mean:.1f} +/- {evaluation.std:.1f} "
                   f"over {len(evaluation.scores)} episodes", file=sys.stderr)

    def on_train_end(self, agent: Agent[Any]) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(self._numbers(agent), refresh=False)
            self.bar.close()
            self.bar = None

    def _numbers(self, agent: Agent[Any]) -> str:
        seconds = time.perf_counter() - self.clock[0]
        recent = f"{sum(self.returns) / len(self.returns):.1f}" if self.returns else "-"
        return (f"frames {agent.frames}, return {recent}, updates {agent.updates}, "
                f"{(agent.frames - self.clock[1]) / max(seconds, 1e-9):.0f} frames/s")
