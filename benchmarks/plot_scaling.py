"""Draw docs/images/scaling.png from the record of benchmarks/scaling.py.

    python benchmarks/plot_scaling.py        (needs matplotlib: pip install matplotlib scipy)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from recording import RESULTS, ROOT

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, StrMethodFormatter

LABELS = {"batch": "sequences in a batch", "length": "rows of a sequence", "horizon": "imagined steps",
          "deter": "deterministic state and hidden units", "starts": "start states of imagination"}
COLORS = ("tab:blue", "tab:orange", "tab:green")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, default=RESULTS / "scaling.json")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images" / "scaling.png")
    options = parser.parse_args()
    draw(json.loads(options.input.read_text()), options.output)


def draw(record: dict[str, Any], path: Path) -> None:
    """One panel per size of the update, and one for the environments."""
    names = list(dict.fromkeys(scan["scan"] for scan in record["scans"]))
    columns = (len(names) + 2) // 2
    figure, axes = plt.subplots(2, columns, figsize=(4 * columns, 6.4))
    panels = list(axes.flat)
    for axis, name in zip(panels, names, strict=False):
        draw_scan(axis, name, [scan for scan in record["scans"] if scan["scan"] == name])
    draw_environments(panels[len(names)], record["environments"])
    for axis in panels[:len(names) + 1]:
        axis.spines[["top", "right"]].set_visible(False)
    for axis in panels[len(names) + 1:]:
        axis.set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_scan(axis: Any, name: str, scans: list[dict[str, Any]]) -> None:
    """Measured points, and the best of the fits as a line."""
    for color, scan in zip(COLORS, scans, strict=False):
        x = np.linspace(min(scan["sizes"]), max(scan["sizes"]), 200)
        a, b = scan["fits"][scan["best"]]["a"], scan["fits"][scan["best"]]["b"]
        line = {"linear": a + b * x, "square": a + b * x**2, "power": a * x**b}[scan["best"]]
        text = f"{scan['threads']} thread{'s' if scan['threads'] > 1 else ''}: {scan['formula']}"
        axis.plot(x, 1000 * line, color=color, linewidth=1, alpha=0.7, label=text)
        axis.plot(scan["sizes"], [1000 * value for value in scan["seconds"]], "o", color=color, markersize=4)
    axis.set(title=name, xlabel=LABELS[name], ylabel="ms per update", xlim=(0, None), ylim=(0, None))
    axis.legend(loc="upper left", fontsize=8)


def draw_environments(axis: Any, cases: list[dict[str, Any]]) -> None:
    """Agent steps per second against their number, both logarithmic."""
    lines = list(dict.fromkeys((case["env_id"], case["vectorize"]) for case in cases))
    for color, (env_id, vectorize) in zip(COLORS, lines, strict=False):
        own = [case for case in cases if (case["env_id"], case["vectorize"]) == (env_id, vectorize)]
        axis.plot([case["parallels"] for case in own], [case["agent_steps_per_s"] for case in own], "o-", color=color,
                  linewidth=1, markersize=4, label=f"{env_id.removeprefix('ALE/')}, {vectorize}")
    ticks = sorted({case["parallels"] for case in cases})
    axis.set(title="environments", xlabel="environments side by side", ylabel="agent steps per second", xscale="log",
             yscale="log")
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.minorticks_off()
    axis.legend(loc="center right", fontsize=8)


if __name__ == "__main__":
    main()
