"""What many seeds in many tasks come to: aggregates as rliable defines them (Agarwal et al. 2021), with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xrl.common.errors import ConfigError
from xrl.report.baselines import Baselines
from xrl.report.scores import Curve

Scores = Mapping[str, Sequence[float]]
"""Task -> the score of each seed."""


@dataclass(frozen=True)
class Estimate:
    """A value and its confidence interval; None where a single seed says nothing about the others."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Summary:
    """Aggregates over seeds and tasks; see `summarise`."""

    mean: Estimate
    median: Estimate
    iqm: Estimate


@dataclass(frozen=True)
class GameScore:
    """Of one game: the mean score over seeds, and that normalised by the gamer and by the record."""

    score: float
    gamer: float
    record: float


@dataclass(frozen=True)
class HumanScores:
    """By game, and over games. Clipped: a game counts 1 at most, so that none outweighs the others."""

    games: dict[str, GameScore]
    gamer_median: float
    gamer_mean: float
    record_mean: float
    clipped_record_mean: float


def final_score(curve: Curve, frames: float | None = None, last: int = 5) -> float:
    """The mean of the ``last`` points at or before ``frames`` (None: of all), without that of the untrained policy, at
    0 frames, which published curves do not have; unless it is all there is. Raises ConfigError if there is none."""
    points = [(x, y) for x, y in zip(curve.xs, curve.ys, strict=True) if frames is None or x <= frames]
    ys = [y for x, y in points if x > 0] or [y for _, y in points]
    if not ys:
        raise ConfigError(f"{curve.task}, {curve.method}, seed {curve.seed}: has no score at or before {frames:,.0f} "
                          f"frames, the first is at {curve.xs[0]:,.0f}; compare at later frames")
    return float(np.mean(ys[-last:]))


def final_scores(curves: Iterable[Curve], frames: float | None = None) -> dict[str, list[float]]:
    """Task -> `final_score` of each curve of it."""
    scores: dict[str, list[float]] = {}
    for curve in curves:
        scores.setdefault(curve.task, []).append(final_score(curve, frames))
    return scores


def summarise(scores: Scores, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Summary:
    """Mean, median and interquartile mean of the scores of several seeds in one or several tasks.

    mean: of the tasks' means. median: of the tasks' means; where there is one task, of its seeds. iqm: the mean of the
    middle half of all scores, whichever task they are from. Intervals: percentiles of a bootstrap that resamples seeds
    within each task; none if a task has one seed only. Raises ConfigError if there is no score.
    """
    samples = [np.asarray(values, dtype=np.float64) for values in scores.values()]
    if not samples or not all(sample.size for sample in samples):
        empty = next((task for task, values in scores.items() if len(values) == 0), "any task")
        raise ConfigError(f"statistics: there is no score of {empty}; give at least one seed of each task")
    bootstrap, trim_mean = _scipy()

    def iqm(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(trim_mean(np.concatenate(samples, axis=axis), 0.25, axis=axis))

    def estimate(statistic: Callable[..., np.ndarray]) -> Estimate:
        value = float(statistic(*samples))
        if min(sample.size for sample in samples) < 2:
            return Estimate(value)
        # Percentiles, as in rliable; they also stand where all seeds agree, which BCa does not.
        found = bootstrap(samples, statistic, n_resamples=resamples, confidence_level=confidence, vectorized=True,
                          method="percentile", random_state=np.random.default_rng(seed)).confidence_interval
        return Estimate(value, float(found.low), float(found.high))

    return Summary(estimate(_mean), estimate(_median), estimate(iqm))


def _mean(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)


def _median(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    if len(samples) == 1:
        return np.median(samples[0], axis=axis)
    return np.median([sample.mean(axis=axis) for sample in samples], axis=0)


def human_scores(curves: Iterable[Curve], baselines: Baselines, frames: float | None = None) -> HumanScores:
    """Scores of one method as the DreamerV2 paper reports them: the mean of each run's last points, then over the seeds
    of a game, normalised, then over games. Raises ConfigError where a baseline is missing or methods are mixed."""
    curves = list(curves)
    if len(methods := sorted({curve.method for curve in curves})) != 1:
        raise ConfigError(f"human-normalised scores: are of one method, not of {', '.join(methods) or 'none'}; choose "
                          f"the curves of one")
    games = {}
    for task, values in final_scores(curves, frames).items():
        mean = float(np.mean(values))
        games[task] = GameScore(mean, baselines.normalise(task, mean, "human_gamer"),
                                baselines.normalise(task, mean, "human_record"))
    gamer = np.array([game.gamer for game in games.values()])
    record = np.array([game.record for game in games.values()])
    return HumanScores(games, float(np.median(gamer)), float(gamer.mean()), float(record.mean()),
                       float(np.minimum(record, 1.0).mean()))


def _scipy() -> tuple[Callable[..., Any], Callable[..., Any]]:
    try:
        from scipy.stats import bootstrap, trim_mean
    except ImportError as error:
        raise ConfigError(f"statistics need scipy ({error}); install it with: pip install matplotlib scipy") from error
    return bootstrap, trim_mean
