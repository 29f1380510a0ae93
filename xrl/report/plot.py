"""Learning curves over seeds, with what others published beneath them."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from xrl.common.errors import ConfigError
from xrl.common.files import write_atomic
from xrl.report.scores import Curve, find_curves, read_scores

ENDINGS = (".png", ".svg", ".pdf")
COLORS = ("#2f7fd0", "#d9600f", "#12986a", "#c0569b", "#b58900", "#7a6fd0")  # to be told apart on white and on black
PUBLISHED = "dreamerv2"  # of the methods in a reference the one to compare with
FURTHER = 2.0            # published curves are shown so many times as far as ours go: theirs are mostly much longer
WIDTH, HEIGHT = 6.4, 4.2         # inches, of one panel alone
SMALL_WIDTH, SMALL_HEIGHT = 3.4, 2.6  # and of one of several


@dataclass(frozen=True)
class MeanCurve:
    """Over seeds, at each of ``xs`` frames: mean, least and greatest score, all (points,)."""

    xs: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def plot(*places: str | Path, reference: str | Path | None = None, out: str | Path = "curves.png",
         panels: bool = False) -> Path:
    """Draw the learning curves at ``places`` (see `find_curves`) into a .png, .svg or .pdf file; returns its path.

    Each seed is a thin line, their mean a thick one, from min to max a band; each method has a colour.
    ``reference``: a file of published scores, whose curves of the same tasks lie beneath, in gray. ``panels``: a panel
    for each task; without it, several tasks are an error. Raises ConfigError, where the file cannot be written, too.
    """
    path = checked_picture(Path(out))
    curves = curves_at(places, "plot")
    tasks = list(dict.fromkeys(curve.task for curve in curves))
    if len(tasks) > 1 and not panels:
        raise ConfigError(f"plot: these are curves of different tasks, {_listed(tasks)}, whose scores do not share an "
                          f"axis; draw a panel for each (panels=True, --panels)")
    published = [] if reference is None else read_scores(reference)
    if published and not {curve.task for curve in published} & set(tasks):
        raise ConfigError(f"{reference}: has no curve of {_listed(tasks)}; it has "
                          f"{_listed(sorted({curve.task for curve in published}))}. Leave the reference out")
    save_figure(_draw(curves, tasks, published), path)
    return path


def save_figure(figure: Any, path: Path) -> None:
    """Whole or not at all. Raises ConfigError where it cannot be written."""
    data = io.BytesIO()
    figure.savefig(data, format=path.suffix[1:].lower(), dpi=150)
    try:
        write_atomic(path, data.getvalue())
    except OSError as error:
        raise ConfigError(f"out: {str(path)!r}: cannot be written: {error.strerror}; name another place") from error


def draw_curves(axis: Any, curves: Sequence[Curve], reference: Sequence[Curve] = (),
                colors: Mapping[str, str] | None = None, unit: str = "frames") -> None:
    """Draw the ``curves`` of one task on matplotlib's ``axis``, and beneath them those of ``reference`` of that task.

    Each line that a legend should list has its label; `add_legend` puts one below the panels. Text keeps the colours
    that the axis came with. ``colors``: of each method (None: COLORS in order of appearance). ``unit``: what ``xs``
    count.
    """
    from matplotlib.ticker import EngFormatter
    colors = method_colors(curves) if colors is None else colors
    task = curves[0].task
    for method in dict.fromkeys(curve.method for curve in curves):
        seeds = [curve for curve in curves if curve.method == method]
        if len(seeds) > 1:
            for curve in seeds:
                axis.plot(curve.xs, curve.ys, color=colors[method], linewidth=0.8, alpha=0.45, zorder=3,
                          marker=_marker(curve.xs), markersize=2)
        _draw_mean(axis, seeds, method, colors[method], beneath=False)
    axis.set_xlim(left=0)
    if others := _of_interest([curve for curve in reference if curve.task == task], curves):
        end = FURTHER * max(curve.xs[-1] for curve in curves)
        end = max(end, *(curve.xs[min(1, len(curve.xs) - 1)] for curve in others))
        others = [_until(curve, end) for curve in others]
        _draw_mean(axis, others, "published", "gray", beneath=True)
        # No margin: a curve that goes on does so up to the edge.
        axis.set_xlim(right=max(curve.xs[-1] for curve in [*curves, *others]))
    axis.set_title(task, parse_math=False)
    axis.set_xlabel(unit)
    axis.set_ylabel("return in evaluation")
    if unit == "frames":  # of minutes it would make 10m out of a hundredth
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    if max(map(abs, axis.get_ylim())) >= 10_000:
        axis.yaxis.set_major_formatter(EngFormatter(sep=""))
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def method_colors(curves: Sequence[Curve]) -> dict[str, str]:
    """A colour for each method, in order of appearance."""
    methods = dict.fromkeys(curve.method for curve in curves)
    return {method: COLORS[index % len(COLORS)] for index, method in enumerate(methods)}


def add_legend(figure: Any) -> None:
    """One legend for all panels, below them: inside it would cover curves. Needs ``Figure(layout="constrained")``."""
    entries: dict[str, list[Any]] = {}
    for axis in figure.axes:
        shown: dict[str, list[Any]] = {}
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            shown.setdefault(label, []).append(handle)  # a line, and its band
        entries |= shown
    if not entries:
        return
    fit = int(figure.get_figwidth() * 13 / (max(map(len, entries)) + 6))  # some 13 letters of this size in an inch
    legend = figure.legend([tuple(handles) for handles in entries.values()], entries.keys(), frameon=False,
                           loc="outside lower center", ncols=min(max(fit, 1), len(entries)), fontsize="small")
    for text in legend.get_texts():
        text.set_parse_math(False)  # a dollar in a folder's name is a dollar


def mean_curve(curves: Sequence[Curve], share: float = 1.0) -> MeanCurve | None:
    """Mean and range of several seeds, at the union of their xs, interpolated linearly between a seed's own points.

    From where all have begun to where fewer than ``share`` of them go on. None where there is no such place.
    """
    start = max(curve.xs[0] for curve in curves)
    ends = sorted((curve.xs[-1] for curve in curves), reverse=True)
    end = ends[max(1, math.ceil(share * len(curves))) - 1]
    xs = np.unique(np.concatenate([np.asarray(curve.xs) for curve in curves]))
    xs = xs[(xs >= start) & (xs <= end)]
    if not xs.size:
        return None
    # A seed that ended is not carried on: it is no longer among those that are averaged.
    ys = np.array([np.interp(xs, curve.xs, curve.ys, right=np.nan) for curve in curves])
    return MeanCurve(xs, np.nanmean(ys, axis=0), np.nanmin(ys, axis=0), np.nanmax(ys, axis=0))


def _draw_mean(axis: Any, seeds: Sequence[Curve], name: str, color: str, beneath: bool) -> None:
    order = 0 if beneath else 2
    style = {"color": color, "linewidth": 1.5 if beneath else 2.2, "zorder": order + 2, "markersize": 4}
    if len(seeds) == 1:
        axis.plot(seeds[0].xs, seeds[0].ys, label=f"{name}, seed {seeds[0].seed}", marker=_marker(seeds[0].xs), **style)
        return
    # Some published seeds end after 1% of the frames; a mean that ended with them would be no use.
    mean = mean_curve(seeds, share=0.5 if beneath else 1.0)
    if mean is None:
        axis.plot([], [], label=f"{name}, {len(seeds)} seeds, which share no frames", **style)
        return
    label = f"{name}, {len(seeds)} seeds: mean, min to max"
    axis.fill_between(mean.xs, mean.low, mean.high, color=color, alpha=0.22 if beneath else 0.16, linewidth=0,
                      zorder=order, label=label)
    axis.plot(mean.xs, mean.mean, label=label, marker=_marker(mean.xs), **style)


def _marker(xs: Sequence[float] | np.ndarray) -> str:
    return "o" if len(xs) == 1 else ""  # a line of one point is not seen


def _of_interest(published: list[Curve], ours: Sequence[Curve]) -> list[Curve]:
    """Curves of one of the methods in a reference: ours, where it is there and the only one we have."""
    methods = dict.fromkeys(curve.method for curve in published)
    own = {method for method in methods for curve in ours if method.lower() == curve.method.partition(" (")[0].lower()}
    usual = PUBLISHED if PUBLISHED in methods else next(iter(methods), None)
    chosen = next(iter(own)) if len(own) == 1 else usual
    return [curve for curve in published if curve.method == chosen]


def _until(curve: Curve, end: float) -> Curve:
    count = max(1, sum(x <= end for x in curve.xs))
    return replace(curve, xs=curve.xs[:count], ys=curve.ys[:count])


def curves_at(places: Sequence[str | Path], command: str) -> list[Curve]:
    """The curves at all places, for a ``command``. Where two places have the same seed of the same method they are
    different experiments, which no mean should mix: their methods are told apart by the place."""
    if wrong := [place for place in places if not isinstance(place, str | Path)]:
        raise ConfigError(f"{command}: {wrong[0]!r} is no place; give several as arguments of their own: "
                          f"{command}(*places)")
    found = {str(place): find_curves(place) for place in places}
    keys = [{(curve.task, curve.method, curve.seed) for curve in curves} for curves in found.values()]
    if len(set().union(*keys)) < sum(map(len, keys)):
        found = {place: [replace(curve, method=f"{curve.method} ({place})") for curve in curves]
                 for place, curves in found.items()}
    if not found:
        raise ConfigError(f"{command}: nothing to draw; name at least one run folder, folder of runs or file of scores")
    return [curve for curves in found.values() for curve in curves]


def checked_picture(path: Path) -> Path:
    """``path``. Raises ConfigError unless a picture can be there."""
    if path.suffix.lower() not in ENDINGS:
        raise ConfigError(f"out: {str(path)!r} must end in {', '.join(ENDINGS)}, which says what kind of picture it is")
    if not path.parent.is_dir():
        raise ConfigError(f"out: {str(path)!r}: there is no folder {str(path.parent)!r}; make it first")
    return path


def _listed(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def new_figure(command: str, size: tuple[float, float]) -> Any:
    """An empty figure of so many inches. Raises ConfigError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(f"{command}: needs matplotlib ({error}); install it with: pip install matplotlib "
                          f"scipy") from error
    return Figure(figsize=size, layout="constrained")


def _draw(curves: Sequence[Curve], tasks: Sequence[str], published: Sequence[Curve]) -> Any:
    columns = len(tasks) if len(tasks) <= 3 else min(math.ceil(math.sqrt(len(tasks))), 6)
    lines = math.ceil(len(tasks) / columns)
    size = (WIDTH, HEIGHT) if len(tasks) == 1 else (SMALL_WIDTH * columns, SMALL_HEIGHT * lines)
    figure = new_figure("plot", size)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    colors = method_colors(curves)
    for axis, task in zip(axes, tasks, strict=False):
        draw_curves(axis, [curve for curve in curves if curve.task == task], published, colors)
    for axis in axes[len(tasks):]:
        axis.remove()
    for index, axis in enumerate(axes[:len(tasks)]):  # of several panels the first of a line names their axis
        if index % columns:
            axis.set_ylabel("")
    add_legend(figure)
    return figure
