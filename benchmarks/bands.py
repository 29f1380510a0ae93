"""What is normal? The bands of xrl/report/bands.json, from runs of our own that reached what was asked of them.

    python benchmarks/bands.py models/benchmarks/DreamerV2/CartPole-v1 [more benchmark folders ...]

Of every health metric of a task: the lowest and the highest value of the seeds at each evaluation and NEAR ones to
either side of it. `judge` in xrl/report/health.py gives them room. The file says which runs it was made of. Printed is
how often each run would be warned by the bands of the others, and the table in docs/health.md.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest import mock

from xrl.common.config_files import read_yaml
from xrl.common.files import write_atomic
from xrl.common.run_folder import CONFIG, FACTS
from xrl.report import health
from xrl.report.health import BANDS, settings_of

FEWEST = 3  # seeds that have a value at these frames
NEAR = 2    # evaluations


def main() -> None:
    found = {"bands": {}, "made_of": {}} if not BANDS.exists() else json.loads(BANDS.read_text())
    for place in map(Path, sys.argv[1:]):
        folders = [path.parent for path in place.glob(f"seed_*/**/{CONFIG}")]
        runs = sorted(folder for folder in folders if (folder / "health.jsonl").exists())
        task = dict(read_yaml(runs[0] / CONFIG))["env_id"]
        found["bands"][task] = bands_of(runs)
        config = dict(read_yaml(runs[0] / CONFIG))
        facts = json.loads((runs[0] / FACTS).read_text())
        found["made_of"][task] = {"settings": settings_of(config), "seeds": len(runs), "commit": facts["commit"],
                                  "versions": facts["versions"]}
        print(f"{task}: {len(found['bands'][task])} metrics of {len(runs)} seeds; warnings by the bands of the others:",
              [len(warnings(run, task, [other for other in runs if other != run])) for run in runs])
    write_atomic(BANDS, (in_lines(found) + "\n").encode())
    print("\n" + table(found["bands"]))


def table(found: dict[str, dict[str, list[list[float]]]]) -> str:
    """Markdown: the bands at the end of a run, as docs/health.md shows them."""
    names = list(dict.fromkeys(f"health/{name}" for name in health.NUMBERS))
    lines = [f"| number | {' | '.join(found)} |", "|---|" + "---|" * len(found)]
    for name in names:
        cells = [f"{metrics[name][-1][1]:g} to {metrics[name][-1][2]:g}" if name in metrics else "-"
                 for metrics in found.values()]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def in_lines(found: dict[str, Any]) -> str:
    """JSON with a line for each metric of a task."""
    parts = []
    for name, tasks in found.items():
        blocks = [f"  {json.dumps(task)}: {{\n" + ",\n".join(
            f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items()) + "\n  }"
            for task, entries in tasks.items()]
        parts.append(f"{json.dumps(name)}: {{\n" + ",\n".join(blocks) + "\n}")
    return "{" + ",\n".join(parts) + "}"


def bands_of(runs: list[Path]) -> dict[str, list[list[float]]]:
    """Metric -> [frames, lowest, highest] by frames."""
    values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for line in (run / "health.jsonl").read_text().splitlines():
            record: dict[str, Any] = json.loads(line)
            for name, value in record["metrics"].items():
                values[name][record["frames"]].append(value)
    return {name: band for name, points in sorted(values.items()) if (band := pooled(points))}


def pooled(points: dict[int, list[float]]) -> list[list[float]]:
    grid = sorted(frames for frames, found in points.items() if len(found) >= FEWEST)
    band = []
    for i, frames in enumerate(grid):
        near = [value for other in grid[max(0, i - NEAR):i + NEAR + 1] for value in points[other]]
        band.append([frames, *(float(f"{edge:.3g}") for edge in (min(near), max(near)))])
    return band


def warnings(run: Path, task: str, others: list[Path]) -> list[str]:
    """What a run would be told by the bands of others."""
    found = {"bands": {task: bands_of(others)}}
    with mock.patch.object(health, "_file", lambda: found):
        watcher = health.Watcher({})
        return [warning for line in (run / "health.jsonl").read_text().splitlines() if (record := json.loads(line))
                for warning in watcher.see(task, record, record["metrics"])]


if __name__ == "__main__":
    main()
