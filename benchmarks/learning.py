"""Does it learn? Trains shipped configs on several seeds and records what came out.

    python benchmarks/learning.py classic_control CartPole-v1 --seeds 1 2 3 4 5 [--precision bf16]

Each seed is a fresh ``runner.run()`` with the shipped YAML, in a process of its own. Then the two models that it
left, the best evaluated one (which the test mode loads) and the last one, play test episodes on environment seeds
that neither training nor its evaluations have seen. One JSON record per seed is written to
benchmarks/results/learning/<env_id>/seed_<seed>.json (bf16: <env_id>/bf16/): commit, wall time, curve, test scores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from recording import RESULTS, provenance

from xrl.common.callback import Callback, Evaluation

LEARNING = RESULTS / "learning"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("env_id")
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=2, help="torch threads of a run")
    parser.add_argument("--side-by-side", type=int, default=1, help="runs at the same time")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure(arguments.env, arguments.env_id, arguments.seeds[0], arguments.precision)
        return
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    waiting, running = list(arguments.seeds), []
    while waiting or running:
        while waiting and len(running) < arguments.side_by_side:
            words = [arguments.env, arguments.env_id, "--seeds", str(waiting.pop(0)), "--one",
                     "--precision", arguments.precision]
            running.append(subprocess.Popen([sys.executable, __file__, *words], env=environment))
        if (code := running.pop(0).wait()) != 0:
            sys.exit(code)


def measure(env: str, env_id: str, seed: int, precision: str) -> None:
    """One seed; writes its record and prints a line."""
    import torch

    import xrl
    from xrl.common.run_folder import BEST_MODEL, FINAL_MODEL

    with tempfile.TemporaryDirectory() as models:
        # Environment seeds far apart: the environments of two runs have nothing in common either.
        clock = Clock()
        runner = xrl.get_runner(method="DreamerV2", env=env, env_id=env_id, seed=seed, env_seed=1000 * seed,
                                model_dir=models, logger="none", precision=precision, callbacks=[clock])
        start = time.perf_counter()
        folder = runner.run()
        wall = time.perf_counter() - start
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        curve = [(r["frames"], r["eval/return"]) for r in records if "eval/return" in r]
        result = {
            "env_id": env_id, "seed": seed, "precision": precision, "wall_s": round(wall, 1), **provenance(),
            "threads": torch.get_num_threads(), "running_steps": runner.config.running_steps,
            "best": {"test_scores": play(runner.config, folder / BEST_MODEL)},
            "last": {"test_scores": play(runner.config, folder / FINAL_MODEL)},
            "curve": {"frames": [x for x, _ in curve], "eval_return": [y for _, y in curve],
                      "wall_s": [round(then - start, 1) for then in clock.evaluated]},
        }
    for name in ("best", "last"):
        scores = result[name]["test_scores"]
        result[name]["test_mean"] = sum(scores) / len(scores)
    folder = LEARNING / env_id.replace("/", "-") / ("" if precision == "fp32" else precision)
    path = folder / f"seed_{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    means = ", ".join(f"{name} model {result[name]['test_mean']:.1f}" for name in ("best", "last"))
    print(f"{env_id} seed {seed}: {means}, {wall:.0f} s", flush=True)


def play(config: Any, model: Path) -> list[float]:
    from xrl.agents import DreamerV2Agent
    from xrl.common.seeding import TEST_SEED
    from xrl.environment import make_envs

    with make_envs(config) as envs:
        agent = DreamerV2Agent(config, envs)
        agent.load_model(model)
        return list(agent.evaluate(config.test_episode, TEST_SEED).scores)


class Clock(Callback):
    """When each evaluation was done."""

    def __init__(self) -> None:
        self.evaluated: list[float] = []

    def on_evaluation(self, agent: Any, evaluation: Evaluation) -> None:
        self.evaluated.append(time.perf_counter())


if __name__ == "__main__":
    main()
