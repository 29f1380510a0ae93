"""Learning, from nothing, with the shipped configs: the model that ``run()`` leaves for the test mode must be good.

Minutes to hours: ``make learn``. What was measured with these seeds stands in docs/benchmarks.md.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

import xrl

pytestmark = pytest.mark.slow


CARTPOLE, PENDULUM, CATCH = ("classic_control", "CartPole-v1"), ("classic_control", "Pendulum-v1"), ("toy", "Catch-v0")


@pytest.mark.parametrize("method, task, seeds, threshold, minutes, episodes", [
    ("DreamerV2", CARTPOLE, (1, 2, 3, 4, 5), 475.0, 8, 20),
    ("DreamerV2", PENDULUM, (51, 52, 53, 54, 55), -200.0, 6, 20),
    ("DreamerV2", CATCH, (6, 7, 8), 0.8, 15, 50),
    ("DreamerV1", PENDULUM, (11, 12, 13), -200.0, 15, 20),
    ("DreamerV3", CARTPOLE, (11, 12, 13), 475.0, 10, 20),
    ("DreamerV3", PENDULUM, (11, 12, 13), -200.0, 15, 100),
    ("DreamerV3", CATCH, (11, 12, 13), 0.8, 30, 50),
    ("PPO", CARTPOLE, (11, 12, 13), 475.0, 3, 20),
    ("PPO", CATCH, (11, 12, 13), 0.9, 15, 50),
    ("DQN", CARTPOLE, (11, 12, 13), 475.0, 6, 20),
    ("DQN", CATCH, (11, 12, 13), 0.9, 15, 50),
    ("SAC", PENDULUM, (11, 12, 13), -170.0, 12, 100),
])
def test_every_seed_reaches_the_threshold(method: str, task: tuple[str, str], seeds: tuple[int, ...], threshold: float,
                                          minutes: float, episodes: int, tmp_path: Path) -> None:
    """``episodes``: of the test. On Pendulum a mean of 20 has a standard error of 23."""
    env, env_id = task
    for seed in seeds:
        said = {"method": method, "env": env, "env_id": env_id, "seed": seed, "env_seed": 1000 * seed,
                "model_dir": str(tmp_path / str(seed)), "logger": "none"}
        start = time.perf_counter()
        xrl.get_runner(**said).run()
        assert time.perf_counter() - start < 60 * minutes, f"seed {seed}"
        scores = xrl.get_runner(**said, is_test=True, test_episode=episodes).run()
        assert np.mean(scores) >= threshold, f"seed {seed}"


def test_twenty_full_size_updates_on_pong(tmp_path: Path) -> None:
    runner = xrl.get_runner(
        method="DreamerV2", env="atari", env_id="ALE/Pong-v5", model_dir=str(tmp_path), logger="none",
        start_training=2000, running_steps=2000 + 18 * 16, log_interval=16, eval_interval=0, buffer_size=10_000)
    folder = runner.run()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [record for record in records if "model/loss" in record]
    assert records[-1]["updates"] >= 20
    assert all(np.isfinite(value) for record in losses for value in record.values())
    assert losses[-1]["model/image_loss"] < losses[0]["model/image_loss"]
