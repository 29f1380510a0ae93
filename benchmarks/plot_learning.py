"""Draw docs/images/learning.png from the records of benchmarks/learning.py, and print their table as Markdown.

    python benchmarks/plot_learning.py        (needs matplotlib: pip install matplotlib scipy)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "learning"
TASKS = {"CartPole-v1": (475.0, "return"), "Pendulum-v1": (-200.0, "return"), "Catch-v0": (0.8, "return")}


COLORS = {"fp32": "tab:blue", "bf16": "tab:orange"}


def main() -> None:
    tasks = {task: load(task) for task in TASKS if (RESULTS / task).is_dir()}
    figure, axes = plt.subplots(1, len(tasks), figsize=(4 * len(tasks), 3.2), squeeze=False)
    for axis, (task, records) in zip(axes[0], tasks.items(), strict=True):
        draw(axis, task, records)
    figure.tight_layout()
    path = ROOT / "docs" / "images" / "learning.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    for task, records in tasks.items():
        print(f"\n{task}\n\n| seed | precision | best model | last model | frames of the best | reached | wall time "
              "| commit |\n|---|---|---|---|---|---|---|---|")
        for record in records:
            best, last = (f"{record[name]['test_mean']:.1f}" for name in ("best", "last"))
            print(f"| {record['seed']} | {record['precision']} | {best} | {last} | {frames_of_the_best(record):,} "
                  f"| {reached(record, TASKS[task][0])} | {record['wall_s'] / 60:.1f} min | {record['commit']} |")


def frames_of_the_best(record: dict[str, Any]) -> int:
    """An equal score replaces an older model, so it is the last of the best."""
    returns = record["curve"]["eval_return"]
    last = max(i for i, value in enumerate(returns) if value == max(returns))
    return int(record["curve"]["frames"][last])


def reached(record: dict[str, Any], threshold: float) -> str:
    """When the first evaluation met the threshold."""
    curve = record["curve"]
    if "wall_s" not in curve:
        return "-"
    times = [seconds for seconds, value in zip(curve["wall_s"], curve["eval_return"], strict=True)
             if value >= threshold]
    return f"{times[0] / 60:.1f} min" if times else "never"


def load(task: str) -> list[dict[str, Any]]:
    paths = [*sorted((RESULTS / task).glob("seed_*.json")), *sorted((RESULTS / task).glob("bf16/seed_*.json"))]
    # The oldest records were made before there was a precision to choose, or a clock beside the curve.
    return [{"precision": "fp32", **json.loads(path.read_text())} for path in paths]


def draw(axis: Any, task: str, records: list[dict[str, Any]]) -> None:
    """Every seed thin, the mean of a precision thick, the threshold dashed."""
    threshold, label = TASKS[task]
    for precision, color in COLORS.items():
        own = [record["curve"] for record in records if record["precision"] == precision]
        for curve in own:
            axis.plot(curve["frames"], curve["eval_return"], color=color, alpha=0.35, linewidth=1)
        if own:
            axis.plot(own[0]["frames"], np.mean([curve["eval_return"] for curve in own], axis=0), color=color,
                      linewidth=2, label=f"{precision}, mean of {len(own)} seeds")
    axis.axhline(threshold, color="gray", linestyle="--", linewidth=1, label=f"{threshold:g}")
    axis.set(title=task, xlabel="frames", ylabel=f"evaluation {label}")
    axis.legend(loc="lower right", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
