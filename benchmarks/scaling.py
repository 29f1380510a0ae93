"""How does the cost of an update grow with the sizes of batch and model, and the play with parallel environments?

    python benchmarks/scaling.py [--threads 1 2]      (then python benchmarks/plot_scaling.py draws it)

One size at a time is changed in a small base configuration: vectors, 32 x 32 latents, the rest in BASE. Each scan is
fitted with a straight line (seconds = a + b size), a parabola (a + b size^2) and a power law (a size^b), by least
squares of the relative errors. Writes benchmarks/results/scaling.json and prints the fits; takes minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environments import measure as measure_environments
from recording import RESULTS, provenance
from update import build, time_updates, warm

from xrl.common import accelerate
from xrl.common.config import load_config
from xrl.common.row import ActionSpec, ObsSpec
from xrl.configs.schemas.dreamer_v2 import DreamerV2Config

OBS, ACTION = ObsSpec("vector", (4,)), ActionSpec("discrete", 2)
MLPS = ("world_model.encoder", "world_model.decoder", "world_model.reward", "world_model.discount", "actor", "critic")
BASE: dict[str, Any] = {
    "batch_size": 16, "seq_len": 25, "horizon": 15, "imagination.starts": 0, "precision": "fp32", "compile": "off",
    "world_model.rssm.deter": 200, "world_model.rssm.hidden": 200, "world_model.rssm.stoch": 32,
    "world_model.rssm.classes": 32, **{f"{mlp}.layers": 4 for mlp in MLPS}, **{f"{mlp}.units": 200 for mlp in MLPS}}
# What each scan changes, and to what. All keys of one scan take the same value.
SCANS: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "batch": (("batch_size",), (4, 8, 16, 32, 64)),
    "length": (("seq_len",), (6, 12, 25, 50, 100)),
    "horizon": (("horizon",), (4, 8, 15, 30, 60)),
    "deter": (("world_model.rssm.deter", "world_model.rssm.hidden"), (50, 100, 200, 400, 800)),
    "starts": (("imagination.starts",), (25, 50, 100, 200, 400)),
}
PARALLELS = (1, 2, 4, 8, 16)
PLAYED = (("classic_control", "CartPole-v1", "sync"), ("atari", "ALE/Pong-v5", "sync"),
          ("atari", "ALE/Pong-v5", "native"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="updates timed of each size")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="torch threads")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each vector of environments plays")
    parser.add_argument("--output", type=Path, default=RESULTS / "scaling.json")
    options = parser.parse_args()
    accelerate.keep_memory()
    scans = [scan(name, threads, options.repeats) for name in SCANS for threads in options.threads]
    record = {**provenance(), "base": BASE, "repeats": options.repeats, "scans": scans,
              "environments": play(options.seconds)}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=1) + "\n")
    print(table(scans))


def scan(name: str, threads: int, repeats: int) -> dict[str, Any]:
    """Seconds of one update for every value of one size, and their fits."""
    keys, sizes = SCANS[name]
    torch.set_num_threads(threads)
    seconds = [update_seconds(dict.fromkeys(keys, size), repeats) for size in sizes]
    fitted = fits(sizes, seconds)
    best = min(fitted, key=lambda kind: fitted[kind]["error"])
    return {"scan": name, "threads": threads, "sizes": list(sizes), "seconds": seconds, "fits": fitted, "best": best,
            "formula": formula(best, fitted[best]["a"], fitted[best]["b"])}


def update_seconds(changes: dict[str, Any], repeats: int) -> float:
    """Median seconds of one update of the base configuration with ``changes``."""
    config = load_config("DreamerV2", "classic_control", "CartPole-v1", overrides=BASE | changes).config
    assert isinstance(config, DreamerV2Config)
    learner, batch = build(config, OBS, ACTION)
    warm(learner, batch)
    return statistics.median(time_updates(learner, batch, repeats, least=0.0))


def play(seconds: float) -> list[dict[str, Any]]:
    """Agent steps per second of environments on their own, by their number."""
    return [measure_environments(env, env_id, vectorize, parallels, seconds)
            for env, env_id, vectorize in PLAYED for parallels in PARALLELS]


def fits(sizes: Any, seconds: Any) -> dict[str, dict[str, float]]:
    """``linear``: a + b size, ``square``: a + b size^2, ``power``: a size^b; ``error`` is the root mean square of the
    relative residuals."""
    x, y = np.asarray(sizes, float), np.asarray(seconds, float)
    found = {}
    for kind, term in (("linear", x), ("square", x**2)):
        # Weighted by 1 / y, so that the residuals are relative, like those of the logarithms below.
        a, b = np.linalg.lstsq(np.stack([1 / y, term / y], 1), np.ones_like(y))[0]
        found[kind] = {"a": float(a), "b": float(b), "error": relative_error(a + b * term, y)}
    log_a, b = np.linalg.lstsq(np.stack([np.ones_like(x), np.log(x)], 1), np.log(y))[0]
    a = np.exp(log_a)
    found["power"] = {"a": float(a), "b": float(b), "error": relative_error(a * x**b, y)}
    return found


def relative_error(fitted: np.ndarray, measured: np.ndarray) -> float:
    return float(np.sqrt(np.mean((fitted / measured - 1) ** 2)))


def formula(kind: str, a: float, b: float) -> str:
    """In milliseconds, of the size x; ``a`` and ``b`` as in ``fits``, in seconds."""
    if kind == "power":
        return f"{1e3 * a:.3g} x^{b:.2f}"
    return f"{1e3 * a:.3g} {'-' if b < 0 else '+'} {abs(1e3 * b):.2g} x{'^2' if kind == 'square' else ''}"


def table(scans: list[dict[str, Any]]) -> str:
    lines = ["| size x | threads | x from, to | seconds | best fit, ms | error |", "|---|---|---|---|---|---|"]
    lines += [f"| {scan['scan']} | {scan['threads']} | {scan['sizes'][0]}, {scan['sizes'][-1]} "
              f"| {scan['seconds'][0]:.3g}, {scan['seconds'][-1]:.3g} | {scan['formula']} "
              f"| {scan['fits'][scan['best']]['error']:.0%} |" for scan in scans]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
