"""Kill a run with signal 9 at a random moment, resume it, and compare it with a run that nothing happened to.

    python benchmarks/kill.py [--kills 210] [--side-by-side 2] [--cases CartPole Pendulum ...] [--seed 0]

Each case is a small run that checkpoints often and whose replay wraps. It is trained once without disturbance; then
again and again, killed after a random time (in a quarter of the trials while a checkpoint is being written), and
resumed to the end with `xrl train --resume`. Compared are every array of the last checkpoint (weights, optimisers,
generators, latent states, environments), every row of the replay, the log without its wall-clock keys, and what was
seen of the world model's health. Writes benchmarks/results/kill.json and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from recording import RESULTS, provenance
from safetensors.numpy import load_file

from xrl.common.checkpoint import REPLAY, find_checkpoints
from xrl.common.logger import EVENTS, HEALTH, METRICS

TINY = ["preset=debug", "buffer_size=300", "checkpoint_every=30", "device=cpu"]
CASES: dict[str, list[str]] = {
    "CartPole": ["--env", "classic_control", "--env-id", "CartPole-v1", *TINY, "running_steps=700", "logger=none",
                 "parallels=2"],
    "CartPole, everything at once": [
        "--env", "classic_control", "--env-id", "CartPole-v1", *TINY, "running_steps=700", "parallels=3",
        "vectorize=async", "policy_lag=1", "batches_ahead=1", "logger=tensorboard", "replay.sampling=episodes",
        "replay.storage=memory"],
    "Pendulum": ["--env", "classic_control", "--env-id", "Pendulum-v1", *TINY, "running_steps=700", "logger=none",
                 "environment.time_limit=40"],
    "Pong": ["--env", "atari", "--env-id", "ALE/Pong-v5", *TINY, "running_steps=500", "logger=none",
             "environment.time_limit=60", "parallels=2"],
}
LONGEST = 300.0  # seconds that a run may take before it counts as hung


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=210)
    parser.add_argument("--side-by-side", type=int, default=2, help="trials at the same time")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", type=Path, default=RESULTS / "kill.json")
    options = parser.parse_args()
    record = {**provenance(), "seed": options.seed, "cases": []}
    for number, case in enumerate(options.cases):
        kills = options.kills // len(options.cases) + (number < options.kills % len(options.cases))
        record["cases"].append(measure(case, kills, options.side_by_side, options.seed))
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record["cases"]))
    if any(case["different"] for case in record["cases"]):
        sys.exit("not the same run")


def measure(case: str, kills: int, side_by_side: int, seed: int) -> dict[str, Any]:
    """One case: the undisturbed run, then ``kills`` disturbed ones."""
    with tempfile.TemporaryDirectory() as place:
        start = time.perf_counter()
        run = train(case, Path(place))
        whole = time.perf_counter() - start
        expected = outcome(run)
        began = (run / "config.yaml").stat().st_mtime
        seconds = time.time() - began
    rng = random.Random(f"{seed} {case}")
    plans = [(index, rng.random(), rng.random() < 0.25) for index in range(kills)]
    with ThreadPoolExecutor(side_by_side) as pool:
        trials = list(pool.map(lambda plan: trial(case, expected, seconds, *plan), plans))
    found = Counter(kind for trial in trials for kind in trial["notes"])
    return {"case": case, "arguments": CASES[case], "kills": kills, "seconds": round(whole, 1), "expected": expected,
            "notes": dict(found), "different": [trial for trial in trials if trial["different"]]}


def trial(case: str, expected: dict[str, str], seconds: float, index: int, moment: float,
          while_writing: bool) -> dict[str, Any]:
    """Kill one run at ``moment`` of its length, or, after that, as soon as a checkpoint is being written; resume it."""
    with tempfile.TemporaryDirectory() as name:
        place, notes = Path(name), []
        process = subprocess.Popen(command(case, place), **quiet(place), start_new_session=True)
        config = wait_for(lambda: next(place.glob("models/*/*/*/config.yaml"), None), process)
        time.sleep(moment * seconds)
        if while_writing and config is not None:
            wait_for(lambda: any(config.parent.glob("checkpoints/.*.tmp")), process, pause=0.0)
        if process.poll() is None:
            half = config is not None and any(config.parent.glob("checkpoints/.*.tmp"))
            os.killpg(process.pid, signal.SIGKILL)
            notes.append("killed while a checkpoint was written" if half else "killed")
        else:
            notes.append("had ended already")
        process.wait()
        run = next(place.glob("models/*/*/*/"), None)
        if run is None or not (run / "config.yaml").is_file():
            notes.append("killed before the run had a folder")
            run = train(case, place)
        else:
            last = find_checkpoints(run)
            steps = last[-1].counters["agent_steps"] if last else None
            notes.append("before the first checkpoint" if steps is None else
                         "after the replay had wrapped" if steps > 300 else "before the replay had wrapped")
            again = [sys.executable, "-m", "xrl", "train", "--resume"]
            resumed = subprocess.run(again, **quiet(place), timeout=LONGEST)
            if resumed.returncode != 0:
                log = (place / "log").read_text()[-2000:]
                return {"index": index, "notes": notes, "different": {"resume": log}}
        got = outcome(run)
    different = {key: [value, got[key]] for key, value in expected.items() if got[key] != value}
    return {"index": index, "notes": notes, "different": different}


def wait_for(found: Any, process: subprocess.Popen[bytes], pause: float = 0.005) -> Any:
    """What ``found`` finds, or None if the process ends before."""
    while (value := found()) is None or value is False:
        if process.poll() is not None:
            return found() or None
        time.sleep(pause)
    return value


def command(case: str, place: Path) -> list[str]:
    return [sys.executable, "-m", "xrl", "train", "--method", "DreamerV2", *CASES[case]]


def quiet(place: Path) -> dict[str, Any]:
    log = (place / "log").open("ab")
    return {"cwd": place, "stdout": log, "stderr": log, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}


def train(case: str, place: Path) -> Path:
    """An undisturbed run; its folder."""
    done = subprocess.run(command(case, place), **quiet(place), timeout=LONGEST)
    if done.returncode != 0:
        sys.exit(f"{case}: the undisturbed run failed:\n{(place / 'log').read_text()[-3000:]}")
    return next(place.glob("models/*/*/*/"))


def outcome(run: Path) -> dict[str, str]:
    """What must be equal, as digests: the last checkpoint without the log's positions, the replay, the log."""
    checkpoint = find_checkpoints(run)[-1]
    arrays = load_file(checkpoint.path / "state.safetensors")
    tree = json.loads((checkpoint.path / "state.json").read_text())
    replay = tree.pop("replay")
    tree["callbacks"]["MetricLog"].pop("marks")
    weights = {name: array for name, array in arrays.items() if name.startswith("agent/policy/")}
    return {"counters": json.dumps(checkpoint.counters), "parameters": digest(arrays_of(weights)),
            "state": digest([*arrays_of(arrays), json.dumps(tree, sort_keys=True).encode()]),
            "replay": digest(rows_of(run, replay)), "log": digest(log_of(run)),
            "tensorboard": digest(events_of(run)), "health": digest([(run / HEALTH).read_bytes()])}


