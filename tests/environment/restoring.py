"""Plays a reference with states saved on the way, and goes on from each of them in another process.

``python -m tests.environment.restoring FILE`` is that other process.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from tests.environment import savers
from xrl.common.row import Row
from xrl.environment import RowEnvs, make_envs

ROOT = Path(__file__).parents[2]


def random_action(envs: RowEnvs, random: np.random.Generator) -> np.ndarray:
    size = envs.action_spec.size
    if envs.action_spec.kind == "discrete":
        return np.eye(size, dtype=np.float32)[random.integers(size, size=envs.num_envs)]
    return random.uniform(-1, 1, (envs.num_envs, size)).astype(np.float32)


def reference(keys: dict[str, Any], points: int, tail: int, spread: int) -> dict[str, Any]:
    """``points`` states, one among every ``spread`` steps, and at least ``tail`` rows after each.

    Beside them the states on both sides of the first boundary: before a reset, and before the step after it.
    """
    random = np.random.default_rng(7)
    places = {spread * index + int(random.integers(spread)) for index in range(points)}
    played: dict[str, Any] = {"keys": keys, "tail": tail, "states": {}, "actions": [], "rows": []}
    with make_envs({"method": "DreamerV2", **keys}) as envs:
        row, boundary = envs.reset(), {"is_last", "is_first"}
        for step in range(points * spread + tail):
            met = {name for name in boundary if step and getattr(row, name).any()}
            boundary -= met
            if met or step in places:
                played["states"][step] = envs.get_state()
            played["actions"].append(random_action(envs, random))
            row = envs.step(played["actions"][-1])
            played["rows"].append(row)
    assert not boundary
    return played


def elsewhere(played: list[dict[str, Any]], file: Path) -> list[dict[str, Any]]:
    """For each reference: how many states were gone on from, and the (step, row) that differed."""
    file.write_bytes(pickle.dumps(played))
    done = subprocess.run([sys.executable, "-m", "tests.environment.restoring", str(file)], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def same_rows(one: Row, other: Row) -> bool:
    flat = [{**vars(row), **row.obs} for row in (one, other)]
    return all(flat[0][key].dtype == flat[1][key].dtype and flat[0][key].tobytes() == flat[1][key].tobytes()
               for key in {field.name for field in fields(Row)} - {"obs"} | set(one.obs))


def go_on(played: dict[str, Any]) -> dict[str, Any]:
    """Every state in environments of its own, which were never reset."""
    wrong = []
    for step, state in played["states"].items():
        with make_envs({"method": "DreamerV2", **played["keys"]}) as envs:
            envs.set_state(state)
            wrong += [(step, after) for after in range(step, step + played["tail"])
                      if not same_rows(envs.step(played["actions"][after]), played["rows"][after])]
    return {"points": len(played["states"]), "wrong": wrong}


if __name__ == "__main__":
    savers.register()
    print(json.dumps([go_on(each) for each in pickle.loads(Path(sys.argv[1]).read_bytes())]))
