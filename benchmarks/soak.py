"""Train Pong with a tiny network for an hour: is memory flat, are files and threads?

    python benchmarks/soak.py [--minutes 60]

A real `xrl train` process writes a checkpoint every minute, wraps its replay many times and evaluates now and then.
Every ten seconds its memory (its own, and that of mapped files, which the system can take back), open files, threads
and child processes are read from /proc. A line is fitted to its own memory after the first ten minutes (a sixth of a
shorter run). Writes benchmarks/results/soak.json and docs/images/soak.png, and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from recording import RESULTS, ROOT, provenance

from xrl.common.checkpoint import find_checkpoints

RUN = ["--method", "DreamerV2", "--env", "atari", "--env-id", "ALE/Pong-v5", "preset=debug", "running_steps=1e9",
       "buffer_size=20_000", "checkpoint_every=1min", "eval_interval=20_000", "environment.time_limit=500",
       "log_interval=1_000", "train_every=16", "device=cpu"]
EVERY = 10.0  # seconds between samples
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--output", type=Path, default=RESULTS / "soak.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "soak.png")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        record = {**provenance(), "run": RUN, **watch(Path(place), 60 * options.minutes)}
    record |= {"slope_mib_per_hour": slope(record["samples"]), "minutes": options.minutes}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record) + "\n")
    draw(record, options.picture)
    print(table(record))


def watch(place: Path, seconds: float) -> dict[str, Any]:
    """Train for so long, then stop with SIGTERM; samples, and what was left."""
    command = [sys.executable, "-m", "xrl", "train", *RUN]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=place, stdout=log, stderr=log,
                                   env={**os.environ, "OMP_NUM_THREADS": "1"})
    samples, start = [], time.monotonic()
    while time.monotonic() - start < seconds and process.poll() is None:
        time.sleep(EVERY)
        if process.poll() is None:
            samples.append({"seconds": round(time.monotonic() - start, 1), **sample(process.pid)})
    process.send_signal(signal.SIGTERM)
    code = process.wait(120)
    if code != 128 + signal.SIGTERM:
        sys.exit(f"the run ended with {code}:\n{(place / 'log').read_text()[-3000:]}")
    (run,) = place.glob("models/*/*/*/")
    last = find_checkpoints(run)[-1]
    last.verify()
    disk = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    return {"samples": samples, "counters": last.counters, "disk_mib": disk / MIB,
            "complaints": (place / "log").read_text().count("FAILED")}


def sample(process: int) -> dict[str, float]:
    root = Path(f"/proc/{process}")
    memory = dict(line.split(":") for line in (root / "smaps_rollup").read_text().splitlines()[1:])
    private, whole = (int(memory[key].split()[0]) / 1024 for key in ("Anonymous", "Rss"))
    children = (root / "task" / str(process) / "children").read_text().split()
    return {"own_mib": private, "mapped_mib": whole - private, "files": len(list((root / "fd").iterdir())),
            "threads": len(list((root / "task").iterdir())), "children": len(children)}


def settled(samples: list[dict[str, float]]) -> list[dict[str, float]]:
    """Without the beginning, in which networks, graphs and caches are made."""
    begin = min(600.0, samples[-1]["seconds"] / 6)
    return [one for one in samples if one["seconds"] >= begin]


def slope(samples: list[dict[str, float]]) -> float:
    """Growth of the process's own memory in MiB per hour, least squares."""
    late = settled(samples)
    fitted = np.polyfit([one["seconds"] / 3600 for one in late], [one["own_mib"] for one in late], 1)
    return float(fitted[0])


def draw(record: dict[str, Any], path: Path) -> None:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    samples = record["samples"]
    minutes = [one["seconds"] / 60 for one in samples]
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 5), sharex=True, constrained_layout=True)
    for key, label in (("own_mib", "its own"), ("mapped_mib", "mapped files")):
        top.plot(minutes, [one[key] for one in samples], label=label)
    top.set_ylabel("memory, MiB")
    top.set_ylim(bottom=0)
    top.set_title(f"Pong, tiny network: own memory {record['slope_mib_per_hour']:+.1f} MiB per hour")
    for key in ("files", "threads", "children"):
        bottom.plot(minutes, [one[key] for one in samples], label=key)
    bottom.set_ylabel("count")
    bottom.set_xlabel("minutes")
    bottom.set_ylim(bottom=0)
    for axes in (top, bottom):
        axes.legend(frameon=False, loc="center right")
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def table(record: dict[str, Any]) -> str:
    late = settled(record["samples"])
    lines = ["| | first | last | smallest | largest |", "|---|---|---|---|---|"]
    for key, label in (("own_mib", "own memory, MiB"), ("mapped_mib", "mapped files, MiB"), ("files", "open files"),
                       ("threads", "threads"), ("children", "child processes")):
        values = [one[key] for one in late]
        lines.append(f"| {label} | {values[0]:.0f} | {values[-1]:.0f} | {min(values):.0f} | {max(values):.0f} |")
    counters = record["counters"]
    return "\n".join([*lines, "", f"Slope of its own memory: {record['slope_mib_per_hour']:+.1f} MiB per hour. "
                      f"{counters['agent_steps']:,} agent steps, {counters['updates']:,} updates, "
                      f"{record['disk_mib']:.0f} MiB on disk in the end, {record['complaints']} complaints."])


if __name__ == "__main__":
    main()
