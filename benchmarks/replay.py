"""What does it cost to store rows and to draw batches of them?

    python benchmarks/replay.py

A replay of 100,000 rows in episodes of 1,000, images or vectors, in memory or on disk (in the system's cache after
having been written), read in both sampling modes. Timed are the insert of
a row, the draw of a batch, and what brings a batch into the learner: "to torch" wraps the arrays, "to float" turns
images into numbers in [-0.5, 0.5], as the world model does. Prints a Markdown table and writes
benchmarks/results/replay.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recording import RESULTS, provenance, timed

from xrl.common import accelerate
from xrl.common.row import ActionSpec, ObsSpec, Row
from xrl.memory import SequenceReplay

OBSERVATIONS = {"image": ObsSpec("image", (64, 64, 1)), "vector": ObsSpec("vector", (4,))}
ACTION = ActionSpec("discrete", 6)
SAMPLING = ("steps", "episodes")
STORAGE = ("memory", "disk")
BATCHES = ((16, 50), (50, 50))  # sequences, rows
EPISODE = 1_000  # rows
DRAWN = 64  # observations drawn beforehand, taken in turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="stored before anything is drawn")
    parser.add_argument("--repeats", type=int, default=100, help="batches drawn of each kind")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--output", type=Path, default=RESULTS / "replay.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    accelerate.keep_memory()  # as in training: it is what a batch of floats costs most
    cases = [case for kind in OBSERVATIONS for sampling in SAMPLING for storage in STORAGE
             for case in measure(kind, sampling, storage, options.rows, options.repeats)]
    record = {**provenance(), "threads": options.threads, "rows": options.rows, "repeats": options.repeats,
              "cases": cases}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=1) + "\n")
    print(table(cases))


def measure(kind: str, sampling: str, storage: str, rows: int, repeats: int) -> list[dict[str, Any]]:
    """One case per size of batch. Seconds are medians, those of an insert the mean."""
    random, found = np.random.default_rng(0), []
    seq_len = BATCHES[0][1]
    with tempfile.TemporaryDirectory() as folder:
        replay = SequenceReplay({"obs": OBSERVATIONS[kind]}, ACTION, num_envs=1, capacity=rows, seq_len=seq_len,
                                sampling=sampling, min_length=seq_len, prioritize_ends=True,
                                folder=Path(folder) if storage == "disk" else None)
        insert = fill(replay, OBSERVATIONS[kind], rows, random)
        for batch_size, _ in BATCHES:
            batch = replay.sample(batch_size, random)
            found.append({
                "observation": kind, "sampling": sampling, "storage": storage, "batch": [batch_size, seq_len],
                "batch_bytes": sum(array.nbytes for array in arrays(batch)), "insert_us": 1e6 * insert,
                "sample_ms": milliseconds(lambda size=batch_size: replay.sample(size, random), repeats),
                "to_torch_ms": milliseconds(lambda rows=batch: to_torch(rows), repeats),
                "to_float_ms": milliseconds(lambda rows=batch: to_float(rows), repeats)})
    return found


def fill(replay: SequenceReplay, spec: ObsSpec, rows: int, random: np.random.Generator) -> float:
    """Insert ``rows`` rows; seconds each."""
    if spec.kind == "image":
        drawn = random.integers(256, size=(DRAWN, 1, *spec.shape), dtype=np.uint8)
    else:
        drawn = random.normal(size=(DRAWN, 1, *spec.shape)).astype(np.float32)
    action, reward = np.eye(ACTION.size, dtype=np.float32)[:1], np.ones(1, np.float32)
    yes, no = np.ones(1, bool), np.zeros(1, bool)
    start = time.perf_counter()
    for number in range(rows):
        last = yes if number % EPISODE == EPISODE - 1 else no
        first = yes if number % EPISODE == 0 else no
        replay.insert(Row({"obs": drawn[number % DRAWN]}, action, reward, first, is_last=last, is_terminal=last))
    return (time.perf_counter() - start) / rows


def arrays(batch: Row) -> list[np.ndarray]:
    return [*batch.obs.values(), batch.action, batch.reward, batch.is_first, batch.is_last, batch.is_terminal]


def to_torch(batch: Row) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays(batch)]


def to_float(batch: Row) -> torch.Tensor:
    observation = torch.from_numpy(batch.obs["obs"])
    return observation.float() / 255 - 0.5 if observation.dtype == torch.uint8 else observation


def milliseconds(work: Any, repeats: int) -> float:
    work()
    return 1e3 * statistics.median(timed(work) for _ in range(repeats))


def table(cases: list[dict[str, Any]]) -> str:
    lines = ["| observation | sampling | storage | batch | MiB per batch | sample ms | to torch ms | to float ms "
             "| insert µs |", "|---|---|---|---|---|---|---|---|---|"]
    lines += [f"| {case['observation']} | {case['sampling']} | {case['storage']} | {case['batch'][0]} x "
              f"{case['batch'][1]} | {case['batch_bytes'] / 2**20:.3g} | {case['sample_ms']:.3g} "
              f"| {case['to_torch_ms']:.2g} | {case['to_float_ms']:.2g} | {case['insert_us']:.1f} |" for case in cases]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
