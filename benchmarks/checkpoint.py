"""What does a checkpoint cost: how long does training wait, when is it on disk, and how much is written?

    python benchmarks/checkpoint.py [--rows 100000 1000000] [--storage disk memory] [--models atari cartpole]

The replay is filled with random observations: images as of Pong with the full-size Atari model, or CartPole's vectors
with its model. Timed are the first checkpoint, and the next one NEW rows later. "waits" is what the loop loses in
``Checkpointer.save``; writing goes on behind its back until "on disk". Writes benchmarks/results/checkpoint.json and
prints a Markdown table. Takes 4.2 GB of disk per million rows of images, as much memory again with storage memory, and
gives it back.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recording import RESULTS, provenance

from xrl.agents.checkpointing import Checkpointer
from xrl.common.config import load_config
from xrl.common.row import Row
from xrl.environment import make_envs
from xrl.runners.runner import make_agent

MODELS = {"atari": ("atari", "ALE/Pong-v5"), "cartpole": ("classic_control", "CartPole-v1")}
NEW = 10_000  # rows between the two checkpoints
EPISODE = 1_000
DRAWN = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--storage", nargs="+", choices=["disk", "memory"], default=["disk", "memory"])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--place", type=Path, help="folder on the disk to measure; by default that of temporary files")
    parser.add_argument("--output", type=Path, default=RESULTS / "checkpoint.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = [case for model in options.models for storage in options.storage for rows in options.rows
             for case in measure(model, storage, rows, options.place)]
    record = {**provenance(), "threads": options.threads, "new_rows": NEW, "cases": cases}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=1) + "\n")
    print(table(cases))


def measure(model: str, storage: str, rows: int, place: Path | None) -> list[dict[str, Any]]:
    """The first checkpoint of a run with ``rows`` stored, and the next one."""
    family, env_id = MODELS[model]
    with tempfile.TemporaryDirectory(dir=place) as folder:
        config = load_config("DreamerV2", family, env_id, overrides={
            "replay.storage": storage, "logger": "none", "model_dir": folder, "device": "cpu",
            "buffer_size": rows + 2 * NEW, "checkpoint_every": 10**9}).config
        with make_envs(config) as envs:
            checkpointer = Checkpointer(10**9, 2)
            agent = make_agent(config, envs, [checkpointer])
            try:
                agent.restart_episodes()
                found, before = [], 0
                for name, count in (("first", rows), ("next", NEW)):
                    fill(agent, count)
                    waits, seconds = save(checkpointer, agent)
                    total = on_disk(agent.folder)
                    found.append({"model": model, "storage": storage, "rows": rows, "checkpoint": name,
                                  "waits_seconds": waits, "seconds": seconds, "bytes": total - before})
                    before = total
            finally:
                agent.finish()
    return found


def fill(agent: Any, count: int) -> None:
    """Store rows of random observations, as the environments would yield them."""
    random, envs = np.random.default_rng(agent.agent_steps), agent.envs
    drawn = {name: (random.integers(256, size=(DRAWN, envs.num_envs, *spec.shape), dtype=np.uint8)
                    if spec.kind == "image" else random.normal(size=(DRAWN, envs.num_envs, *spec.shape)).astype("f4"))
             for name, spec in envs.obs_spec.items()}
    action = np.eye(envs.action_spec.size, dtype=np.float32)[:envs.num_envs]
    reward, yes, no = (np.full(envs.num_envs, value) for value in (np.float32(1), True, False))
    for number in range(count):
        first, last = number % EPISODE == 0, number % EPISODE == EPISODE - 1
        obs = {name: values[number % DRAWN] for name, values in drawn.items()}
        agent.row = Row(obs, action, reward, yes if first else no, yes if last else no, no)
        agent.observe(agent.row)
    agent.agent_steps += count


def save(checkpointer: Checkpointer, agent: Any) -> tuple[float, float]:
    """Seconds that the loop waits, and seconds until all is on disk."""
    start = time.perf_counter()
    checkpointer.save(agent)
    waits = time.perf_counter() - start
    checkpointer.wait()
    return waits, time.perf_counter() - start


def on_disk(folder: Path) -> int:
    """Bytes of checkpoints and rows; nothing is let go of between the two."""
    return sum(path.stat().st_size for part in ("checkpoints", "replay") for path in (folder / part).rglob("*")
               if path.is_file())


def table(cases: list[dict[str, Any]]) -> str:
    lines = ["| model | storage | rows stored | checkpoint | training waits | on disk after | MB written |",
             "|---|---|---|---|---|---|---|"]
    lines += [f"| {case['model']} | {case['storage']} | {case['rows']:,} | {case['checkpoint']} "
              f"| {case['waits_seconds']:.3f} s | {case['seconds']:.2f} s | {case['bytes'] / 1e6:,.1f} |"
              for case in cases]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
