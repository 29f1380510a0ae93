"""How many agent steps per second do environments make on their own?

    python benchmarks/environments.py

Random actions through ``make_envs``, so with everything that training has between an environment and its rows: the
checks, the canonical form, the vector. Resets are part of the time, reset rows are no agent steps. Prints a Markdown
table and writes benchmarks/results/environments.json.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
from recording import RESULTS, provenance

from xrl.environment import RowEnvs, make_envs

TASKS = [("classic_control", "CartPole-v1"), ("classic_control", "Pendulum-v1"), ("toy", "Catch-v0"),
         ("atari", "ALE/Pong-v5")]
PARALLELS = {"sync": (1, 8), "async": (2, 8), "native": (1, 2, 4, 8, 16)}  # native: Atari only
CALLS = 256  # actions drawn beforehand, taken in turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each case is measured")
    arguments = parser.parse_args()
    cases = [measure(env, env_id, vectorize, parallels, arguments.seconds)
             for env, env_id in TASKS for vectorize, counts in PARALLELS.items()
             if vectorize != "native" or env == "atari" for parallels in counts]
    record = {**provenance(), "seconds_per_case": arguments.seconds, "cases": cases}
    (RESULTS / "environments.json").write_text(json.dumps(record, indent=1) + "\n")
    print(table(cases))


def measure(env: str, env_id: str, vectorize: str, parallels: int, seconds: float) -> dict[str, Any]:
    """One case of the shipped configuration."""
    config = {"method": "DreamerV2", "env_name": env, "env_id": env_id, "vectorize": vectorize}
    with make_envs(config, parallels=parallels) as envs:
        envs.reset()
        actions = random_actions(envs)
        run(envs, actions, seconds / 10)  # until everything is loaded and the workers are awake
        calls, steps, wall = run(envs, actions, seconds)
    return {"env_id": env_id, "vectorize": vectorize, "parallels": parallels, "agent_steps_per_s": round(steps / wall),
            "frames_per_s": round(steps * envs.action_repeat / wall), "ms_per_call": round(1000 * wall / calls, 4)}


def random_actions(envs: RowEnvs) -> np.ndarray:
    """(CALLS, E, A)"""
    random, size = np.random.default_rng(0), envs.action_spec.size
    if envs.action_spec.kind == "discrete":
        return np.eye(size, dtype=np.float32)[random.integers(size, size=(CALLS, envs.num_envs))]
    return random.uniform(-1, 1, (CALLS, envs.num_envs, size)).astype(np.float32)


def run(envs: RowEnvs, actions: np.ndarray, seconds: float) -> tuple[int, int, float]:
    """Calls of ``step``, agent steps and wall time of about ``seconds``."""
    calls = steps = 0
    start = time.perf_counter()
    while (wall := time.perf_counter() - start) < seconds:
        row = envs.step(actions[calls % CALLS])
        calls += 1
        steps += envs.num_envs - int(np.count_nonzero(row.is_first))
    return calls, steps, wall


def table(cases: list[dict[str, Any]]) -> str:
    lines = ["| environment | vectorize | parallels | agent steps/s | ms per call |", "|---|---|---|---|---|"]
    lines += [f"| {case['env_id']} | {case['vectorize']} | {case['parallels']} | {case['agent_steps_per_s']:,} "
              f"| {case['ms_per_call']:.3f} |" for case in cases]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