def digest(parts: Any) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:16]


def arrays_of(arrays: dict[str, np.ndarray]) -> Iterator[bytes]:
    for name in sorted(arrays):
        yield name.encode()
        yield np.ascontiguousarray(arrays[name]).tobytes()


def rows_of(run: Path, replay: dict[str, Any]) -> Iterator[bytes]:
    """Every surviving row, whichever file it lies in."""
    oldest = max(0, replay["written"] - replay["rows"])
    for file in replay["files"]:
        arrays = load_file(run / REPLAY / file["name"])
        for place in range(max(0, oldest - file["first"]), file["rows"]):
            yield from (f"{name} {file['first'] + place}".encode() + arrays[name][place].tobytes()
                        for name in sorted(arrays))


def log_of(run: Path) -> Iterator[bytes]:
    for line in (run / METRICS).read_text().splitlines():
        record = {key: value for key, value in json.loads(line).items() if not key.startswith("time/")}
        yield json.dumps(record).encode()


def events_of(run: Path) -> Iterator[bytes]:
    """TensorBoard's scalars in the order of writing, over all its files."""
    files = sorted(run.glob(EVENTS), key=lambda path: path.stat().st_mtime_ns)
    if not files:
        return
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    for path in files:
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if not value.tag.startswith("time/"):
                    yield f"{event.step} {value.tag} {value.tensor.float_val}".encode()


def table(cases: list[dict[str, Any]]) -> str:
    lines = ["| run | kills | while a checkpoint was written | after the replay had wrapped | not the same |",
             "|---|---|---|---|---|"]
    for case in cases:
        writing, wrapped = (case["notes"].get(note, 0) for note in
                            ("killed while a checkpoint was written", "after the replay had wrapped"))
        lines.append(f"| {case['case']} | {case['kills']} | {writing} | {wrapped} | {len(case['different'])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
