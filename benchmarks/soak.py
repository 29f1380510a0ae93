"""Does a long run stay as small as it was? Pong with a tiny network, a checkpoint every minute, a replay that wraps.

    python benchmarks/soak.py [--minutes 60]

Every ten seconds: memory of the process (anonymous memory apart from the page cache it has mapped), open files, threads,
child processes. After SETTLED minutes a line is fitted to the anonymous memory. Writes benchmarks/results/soak.json and
docs/images/soak.png (matplotlib), and prints the slopes. Needs Linux (/proc).
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

from xrl.common.checkpoint import REPLAY, find_checkpoints

TRAIN = ["--method", "DreamerV2", "--env", "atari", "--env-id", "ALE/Pong-v5", "preset=debug", "device=cpu",
         "running_steps=1e9", "buffer_size=5000", "checkpoint_every=1min", "eval_interval=5000", "test_episode=1",
         "environment.time_limit=200", "log_interval=500", "parallels=2", "vectorize=async"]
EVERY = 10.0     # seconds
SETTLED = 10.0   # minutes that do not count for the slope
MEASURED = {"anonymous_mb": "anonymous memory, MB", "file_mb": "mapped files, MB", "fds": "open files",
            "threads": "threads", "children": "child processes"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=EVERY, help="seconds between samples")
    parser.add_argument("--settled", type=float, default=SETTLED, help="minutes that do not count for the slope")
    parser.add_argument("--output", type=Path, default=RESULTS / "soak.json")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "images" / "soak.png")
    options = parser.parse_args()
    record = {**provenance(), "arguments": TRAIN, "minutes": options.minutes,
              **soak(60 * options.minutes, options.every)}
    settled = min(options.settled, options.minutes / 2)
    record["slopes_per_hour"] = {key: slope(record["samples"], key, settled) for key in MEASURED}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=1) + "\n")
    draw(record, settled, options.plot)
    print(table(record, settled))
    if record["exit_code"] != 128 + signal.SIGTERM:
        sys.exit(f"the run ended with code {record['exit_code']}: {record['output']}")


def soak(seconds: float, every: float) -> dict[str, Any]:
    """Train for that long, then end the run in order; its samples and what it left."""
    samples: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        with (place / "log").open("wb") as log:
            process = subprocess.Popen([sys.executable, "-m", "xrl", "train", *TRAIN], cwd=place, stdout=log,
                                       stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
            start = time.monotonic()
            while process.poll() is None and (now := time.monotonic() - start) < seconds:
                samples.append({"minute": now / 60, **sample(process.pid)})
                time.sleep(every)
            process.terminate()
            code = process.wait(120)
        run = next(place.glob("models/*/*/*/"), None)
        checkpoints = find_checkpoints(run) if run is not None else []
        for checkpoint in checkpoints:
            checkpoint.verify()
        counters = checkpoints[-1].counters if checkpoints else {}
        return {"samples": samples, "exit_code": code, "output": (place / "log").read_text()[-1000:],
                "counters": counters, "checkpoints_left": len(checkpoints),
                "row_files_left": len(list((run / REPLAY).iterdir())) if run is not None else 0}


def sample(pid: int) -> dict[str, float]:
    """Of one process now."""
    place = Path(f"/proc/{pid}")
    kilobytes = {line.split()[0]: int(line.split()[1]) for line in (place / "smaps_rollup").read_text().splitlines()
                 if line.endswith(" kB")}
    children = "".join((task / "children").read_text() for task in (place / "task").iterdir()).split()
    anonymous = kilobytes["Anonymous:"]
    return {"anonymous_mb": anonymous / 1e3, "file_mb": (kilobytes["Rss:"] - anonymous) / 1e3,
            "fds": len(list((place / "fd").iterdir())), "threads": len(list((place / "task").iterdir())),
            "children": len(children)}


def slope(samples: list[dict[str, float]], key: str, settled: float) -> float:
    """Per hour, of the line that fits best after ``settled`` minutes; 0 where there are too few samples."""
    late = [each for each in samples if each["minute"] >= settled]
    if len(late) < 2:
        return 0.0
    return float(60 * np.polyfit([each["minute"] for each in late], [each[key] for each in late], 1)[0])


def draw(record: dict[str, Any], settled: float, path: Path) -> None:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(3, 1, figsize=(8, 7), sharex=True, height_ratios=[3, 2, 2])
    minutes = [each["minute"] for each in record["samples"]]
    for axis, keys in zip(axes, (["anonymous_mb"], ["file_mb"], ["fds", "threads", "children"]), strict=True):
        for key in keys:
            axis.plot(minutes, [each[key] for each in record["samples"]], label=MEASURED[key], linewidth=1.2)
        axis.axvline(settled, color="grey", linestyle=":", linewidth=1)
        axis.set_ylim(bottom=0)
        axis.legend(loc="lower right", frameon=False)
    axes[0].set_title(f"Pong, tiny network, a checkpoint every minute: "
                      f"{record['slopes_per_hour']['anonymous_mb']:+.1f} MB of anonymous memory per hour", fontsize=10)
    axes[-1].set_xlabel("minutes")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def table(record: dict[str, Any], settled: float) -> str:
    late = [each for each in record["samples"] if each["minute"] >= settled]
    lines = [f"{record['minutes']:g} minutes, {record['counters'].get('agent_steps', 0):,} agent steps; after the first "
             f"{settled:g} minutes:", "", "| what | least | most | slope per hour |", "|---|---|---|---|"]
    for key, text in MEASURED.items():
        found = [each[key] for each in late]
        lines.append(f"| {text} | {min(found):.0f} | {max(found):.0f} | {record['slopes_per_hour'][key]:+.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
