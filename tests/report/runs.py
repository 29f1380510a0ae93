"""Run folders as runs leave them, made without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from xrl.common.config import load_config, save_config

HORIZON = list(range(1, 51))


def make_run(root: Path, **keys: Any) -> Path:
    """A run folder that holds a config.yaml of CartPole, and nothing else."""
    folder = root / "models/DreamerV2/CartPole-v1/seed_1_20300101-120000"
    folder.mkdir(parents=True)
    save_config(load_config("DreamerV2", "classic_control", "CartPole-v1", overrides=keys).config,
                folder / "config.yaml")
    return folder


def write_lines(path: Path, *lines: Any) -> None:
    """JSON objects, or text as it is; the last line is not ended."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))


def counters(steps: int) -> dict[str, int]:
    return {"agent_steps": steps, "frames": 2 * steps, "updates": steps // 4}


def records(steps: int = 8000, every: int = 1000) -> list[dict[str, float]]:
    """Episodes, updates, times and evaluations of a run."""
    found: list[dict[str, float]] = []
    for step in range(every, steps + 1, every):
        at = counters(step)
        found += [
            {**at, "episode/return": step / 100, "episode/length": 20},
            {**at, "model/vector_loss": 4 - step / 1e4, "model/reward_loss": 0.92, "model/kl": 2.0,
             "model/post_entropy": 20.0, "model/prior_entropy": 22.0, "actor/entropy": 0.5, "critic/value": 5.0,
             "critic/target": 5.2, "time/fps": 40.0, "time/updates_per_s": 5.0, "time/environment": 1.0,
             "time/policy": 2.0, "time/update": 17.0, "time/update/actor": 7.0, "time/update/rest": 10.0},
            {**at, "eval/return": step / 50, "eval/return_min": step / 60, "eval/return_max": step / 40}]
    return found


def health_line(steps: int, **changes: Any) -> dict[str, Any]:
    line = {
        **counters(steps), "metrics": {"health/open_loop_15": 0.5, "health/kl": 2.5}, "horizon": HORIZON,
        "open_loop": [k / 100 for k in HORIZON[:-5]] + [None] * 5, "still": [k / 50 for k in HORIZON],
        "reward_error": [k / 1000 for k in HORIZON], "kl": [0.5, 0.0, 1.5], "categories": [3, 1, 8], "classes": 16,
        "reward_calibration": [[0.0, 0.1, 10], [1.0, 0.9, 30]], "discount_calibration": [[0.5, 0.4, 5], [1, 1, 99]],
        "returns": [[1.0, 1.5], [2.0, 1.8]], "values": [[3.0, 2.0], [4.0, 4.5]]}
    return {**line, **changes}


def make_full_run(root: Path, **keys: Any) -> Path:
    """A finished run with everything that there can be."""
    folder = make_run(root, running_steps=8000, **keys)
    write_lines(folder / "metrics.jsonl", *records())
    write_lines(folder / "health.jsonl", *(health_line(steps) for steps in (2000, 4000, 6000, 8000)))
    write_lines(folder / "run.json", {"command": ["xrl", "train", "it's"], "device": "cpu", "cores": 7,
                                      "versions": {"torch": "2.99"}, "machine": {"cpu": "Z80"}, "commit": "abcdef0"})
    (folder / "final_train_model.pth").touch()
    (folder / "videos").mkdir()
    (folder / "videos/dream_16000.gif").write_bytes(gif())
    (folder / "videos/evaluation_16000.gif").write_bytes(gif())
    return folder


def gif() -> bytes:
    """A film of two frames."""
    import cv2
    film = cv2.Animation()
    film.frames = [np.full((8, 8, 3), shade, np.uint8) for shade in (0, 255)]
    film.durations = [50, 50]
    return bytes(cv2.imencodeanimation(".gif", film)[1])
