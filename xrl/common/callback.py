"""The extension point of a run: subclass Callback, override what you need, pass it to the agent or runner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from xrl.common.row import Row


@dataclass(frozen=True)
class Episode:
    """A finished training episode: raw return, length in agent steps, index of its environment."""

    score: float
    length: int
    env: int


@dataclass(frozen=True)
class Evaluation:
    """Raw returns of the episodes of one evaluation, and their lengths in agent steps.

    ``held_out``: the first rows of some of the episodes, each of leading shape (T,), for whoever wants to see what a
    model makes of them; see ``Recorder``.
    """

    scores: tuple[float, ...]
    lengths: tuple[int, ...]
    held_out: tuple[Row, ...] = field(default=(), compare=False, repr=False)

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores)

    @property
    def std(self) -> float:
        return (sum((score - self.mean) ** 2 for score in self.scores) / len(self.scores)) ** 0.5


class Callback:
    """Called by the agent, always at a moment when no update is under way; ``agent`` carries the counters
    ``agent_steps``, ``frames`` and ``updates``.

    A callback whose future depends on its past gives it in ``state_dict``: then a resumed run is the same run.
    ``part``: where its time is counted, see docs/metrics.md.
    """

    part: str = "callbacks"

    def on_start(self, agent: Any) -> None:
        """Everything is ready for the next step; ``on_train_begin`` follows."""

    def on_train_begin(self, agent: Any, target_steps: int) -> None:
        """``agent.train`` starts and will end at ``target_steps`` agent steps."""

    def on_step(self, agent: Any) -> None:
        """Every environment made one step."""

    def on_pretrain(self, agent: Any) -> None:
        """One of the updates that come before the policy first acts was made; the environments wait."""

    def on_episode_end(self, agent: Any, episode: Episode) -> None:
        """An episode ended in a training environment."""

    def on_update(self, agent: Any, metrics: dict[str, Tensor]) -> None:
        """The learner made one update; ``metrics`` are scalars on the device: reading one waits for it."""

    def on_evaluation(self, agent: Any, evaluation: Evaluation) -> None:
        """An evaluation is done."""

    def on_record(self, agent: Any, record: Mapping[str, float]) -> None:
        """The log wrote the means of the updates since its last such record."""

    def on_failure(self, agent: Any, failure: Any) -> None:
        """A training environment failed and was restarted; its episode ends cut."""

    def on_pause(self, agent: Any) -> None:
        """Training reached its target, or stops early at a signal; everything is whole. ``on_train_end`` follows."""

    def on_train_end(self, agent: Any) -> None:
        """``agent.train`` is about to return, or to raise."""

    def on_finish(self, agent: Any) -> None:
        """The agent is done for good: close what you opened."""

    def state_dict(self, agent: Any) -> dict[str, Any]:
        """What a checkpoint keeps of this callback: nested dicts and lists of tensors, arrays, numbers, strings."""
        return {}

    def load_state_dict(self, agent: Any, state: dict[str, Any]) -> None:
        """The run goes on from where ``state_dict`` gave ``state``; it is empty where the run begins again from its
        start because it was killed before its first checkpoint."""
