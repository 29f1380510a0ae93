"""Charts as inline SVG, drawn by matplotlib in colours that the page names: they follow it from light to dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from xrl.common.errors import ConfigError
from xrl.report.run_files import Health, RunFiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours stand for variables of the page's style sheet, by which they are replaced in the SVG.
INK, MUTED, LINE, BLUE, ORANGE = "#010101", "#020202", "#030303", "#040404", "#050505"
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", BLUE: "--blue", ORANGE: "--orange"}
SMALL, WIDE = (3.9, 2.45), (9.6, 3.1)  # inches, of 72 units in the SVG
MINUS = "\N{MINUS SIGN}"
STEPS = (1, 2, 2.5, 5, 10)  # between ticks, and times ten
MOST_POINTS = 300       # of a line
FEWEST_EPISODES = 20     # that have a running mean
MOST_DOTS = 400         # of training episodes
STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "font.size": 8.5, "axes.linewidth": 0.7, "axes.edgecolor": LINE, "axes.labelcolor": MUTED,
    "xtick.color": LINE, "ytick.color": LINE, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "text.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": LINE,
    "grid.linewidth": 0.5, "axes.axisbelow": True, "lines.linewidth": 1.5, "legend.frameon": False,
    "legend.fontsize": 8, "legend.handlelength": 1.4, "axes.facecolor": "none", "figure.facecolor": "none",
    "axes.xmargin": 0.02, "legend.labelcolor": INK}

Points = Sequence[tuple[float, ...]]


def draw(name: str, label: str, paint: Callable[[Axes], None], size: tuple[float, float] = SMALL) -> str:
    """One chart. ``name`` makes the ids in it unique in a page; ``label`` says in words what it shows.

    Raises ConfigError where matplotlib is missing.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, MaxNLocator
    except ImportError as error:
        raise ConfigError(f"report: charts need matplotlib ({error}); pip install matplotlib scipy") from error
    style: dict[Any, Any] = {**STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        canvas, axes = FigureCanvasSVG(figure), figure.add_subplot()
        axes.tick_params(length=0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
            axis.set_major_locator(MaxNLocator(4 if size == SMALL and axis is axes.xaxis else 6, steps=STEPS))
        paint(axes)
        target = io.StringIO()
        canvas.print_svg(target, metadata={"Date": None})
    return _inline(target.getvalue(), label)


def _inline(svg: str, label: str) -> str:
    """An SVG document as an element of a page: no names that occur twice, no fonts, sizes or colours of its own."""
    box = re.search(r'viewBox="([^"]*)"', svg)
    body = svg[svg.index(">", svg.index("<svg")) + 1:]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r" font-family: [^;\"]*;?", "", body)
    body = re.sub(r' (?:d|x|y|points)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), body)
    for color, variable in VARIABLES.items():
        body = body.replace(color, f"var({variable})")
    body = re.sub(r"\s*\n\s*", "\n", body)
    assert box is not None
    return f'<svg viewBox="{box[1]}" role="img" aria-label="{escape(label)}">{body.strip()}'


def short(value: float) -> str:
    """A number on an axis: 1.5M, 20k, 0.25."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1000 * size and (size > 1e3 or abs(value) >= 1e4):
            return f"{value / size:.4g}{unit}".replace("-", MINUS)
    return f"{value:.4g}".replace("-", MINUS)


# A run over frames ---------------------------------------------------------------------------------------------------

def returns(run: RunFiles, size: tuple[float, float]) -> str:
    """Scores of evaluations and of training episodes; nothing where there is neither."""
    evaluations, episodes = run.series("eval/return"), run.series("episode/return")
    if not evaluations[0] and not episodes[0]:
        return ""
    low, high = run.series("eval/return_min"), run.series("eval/return_max")

    def paint(axes: Axes) -> None:
        if episodes[0]:
            every = max(1, -(-len(episodes[0]) // MOST_DOTS))
            axes.plot(episodes[0][::every], episodes[1][::every], "o", color=MUTED, alpha=0.8, markersize=3,
                      markeredgewidth=0, label="training episode")
        if len(episodes[0]) >= FEWEST_EPISODES:
            axes.plot(*thinned(episodes[0], running_mean(episodes[1])), color=MUTED, linewidth=1.2,
                      label="running mean of those")
        if evaluations[0]:
            if len(low[0]) == len(high[0]) == len(evaluations[0]) > 1:
                axes.fill_between(low[0], low[1], high[1], color=BLUE, alpha=0.2, linewidth=0,
                                  label="worst to best episode")
            axes.plot(*evaluations, color=BLUE, marker="o", markersize=3.5 if len(evaluations[0]) < 60 else 0,
                      label="evaluation, mean")
        axes.set(xlabel="frames", ylabel="return")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4 if size == WIDE else 2, columnspacing=1.2)

    return draw(f"returns{size}", "Return of evaluations and of training episodes over frames", paint, size)


def metric(run: RunFiles, keys: Mapping[str, str], title: str) -> str:
    """Metrics over frames, ``keys``: metric -> its name in the legend; nothing where there is none of them."""
    found = [(name, *run.series(key)) for key, name in keys.items()]
    lines = [(name, thinned(x, y)) for name, x, y in found if x]
    return draw(f"metric {title}", f"{title} over frames", lambda axes: _paint_lines(axes, lines)) if lines else ""


def _paint_lines(axes: Axes, lines: Sequence[tuple[str, tuple[np.ndarray, np.ndarray]]]) -> None:
    for (name, (x, y)), color in zip(lines, (BLUE, ORANGE, MUTED), strict=False):
        axes.plot(x, y, color=color, label=name, marker="o", markersize=2.5 if len(x) < 3 else 0)
    axes.set(xlabel="frames")
    if len(lines) > 1:
        axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))


def thinned(x: Sequence[float], y: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most MOST_POINTS points: means of neighbours."""
    parts = min(len(x), MOST_POINTS)
    return tuple(np.array([part.mean() for part in np.array_split(np.asarray(values, float), parts)])
                 for values in (x, y))  # type: ignore[return-value]


def running_mean(values: Sequence[float]) -> np.ndarray:
    """Of the values up to each, a tenth of all at most."""
    window = max(1, len(values) // 10)
    sums = np.cumsum([0.0, *values])
    end = np.arange(1, len(values) + 1)
    begin = np.maximum(end - window, 0)
    return (sums[end] - sums[begin]) / (end - begin)


# Health --------------------------------------------------------------------------------------------------------------

def horizon(health: Sequence[Health], name: str, title: str, baseline: str = "") -> str:
    """A list of each of the first, the middle and the last evaluation against the steps dreamt."""
    lined = [entry for entry in health if _known(entry, name)[0]]
    if not lined:
        return ""
    chosen = [lined[index] for index in sorted({0, len(lined) // 2, len(lined) - 1})]

    def paint(axes: Axes) -> None:
        for entry, alpha in zip(chosen, np.linspace(1, 0.4, len(chosen))[::-1], strict=True):
            x, y = _known(entry, name)
            axes.plot(x, y, color=BLUE, alpha=alpha, label=f"{short(entry.frames)} frames")
        shown = _known(chosen[-1], name)[1]
        if baseline:
            shown = shown + _known(chosen[-1], baseline)[1]
            axes.plot(*_known(chosen[-1], baseline), color=ORANGE, linestyle=(0, (4, 2)), linewidth=1.2,
                      label="last frame seen, repeated")
        # What a young model imagines is off by orders of magnitude: it may leave the chart, the newest one stays.
        axes.set(xlabel="steps dreamt", ylim=(0, min(axes.get_ylim()[1], 2 * max(shown)) or 1))
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, columnspacing=1.2)

    return draw(f"horizon {name}", f"{title} against the steps dreamt", paint)


def _known(entry: Health, name: str) -> tuple[list[float], list[float]]:
    """Steps and values, without the gaps."""
    pairs = [pair for pair in zip(entry.lists["horizon"], entry.lists[name], strict=False)
             if not any(map(math.isnan, pair))]
    return [x for x, _ in pairs], [y for _, y in pairs]


def bars(values: Sequence[float], title: str) -> str:
    """Values of the latents, the largest first."""
    known = sorted((value for value in values if not math.isnan(value)), reverse=True)[:MOST_POINTS]
    if not known:
        return ""

    def paint(axes: Axes) -> None:
        axes.bar(range(1, len(known) + 1), known, color=BLUE, width=0.75)
        axes.set(xlabel="latents, sorted")
        axes.grid(False, axis="x")
        axes.set_ylim(bottom=0)

    return draw(f"bars {title}", f"{title}, one bar per latent", paint)


def against(points: Points, left: str, right: str, title: str) -> str:
    """Points (x, y) or (x, y, count) beside the diagonal, on which they lie when x is right about y."""
    if not points:
        return ""
    x, y = [point[0] for point in points], [point[1] for point in points]
    counts = np.array([max(point[2], 0.0) if len(point) > 2 else 1.0 for point in points])
    sizes = 12 + 60 * counts / max(counts.max(), 1.0) if len(points[0]) > 2 else np.full(len(points), 14.0)
    low, high = min(*x, *y), max(*x, *y)
    room = max(0.05 * (high - low), 1e-3 * max(abs(low), abs(high)), 1e-3)

    def paint(axes: Axes) -> None:
        axes.plot([low - room, high + room], [low - room, high + room], color=MUTED, linewidth=1, linestyle=(0, (4, 2)))
        axes.scatter(x, y, s=sizes, color=BLUE, alpha=0.6, linewidths=0)
        axes.set(xlabel=left, ylabel=right, xlim=(low - room, high + room), ylim=(low - room, high + room))

    return draw(f"against {title}", f"{title}: {right} against {left}", paint)
