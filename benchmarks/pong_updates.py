"""Twenty updates of the full-size model on Pong: does every loss stay finite, does the image loss fall, how long?

    python benchmarks/pong_updates.py

Shortens only the random phase (2,000 agent steps instead of 50,000) and the replay. Writes
benchmarks/results/pong_updates.json and prints the first and the last update.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from typing import Any

import torch
from recording import RESULTS, commit

import xrl
from xrl.common.callback import Callback

UPDATES = 20
RANDOM_STEPS = 2_000


class Watch(Callback):
    """Every update's metrics, and the seconds since the one before."""

    def __init__(self) -> None:
        self.updates: list[dict[str, float]] = []
        self.clock = time.perf_counter()

    def on_update(self, agent: Any, metrics: dict[str, torch.Tensor]) -> None:
        now = time.perf_counter()
        self.updates.append({"seconds": now - self.clock, **{name: float(value) for name, value in metrics.items()}})
        self.clock = now


def main() -> None:
    watch = Watch()
    with tempfile.TemporaryDirectory() as models:
        runner = xrl.get_runner(
            method="DreamerV2", env="atari", env_id="ALE/Pong-v5", seed=1, model_dir=models, logger="none",
            eval_interval=0, buffer_size=10_000, start_training=RANDOM_STEPS, callbacks=[watch],
            running_steps=RANDOM_STEPS + 16 * (UPDATES - 3) + 1)  # 2 updates of pretrain, the third one step later
        runner.run()
    assert len(watch.updates) == UPDATES, len(watch.updates)
    assert all(math.isfinite(value) for update in watch.updates for value in update.values())
    path = RESULTS / "pong_updates.json"
    path.write_text(json.dumps({"commit": commit(), "seed": 1, "torch": torch.__version__,
                                "threads": torch.get_num_threads(), "updates": watch.updates}, indent=1) + "\n")
    keys = ("model/image_loss", "model/reward_loss", "model/discount_loss", "model/kl", "actor/loss", "critic/loss")
    for number in (1, UPDATES):
        print(number, *(f"{key} {watch.updates[number - 1][key]:.4g}" for key in keys))
    print("seconds per update, median:", sorted(update["seconds"] for update in watch.updates[1:])[UPDATES // 2])


if __name__ == "__main__":
    main()
