"""One sentence about where a run's time goes: what takes most of it, what would help and what would not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

# Parts of a run's time, as in the metric keys time/<part>, and their names in a sentence.
PARTS = {"environment": "the environment", "policy": "the policy", "replay_insert": "storing rows",
         "replay_sampling": "drawing batches", "to_device": "moving batches to the device", "update": "the update",
         "waiting": "waiting for the update", "evaluation": "evaluations", "inspection": "dreams and health",
         "logging": "logging", "checkpoint": "checkpoints", "callbacks": "callbacks", "rest": "the rest of the loop"}
# Keys of which a method has one, and how it helps.
CADENCE = {"train_every": "updating less often (train_every)", "train_ratio": "updating less often (train_ratio)",
           "epochs": "learning less from each rollout (epochs)"}
Remedy = Callable[[Mapping[str, float], Mapping[str, Any]], str]
LARGE_UPDATE = 1.0  # seconds on a CPU, above which the products are large enough for bf16 to pay
IDLE = 0.3          # of a GPU's time


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Share of the whole of each part in PARTS, largest first; ``seconds`` by part, or by metric key."""
    known = {name.removeprefix("time/"): value for name, value in seconds.items()}
    known = {name: known[name] for name in PARTS if known.get(name, 0.0) > 0}
    whole = sum(known.values()) or 1.0
    return {name: value / whole for name, value in sorted(known.items(), key=lambda item: -item[1])}


def verdict(seconds: Mapping[str, float], config: Mapping[str, Any], updates: float) -> str:
    """``seconds`` and ``updates``: per 1,000 agent steps, the first by metric key (time/update, ...); ``config``: the
    run's, flat or nested keys at the top suffice (precision, device, parallels, vectorize, what is in CADENCE)."""
    parts = shares(seconds)
    if not parts:
        return "No time was measured yet."
    name, share = next(iter(parts.items()))
    sentence = f"{share:.0%} in {PARTS[name]}: "
    idle = seconds.get("time/gpu_idle")
    if idle is not None and idle > IDLE and name not in ("update", "waiting"):
        sentence = f"The GPU is idle for {idle:.0%}, and {sentence}"
    update = partial(_update, updates)
    remedies: dict[str, Remedy] = {
        "update": update, "waiting": update, "environment": _environment, "policy": _environments,
        "evaluation": _evaluation, "checkpoint": _checkpoint, "inspection": _inspection, "logging": _logging}
    remedy = remedies.get(name)
    helps = remedy(seconds, config) if remedy else "`xrl profile` shows each part of it"
    return sentence + helps + _would_not(parts, name, config) + "."


def less_often(config: Mapping[str, Any]) -> str:
    """How a run of a method with these keys learns less from as many steps."""
    return next((words for key, words in CADENCE.items() if key in config), "fewer updates")


def _update(updates: float, seconds: Mapping[str, float], config: Mapping[str, Any]) -> str:
    each = seconds.get("time/update", seconds.get("time/waiting", 0.0)) / max(updates, 1e-9)
    shown = f"{each:.2g} s" if each >= 0.2 else f"{1000 * each:.3g} ms"
    large = each > LARGE_UPDATE and "epochs" not in config  # where one is many gradient steps, each may be small
    if config.get("precision") == "fp32" and (large or "time/gpu_idle" in seconds):
        return f"an update takes {shown}; precision=bf16 would help"
    if large:
        return f"an update takes {shown}; only a faster device or a smaller model would help"
    return f"an update takes {shown}; {less_often(config)} or a smaller batch would help"


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
