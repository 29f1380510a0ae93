"""What every run shows of its world model without being asked: numbers, a dream, and a warning where they are bad."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from tqdm import tqdm

from xrl.common.callback import Callback, Evaluation
from xrl.common.config_keys import flatten
from xrl.common.errors import EnvironmentFault
from xrl.common.files import write_atomic
from xrl.common.inspection import Dream
from xrl.common.row import ObsSpec
from xrl.common.seeding import EVALUATION_SEED
from xrl.environment import make_envs
from xrl.report.drawing import dream_frames, dream_plot
from xrl.report.health import Watcher, task_of
from xrl.report.run_log import VIDEOS
from xrl.report.timing import verdict
from xrl.report.video import encode_png, write_film

if TYPE_CHECKING:
    from xrl.agents.base import Agent

MOST_WARNINGS = 4  # lines at a time
DREAM_FPS, FILM_FPS = 10, 20  # rows, and agent steps, per second


class HealthLog(Callback):
    """After each evaluation ``Agent.inspect`` looks at its episodes: metrics, a line of health.jsonl, and a dream in
    the run folder's VIDEOS and in TensorBoard or wandb. Warns of what leaves its band, once until it is back."""

    part = "inspection"

    def __init__(self, obs_spec: Mapping[str, ObsSpec]) -> None:
        sizes = {f"model/{kind}_loss": sum(math.prod(spec.shape) for spec in obs_spec.values() if spec.kind == kind)
                 for kind in {spec.kind for spec in obs_spec.values()}}
        self.watcher = Watcher(sizes)
        self.spent: Counter[str] = Counter()  # seconds, by metric key
        self.first_step = self.last_step = self.first_update = 0

    def on_record(self, agent: Agent[Any], record: Mapping[str, float]) -> None:
        steps, self.last_step = agent.agent_steps - self.last_step, agent.agent_steps
        self.spent.update({name: value * steps for name, value in record.items() if name.startswith("time/")})
        self._warn(agent, record)

    def on_train_begin(self, agent: Agent[Any], target_steps: int) -> None:
        self.last_step = self.first_step = agent.agent_steps
        self.first_update = agent.updates
        self.spent.clear()

    def on_evaluation(self, agent: Agent[Any], evaluation: Evaluation) -> None:
        if (inspection := agent.inspect(evaluation.held_out) if evaluation.held_out else None) is None:
            return
        agent.log.write(agent, inspection.metrics)
        agent.log.opened(agent).write_health({"metrics": inspection.metrics, **inspection.curves}, agent.counters)
        for shown in draw_dream(agent, inspection.dream, agent.folder):
            shown.log(agent)
        self._warn(agent, inspection.metrics)

    def on_train_end(self, agent: Agent[Any]) -> None:
        if self.spent and agent.updates:
            steps = max(1, agent.agent_steps - self.first_step)
            means = {name: value / steps for name, value in self.spent.items()}
            updates = 1000 * (agent.updates - self.first_update) / steps
            print(f"time: {verdict(means, agent.config.model_dump(), updates)}", file=sys.stderr)

    def _warn(self, agent: Agent[Any], record: Mapping[str, float]) -> None:
        keys = flatten(agent.config)
        warnings = self.watcher.see(task_of(keys), agent.counters, record, keys)
        if len(warnings) > MOST_WARNINGS:
            warnings[MOST_WARNINGS - 1:] = [f"{len(warnings) - MOST_WARNINGS + 1} more numbers are off; `xrl report "
                                            f"{agent.folder}` shows them"]
        for warning in warnings:
            tqdm.write(f"health, frames {agent.frames:,}: {warning}", file=sys.stderr)

    def state_dict(self, agent: Agent[Any]) -> dict[str, Any]:
        return self.watcher.state_dict()

    def load_state_dict(self, agent: Agent[Any], state: dict[str, Any]) -> None:
        if state:
            self.watcher.load_state_dict(state)


class Filming(Callback):
    """After each evaluation a film of an episode, for runs that ask for it (``render``)."""

    part = "inspection"

    def on_train_begin(self, agent: Agent[Any], target_steps: int) -> None:
        """Finds out now, not after hours, that an environment draws nothing."""
        with make_envs(agent.config, parallels=1, render_mode="rgb_array") as envs:
            envs.reset()
            envs.picture()

    def on_evaluation(self, agent: Agent[Any], evaluation: Evaluation) -> None:
        try:
            shown = film(agent, agent.folder, EVALUATION_SEED)
        except EnvironmentFault as error:  # a film is not worth a run
            tqdm.write(f"no film: {error}", file=sys.stderr)
            return
        for one in shown:
            one.log(agent)


@dataclass(frozen=True)
class Shown:
    """What was drawn: ``path`` without its ending, and the PNG or GIF itself."""

    path: Path
    data: bytes
    size: tuple[int, int]

    def log(self, agent: Agent[Any]) -> None:
        kind, form = self.path.name.partition("_")[0], "gif" if self.data.startswith(b"GIF") else "png"
        agent.log.opened(agent).write_picture(f"{kind}/{form}", self.data, self.size, agent.counters)


def draw_dream(agent: Agent[Any], dream: Dream, folder: Path, kind: str = "dream") -> list[Shown]:
    """Into a run folder: a film of images, a plot of vectors; of observations that have both, both."""
    ranks = {value.ndim for value in dream.rows.obs.values()}
    title = f"{agent.config.env_id}, frames {agent.frames:,}"
    films = [frames for rank, frames in ((4, lambda: dream_frames(dream, title)),
                                         (2, lambda: [dream_plot(dream, title)])) if rank in ranks]
    return [shown for frames in films for shown in _save(agent, folder, kind, frames(), DREAM_FPS)]


def film(agent: Agent[Any], folder: Path, seed_offset: int, kind: str = "evaluation") -> list[Shown]:
    """An episode, as the environment draws it, into a run folder."""
    return _save(agent, folder, kind, agent.film(seed_offset), FILM_FPS)


def _save(agent: Agent[Any], folder: Path, kind: str, frames: list[np.ndarray], fps: float) -> list[Shown]:
    """One picture as PNG, several as GIF and MP4; a disk that is full costs the picture, not the run."""
    path = folder / VIDEOS / f"{kind}_{agent.frames:012d}"
    try:
        if len(frames) > 1:
            data = write_film(path, frames, fps)
        else:
            data = encode_png(frames[0])
            write_atomic(path.with_name(f"{path.name}.png"), data, durable=False)
    except (OSError, cv2.error) as error:
        print(f"{kind}: no picture: {error}", file=sys.stderr)
        return []
    return [Shown(path, data, frames[0].shape[:2])]
