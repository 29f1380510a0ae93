"""Methods beside each other, in the same tasks: by what they have seen, and by what they took."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from xrl.common.errors import ConfigError
from xrl.common.files import write_atomic
from xrl.report.plot import add_legend, checked_picture, curves_at, draw_curves, method_colors, new_figure, save_figure
from xrl.report.scores import Curve
from xrl.report.statistics import final_score
from xrl.report.tables import Cell, Table

WIDTH, HEIGHT = 4.1, 2.9  # inches, of a panel
FAR_APART = 20.0          # times as far as the shortest goes the longest: then an axis is logarithmic

Levels = Mapping[str, float]
"""Task -> the score that is asked for."""


@dataclass(frozen=True)
class Comparison:
    """What `compare` wrote, and the table itself."""

    picture: Path
    page: Path
    table: Table

    def __str__(self) -> str:
        return f"{self.table.markdown()}\n{self.picture}\n{self.page}"


def compare(*places: str | Path, threshold: float | str | None = None,
            out: str | Path = "comparison.png") -> Comparison:
    """Lay the methods at ``places`` (see `find_curves`) on one picture, and in one table.

    A line of two panels for each task: evaluations by frames, and by the minutes that were trained until then. Each
    seed is a thin line, the mean of a method's seeds a thick one. ``threshold``: the score that is asked for, or one
    for each task, as in ``CartPole-v1=475,Pendulum-v1=-200``. ``out``: a .png, .svg or .pdf; the table goes beside it,
    as .md. Raises ConfigError, where they cannot be written, too.
    """
    path = checked_picture(Path(out))
    curves = curves_at(places, "compare")
    tasks = list(dict.fromkeys(curve.task for curve in curves))
    levels = read_levels(threshold, tasks)
    save_figure(_draw(curves, tasks, levels), path)
    table, page = comparison_table(curves, levels), path.with_suffix(".md")
    try:
        write_atomic(page, table.markdown().encode())
    except OSError as error:
        raise ConfigError(f"out: {str(page)!r}: cannot be written: {error.strerror}; name another place") from error
    return Comparison(path, page, table)


def read_levels(threshold: float | str | None, tasks: Sequence[str]) -> dict[str, float]:
    """A number for the one task there is, or ``TASK=NUMBER,...``. Raises ConfigError."""
    if threshold is None:
        return {}
    levels = {}
    for part in str(threshold).split(","):
        task, equals, text = part.rpartition("=")
        if not equals and len(tasks) > 1:
            raise ConfigError(f"threshold: {threshold!r} is one score, and there are {len(tasks)} tasks; give one to "
                              f"each, as in {','.join(f'{task}=100' for task in tasks[:3])}")
        task = task.strip() if equals else tasks[0]
        if task not in tasks:
            raise ConfigError(f"threshold: there is no run of {task!r}; there are runs of {', '.join(tasks)}")
        try:
            levels[task] = float(text)
        except ValueError:
            levels[task] = math.nan
        if not math.isfinite(levels[task]):
            raise ConfigError(f"threshold: {text!r} is no score; give a number, or TASK=NUMBER for each task")
    return levels


# The table -----------------------------------------------------------------------------------------------------------

def comparison_table(curves: Sequence[Curve], levels: Levels) -> Table:
    """A row for each task and method; with ``levels`` also how many seeds came to the level of the task, and when."""
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.task, curve.method), []).append(curve)
    columns = ["task", "method", "seeds", "best", "final", "worst", "frames", "minutes"]
    notes = ["best: the best evaluation of a seed, final: the mean of its last 5, that at 0 frames excepted; both mean "
             "over seeds. worst: the least final of a seed. frames: as far as all seeds got. minutes: of training, "
             "evaluations included, mean over seeds."]
    if levels:
        columns += ["asked for", "reached by", "after frames", "after minutes"]
        notes.append("reached: with the first evaluation that is at least what is asked for; mean over the seeds that "
                     "did.")
    tasks = list(dict.fromkeys(task for task, _ in groups))
    rows = [_row(groups[key], levels) for key in sorted(groups, key=lambda key: tasks.index(key[0]))]
    return Table(tuple(columns), tuple(rows), tuple(notes))


def _row(seeds: Sequence[Curve], levels: Levels) -> tuple[Cell, ...]:
    task = seeds[0].task
    finals = [final_score(curve) for curve in seeds]
    cells: list[Cell] = [
        task, seeds[0].method, len(seeds), _mean([max(curve.ys) for curve in seeds]), _mean(finals), min(finals),
        int(min(curve.xs[-1] for curve in seeds)), _mean([None if curve.minutes is None else curve.minutes[-1]
                                                          for curve in seeds])]
    if not levels:
        return tuple(cells)
    if task not in levels:
        return (*cells, None, None, None, None)
    reached = [(curve, first) for curve in seeds if (first := first_reaching(curve, levels[task])) is not None]
    frames = _mean([curve.xs[index] for curve, index in reached])
    minutes = _mean([None if curve.minutes is None else curve.minutes[index] for curve, index in reached])
    return (*cells, levels[task], f"{len(reached)} of {len(seeds)}", None if frames is None else round(frames), minutes)


def first_reaching(curve: Curve, level: float) -> int | None:
    """The place of the first score that is at least ``level``."""
    return next((index for index, y in enumerate(curve.ys) if y >= level), None)


def _mean(values: Sequence[float | None]) -> float | None:
    """None unless all are known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


# The picture ---------------------------------------------------------------------------------------------------------

def _draw(curves: Sequence[Curve], tasks: Sequence[str], levels: Levels) -> Any:
    figure = new_figure("compare", (2 * WIDTH, HEIGHT * len(tasks) + 0.5))
    axes = figure.subplots(len(tasks), 2, squeeze=False)
    colors = method_colors(curves)
    for (by_frames, by_minutes), task in zip(axes, tasks, strict=True):
        ours = [curve for curve in curves if curve.task == task]
        timed = [replace(curve, xs=curve.minutes) for curve in ours if curve.minutes is not None]
        _draw_panel(by_frames, ours, colors, levels, "frames")
        if timed:
            _draw_panel(by_minutes, timed, colors, levels, "minutes of training")
            by_minutes.set_ylim(by_frames.get_ylim())
            by_minutes.set_ylabel("")
        else:
            by_minutes.set_axis_off()
            by_minutes.text(0.5, 0.5, "nobody kept the time of these", ha="center", transform=by_minutes.transAxes)
    add_legend(figure)
    return figure


def plain(value: float, _: int | None) -> str:
    """A number on a logarithmic axis: 0.1, 1, 10."""
    return f"{value:g}"


def _draw_panel(axis: Any, curves: Sequence[Curve], colors: Mapping[str, str], levels: Levels, unit: str) -> None:
    draw_curves(axis, curves, colors=colors, unit=unit)
    ends = [curve.xs[-1] for curve in curves if curve.xs[-1] > 0]
    if ends and max(ends) > FAR_APART * min(ends):
        formatter = axis.xaxis.get_major_formatter()
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(plain if unit != "frames" else formatter)
        axis.set_xlim(left=min(x for curve in curves for x in curve.xs if x > 0))
    if (level := levels.get(curves[0].task)) is not None:
        axis.axhline(level, color="gray", linewidth=1, linestyle=(0, (4, 3)), zorder=1, label="asked for")
