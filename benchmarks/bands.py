"""What is normal? The bands of xrl/report/bands.json, from runs of our own that reached what was asked of them.

    python benchmarks/bands.py models/benchmarks/DreamerV2/CartPole-v1 [more benchmark folders ...]

Of every health metric of a task: the lowest and the highest value of the seeds at each evaluation. `judge` in
xrl/report/health.py gives them room to either side. The file says which runs it was made of.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from xrl.common.config_files import read_yaml
from xrl.common.files import write_atomic
from xrl.common.run_folder import CONFIG, FACTS
from xrl.report.health import BANDS

FEWEST = 3  # seeds that have a value at these frames


def main() -> None:
    found = {"bands": {}, "made_of": {}} if not BANDS.exists() else json.loads(BANDS.read_text())
    for place in map(Path, sys.argv[1:]):
        runs = sorted(path.parent for path in place.glob(f"seed_*/**/{CONFIG}") if (path.parent / "health.jsonl").exists())
        task = dict(read_yaml(runs[0] / CONFIG))["env_id"]
        found["bands"][task] = bands_of(runs)
        facts = json.loads((runs[0] / FACTS).read_text())
        found["made_of"][task] = {"seeds": len(runs), "commit": facts["commit"], "versions": facts["versions"]}
        print(f"{task}: {len(found['bands'][task])} metrics of {len(runs)} seeds")
    lines = json.dumps(found, indent=1).replace("[\n      ", "[").replace(",\n      ", ", ").replace("\n     ]", "]")
    write_atomic(BANDS, (lines + "\n").encode())


def bands_of(runs: list[Path]) -> dict[str, list[list[float]]]:
    """Metric -> [frames, lowest, highest] by frames."""
    values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for line in (run / "health.jsonl").read_text().splitlines():
            record: dict[str, Any] = json.loads(line)
            for name, value in record["metrics"].items():
                values[name][record["frames"]].append(value)
    return {name: [[frames, *(float(f"{edge:.3g}") for edge in (min(found), max(found)))]
                   for frames, found in sorted(points.items()) if len(found) >= FEWEST]
            for name, points in sorted(values.items())}


if __name__ == "__main__":
    main()
