"""What does it cost to be shown everything? The share of a run's time that goes into dreams, health numbers and keeping
time.

    python benchmarks/overhead.py RUN_OR_FOLDER ...

Of each run below the given places: the seconds of time/inspection (health numbers, dreams, their files) and of
time/logging in its log, over the sum of all parts; and what keeping time itself costs: what entering a part takes
(measured here, now) times how often a run enters one. Writes benchmarks/results/overhead.json, prints a Markdown table.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from recording import RESULTS, provenance

from xrl.common.config_files import read_yaml
from xrl.common.run_folder import CONFIG
from xrl.common.stopwatch import Stopwatch
from xrl.report.timing import PARTS

ENTRIES = 100_000
PER_STEP = 4 + 4   # environment, policy, replay insert and the rest; four callbacks told of a step
PER_UPDATE = 14    # the update, its ten methods, drawing, moving, telling callbacks


def main() -> None:
    entry = seconds_of_an_entry()
    runs = sorted({path.parent for place in sys.argv[1:] for path in Path(place).glob(f"**/{CONFIG}")
                   if (path.parent / "health.jsonl").exists()})
    rows = [measure(run, entry) for run in runs]
    record = {**provenance(), "microseconds_of_an_entry": 1e6 * entry, "runs": rows}
    (RESULTS / "overhead.json").write_text(json.dumps(record, indent=1) + "\n")
    print("| run | trained | dreams and health | keeping time | logging | all |\n|---|---|---|---|---|---|")
    for row in rows:
        shares = " | ".join(f"{row[name]:.2%}" for name in ("inspection", "timing", "logging", "all"))
        print(f"| {row['env_id']}, seed {row['seed']} | {row['seconds']:.0f} s | {shares} |")


def seconds_of_an_entry() -> float:
    watch = Stopwatch(torch.device("cpu"))
    start = time.perf_counter()
    for _ in range(ENTRIES):
        with watch.part("a"):
            pass
    return (time.perf_counter() - start) / ENTRIES


def measure(run: Path, entry: float) -> dict[str, Any]:
    config = dict(read_yaml(run / CONFIG))
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    records = [record for record in records if "time/rest" in record]
    spent = dict.fromkeys(PARTS, 0.0)
    before = 0
    for record in records:
        for name in PARTS:
            spent[name] += record.get(f"time/{name}", 0.0) * (record["agent_steps"] - before) / 1000
        before = record["agent_steps"]
    seconds = sum(spent.values())
    timing = entry * (PER_STEP * records[-1]["agent_steps"] + PER_UPDATE * records[-1]["updates"])
    row = {"env_id": config["env_id"], "seed": config["seed"], "seconds": seconds,
           "inspection": spent["inspection"] / seconds, "logging": spent["logging"] / seconds,
           "timing": timing / seconds}
    return row | {"all": row["inspection"] + row["timing"]}


if __name__ == "__main__":
    main()
