"""One sentence about where a run's time goes: what takes most of it, what would help and what would not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Parts of a run's time, as in the metric keys time/<part>, and their names in a sentence.
PARTS = {"environment": "the environment", "policy": "the policy", "replay_insert": "storing rows",
         "replay_sampling": "drawing batches", "to_device": "moving batches to the device", "update": "the update",
         "waiting": "waiting for the update", "evaluation": "evaluations", "inspection": "dreams and health",
         "logging": "logging", "checkpoint": "checkpoints", "callbacks": "callbacks", "rest": "the rest of the loop"}
LARGE_UPDATE = 1.0  # seconds on a CPU, above which the products are large enough for bf16 to pay
IDLE = 0.3          # of a GPU's time


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Share of the whole of each part in PARTS, largest first; ``seconds`` by part, or by metric key."""
    known = {name.removeprefix("time/"): value for name, value in seconds.items()}
    known = {name: known[name] for name in PARTS if known.get(name, 0.0) > 0}
    whole = sum(known.values()) or 1.0
    return {name: value / whole for name, value in sorted(known.items(), key=lambda item: -item[1])}


def verdict(seconds: Mapping[str, float], config: Mapping[str, Any]) -> str:
    """``seconds``: per 1,000 agent steps, by metric key (time/update, ...); ``config``: the run's, flat or nested keys
    at the top suffice (precision, device, parallels, vectorize, train_every, eval_interval)."""
    parts = shares(seconds)
    if not parts:
        return "No time was measured yet."
    name, share = next(iter(parts.items()))
    sentence = f"{share:.0%} in {PARTS[name]}: "
    idle = seconds.get("time/gpu_idle")
    if idle is not None and idle > IDLE and name not in ("update", "waiting"):
        sentence = f"The GPU is idle for {idle:.0%}, and {sentence}"
    remedies = {"update": _update, "waiting": _update, "environment": _environment, "policy": _environments,
                "evaluation": _evaluation, "checkpoint": _checkpoint, "inspection": _inspection,
                "logging": _logging}
    remedy = remedies.get(name)
    helps = remedy(seconds, config) if remedy else "`xrl profile` shows each part of it"
    return sentence + helps + _would_not(parts, name, config) + "."


def _update(seconds: Mapping[str, float], config: Mapping[str, Any]) -> str:
    updates = 1000 / float(config.get("train_every") or 1)  # per 1,000 agent steps
    each = seconds.get("time/update", seconds.get("time/waiting", 0.0)) / updates
    shown = f"{each:.2g} s" if each >= 0.2 else f"{1000 * each:.3g} ms"
    if config.get("precision") == "fp32" and (each > LARGE_UPDATE or "time/gpu_idle" in seconds):
        return f"an update takes {shown}; precision=bf16 would help"
    if each > LARGE_UPDATE:
        return f"an update takes {shown}; only a faster device or a smaller model would help"
    return f"an update takes {shown}; updating less often (train_every) or a smaller batch would help"


def _environment(seconds: Mapping[str, float], config: Mapping[str, Any]) -> str:
    if config.get("env_name") == "atari" and config.get("vectorize") != "native":
        return "vectorize=native with several parallels would help"
    if config.get("vectorize") == "sync":
        return "if a step takes more than a millisecond, vectorize=async with several parallels would help"
    return "only a faster environment, or more cores for more parallels, would help"


def _environments(seconds: Mapping[str, float], config: Mapping[str, Any]) -> str:
    return "its calls serve all environments at once, so more parallels would help"


def _evaluation(seconds: Mapping[str, float], config: Mapping[str, Any]) -> str:
    return "a larger eval_interval or fewer test_episode would help"


def _checkpoint(seconds: Mapping[str, float], config: Mapping[str, Any]) -> str:
    return "a larger checkpoint_every would help"


def _inspection(seconds: Mapping[str, float], config: Mapping[str, Any]) -> str:
    return "a larger eval_interval, or inspect=false and render=false, would help"


def _logging(seconds: Mapping[str, float], config: Mapping[str, Any]) -> str:
    return "a larger log_interval would help"


def _would_not(parts: Mapping[str, float], name: str, config: Mapping[str, Any]) -> str:
    """What people try first, where it would bring less than a tenth."""
    if name in ("update", "waiting") and parts.get("environment", 0.0) + parts.get("policy", 0.0) < 0.1:
        return "; more environments would not"
    if name in ("environment", "policy") and parts.get("update", 0.0) + parts.get("waiting", 0.0) < 0.1:
        return "; a faster update would not"
    return ""
