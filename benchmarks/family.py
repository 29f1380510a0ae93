"""All methods on one picture: what `xrl benchmark --seeds` left becomes records, and these a picture and a table.

    python benchmarks/family.py models/benchmarks [more folders ...]

Every benchmark of several seeds below the folders is copied to benchmarks/results/seeds/<method>/<env_id>/: curves with
frames and minutes, statistics, and a record of each seed with commit, machine and test scores. DreamerV2's curves are
those of benchmarks/results/learning/, float32. The picture is docs/images/family.png, the table stands beside the
records.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from recording import RESULTS

from xrl.report.compare import compare
from xrl.report.scores import Curve, write_scores

SEEDS = RESULTS / "seeds"
PICTURE = RESULTS.parent.parent / "docs/images/family.png"
TASKS = {"CartPole-v1": 475, "Pendulum-v1": -200, "Catch-v0": 0.8}
KEPT = ("scores.json", "summary.json", "table.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*")
    arguments = parser.parse_args()
    for folder in arguments.folders:
        for table in sorted(folder.rglob("table.md")):
            keep(table.parent)
    places = [dreamer_v2(), *sorted(SEEDS.glob("*/*/scores.json"))]
    asked = ",".join(f"{task}={score}" for task, score in TASKS.items())
    print(compare(*places, threshold=asked, out=PICTURE))
    shutil.move(PICTURE.with_suffix(".md"), SEEDS / "family.md")


def keep(benchmark: Path) -> None:
    """Copy a benchmark's records."""
    place = SEEDS / benchmark.parent.name / benchmark.name
    place.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copy(benchmark / name, place)
    for result in sorted(benchmark.glob("seed_*/result.json")):
        shutil.copy(result, place / f"{result.parent.name}.json")


def dreamer_v2() -> Path:
    """The curves of DreamerV2 in the form of scores."""
    curves = []
    for task in TASKS:
        for path in sorted((RESULTS / "learning" / task).glob("seed_*.json")):
            record = json.loads(path.read_text())
            curve = record["curve"]
            curves.append(Curve(task, "DreamerV2", str(record["seed"]), tuple(map(float, curve["frames"])),
                                tuple(curve["eval_return"]), tuple(wall / 60 for wall in curve["wall_s"])))
    path = SEEDS / "DreamerV2.json"
    write_scores(path, curves)
    return path


if __name__ == "__main__":
    main()
