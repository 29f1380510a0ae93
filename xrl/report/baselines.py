"""Scores of random play, of people and of other agents, and scores normalised by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from xrl.common.errors import ConfigError
from xrl.common.registry import suggestion
from xrl.report.scores import is_number, read_json

Person = Literal["human_gamer", "human_record"]
PEOPLE: tuple[Person, Person] = ("human_gamer", "human_record")
FORM = 'a JSON object {"atari_pong": {"random": -20.7, "human_gamer": 14.6, "human_record": 21.0, ...}, ...}'

# Task -> column -> (what the published baselines.json says, what is right).
# James Bond: its row has slipped by a column: `human_gamer` holds random play's 29.0 and `dqn_determ_2e8` the person's
# 302.8. Those two are what the literature of DQN normalises by (as in DQN Zoo's atari_data.py). With the wrong ones the
# mean over games of the gamer-normalised score of DreamerV2 comes out near 40; the paper prints 11.33.
CORRECTIONS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "atari_james_bond": {"random": (7.0, 29.0), "human_gamer": (29.0, 302.8)},
}


@dataclass(frozen=True)
class Baselines:
    """Task -> agent -> score. ``notes``: what was corrected in reading, a sentence each."""

    path: str
    scores: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...] = ()

    def normalise(self, task: str, score: float, to: Person = "human_gamer") -> float:
        """(score - random) / (to - random): 0 is random play, 1 the gamer or the record. Raises ConfigError if the
        file does not say what they are."""
        random, human = self._score(task, "random"), self._score(task, to)
        if random == human:
            raise ConfigError(f"{self.path}: {task}: 'random' and {to!r} are both {human:g}, so nothing can be "
                              f"normalised by them; correct the file")
        return (score - random) / (human - random)

    def _score(self, task: str, column: str) -> float:
        if task not in self.scores:
            raise ConfigError(f"{self.path}: has no task {task!r}.{suggestion(task, self.scores)} Leave the baselines "
                              f"out for tasks that have none")
        if column not in self.scores[task]:
            raise ConfigError(f"{self.path}: {task}: has no {column!r}, only {', '.join(self.scores[task])}; add it, "
                              f"or leave the baselines out")
        return self.scores[task][column]


def read_baselines(path: str | Path) -> Baselines:
    """The baselines in a file of FORM, corrected where CORRECTIONS knows better. Raises ConfigError."""
    tasks = read_json(path, FORM)
    if not isinstance(tasks, dict) or not tasks:
        raise ConfigError(f"{path}: must be {FORM}")
    scores: dict[str, dict[str, float]] = {}
    for task, columns in tasks.items():
        if not isinstance(columns, dict):
            raise ConfigError(f"{path}: {task!r}: is not an object of scores by agent; the file must be {FORM}")
        scores[task] = {column: _number(path, task, column, value) for column, value in columns.items()}
    notes = []
    for task, replacements in CORRECTIONS.items():
        for column, (wrong, right) in replacements.items():
            if scores.get(task, {}).get(column) == wrong:
                scores[task][column] = right
                notes.append(f"{task}: {column} {wrong} in {Path(path).name} is wrong and was replaced by {right}, "
                             f"the literature's.")
    return Baselines(str(path), scores, tuple(notes))


def _number(path: str | Path, task: str, column: str, value: Any) -> float:
    if not is_number(value):
        raise ConfigError(f"{path}: {task}: {column!r} is {value!r}, not a finite number; the file must be {FORM}")
    return float(value)
