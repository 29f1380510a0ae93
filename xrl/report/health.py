"""What the numbers of a world model mean, which are normal, and a warning where they are not; see docs/health.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

# Made by benchmarks/bands.py from our own verified runs: task -> metric -> [frames, lowest, highest] of the runs.
BANDS = Path(__file__).with_name("bands.json")
SETTINGS = ("method", "env_name", "gamma", "horizon", "environment.action_repeat", "world_model.reward_scale",
            "world_model.reward_transform", "world_model.obs_scale")
ROOM = 0.5         # of a band's width, to either side, for the difference of seeds
YOUNG = 500        # updates before which nothing is judged by a band,
UNSETTLED = 5000   # and nothing by a limit: full-size models need thousands until their latents carry anything
FLAT = 1000        # updates after which a loss that has not fallen is a finding
FALLEN = 0.1       # of its distance from its floor is the least that a loss must have fallen by then
NEAR = 0.005       # above its floor, per number of the observation, where a loss need not fall any more
FLOOR = 0.918939   # of a unit normal's loss, per number


@dataclass(frozen=True)
class Number:
    """``meaning`` and ``remedy``: one sentence each. ``bad``: the direction. ``limit``: what no healthy model passes in
    that direction, whatever the task; None where that depends on the task."""

    meaning: str
    remedy: str
    bad: Literal["high", "low", "both"]
    limit: float | None = None


_OPEN = "train longer, raise model_opt.lr, give the observations a scale (obs_scale), check that actions matter"
_REWARD = "raise loss_scales.reward, or scale the reward (reward_scale) so that it is neither tiny nor cut by tanh"
NUMBERS = {
    "reconstruction": Number("squared error of decoding what the model has just seen, per number", _OPEN, "high"),
    **{f"open_loop_{k}": Number(
        f"error after {k} imagined step{'s' if k > 1 else ''}, divided by that of repeating the last observation seen: "
        "below 1 the model knows what moves (where next to nothing does, a still picture is hard to beat)", _OPEN,
        "high") for k in (1, 5, 15, 50)},
    **{f"reward_error_{k}": Number(
        f"absolute error of the imagined reward after {k} step{'s' if k > 1 else ''}", _REWARD, "high")
       for k in (1, 5, 15, 50)},
    "kl": Number("nats by which an observation surprises the prediction, summed over the latents",
                 "near 0: lower kl.scale; rising without end: raise it", "both"),
    "latents_alive": Number("latents with a KL above 0.01 nats: they carry something",
                            "lower kl.scale or kl.free_nats, or raise the loss scale of the observations", "low", 1.0),
    "categories": Number("categories in use (mean probability above 1%), averaged over the latents",
                         "near 1 the latents are constants: lower kl.scale", "low", 1.05),
    "reward_bias": Number("predicted minus true reward of states that have been seen", _REWARD, "both"),
    "reward_calibration": Number("by how much predicted rewards miss the true ones, in bins of equal prediction",
                                 _REWARD, "high"),
    "discount_calibration": Number("by how much the probability to go on misses how often episodes do",
                                   "raise loss_scales.discount", "high", 0.2),
    "policy_entropy": Number("of the policy at these states, nats",
                             "fell to 0 early: raise actor.entropy; stays at its start: lower it", "low"),
    "value": Number("mean value of these states", "far above what can be earned: lower critic_opt.lr, or "
                    "critic.slow_every is too small", "both"),
    "value_bias": Number("value minus what the episodes then paid, discounted",
                         "values run away: lower critic_opt.lr or gamma, check discount_calibration", "both"),
    "imagined_return": Number("sum of rewards that the policy dreams of in one imagination horizon",
                              "compare with realised_return", "both"),
    "realised_return": Number("sum of rewards that it then got in as many steps; far below imagined_return: the policy "
                              "exploits errors of the model", "more updates of the model (train_every) or a shorter "
                              "horizon", "both"),
}


# Of keys in remedies: what other methods call them. Where a run has none of these, its remedy leaves that part out.
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "model_opt.lr": ("opt.lr",), "critic_opt.lr": ("opt.lr",), "kl.scale": ("loss.dyn",),
    "kl.free_nats": ("loss.free_bits",), "loss_scales.reward": ("loss.reward",),
    "loss_scales.discount": ("loss.discount",), "critic.slow_every": (), "train_every": ("train_ratio",),
    "reward_scale": (), "obs_scale": (), "actor.entropy": ()}


def fitting(remedy: str, config: Mapping[str, Any] | None) -> str:
    """A remedy in the keys of a run; ``config``: by dotted key, None for a run of DreamerV2."""
    if config is None:
        return remedy
    clauses = []
    for clause in remedy.split(", "):
        names = {name: next((other for other in (name, *others) if _has(config, other)), None)
                 for name, others in OTHER_NAMES.items() if name in clause}
        if None not in names.values():
            for name, other in names.items():
                clause = clause.replace(name, str(other))
            clauses.append(clause)
    return ", ".join(clauses).removeprefix("or ") or "see docs/health.md"


def _has(config: Mapping[str, Any], name: str) -> bool:
    return any(key == name or key.endswith(f".{name}") for key in config)


def explain(key: str) -> str:
    """One sentence about a metric "health/...". Raises KeyError for any other."""
    return NUMBERS[key.removeprefix("health/")].meaning


def task_of(config: Mapping[str, Any]) -> str:
    """The task by whose bands a run is judged: its env_id if what decides the size of the numbers is as it was in our
    runs of it, else "", which has none. ``config``: nested, or by dotted key."""
    env_id = str(config.get("env_id"))
    return env_id if settings_of(config) == _file().get("made_of", {}).get(env_id, {}).get("settings") else ""


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the size of the numbers, beside the task, as JSON holds it."""
    def read(dotted: str) -> Any:
        value: Any = config
        for name in [dotted] if dotted in config else dotted.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return list(value) if isinstance(value, tuple) else value

    return {dotted: read(dotted) for dotted in SETTINGS}


def judge(task: str, key: str, frames: int, value: float, updates: int = UNSETTLED,
          config: Mapping[str, Any] | None = None) -> str | None:
    """One sentence of warning if a metric "health/..." has left the band of our runs of ``task`` (see ``task_of``), or
    the limit for any task; None if all is well, or after so few ``updates`` too early to say. ``config``: see
    ``fitting``."""
    number = NUMBERS.get(key.removeprefix("health/"))
    if number is None or updates < YOUNG:
        return None
    remedy = fitting(number.remedy, config)
    band = band_of(task, key, frames)
    if band is not None:
        low, high = band
        if (value > high and number.bad != "low") or (value < low and number.bad != "high"):
            place = {"high": f"above {high:.3g}, the top of", "low": f"below {low:.3g}, the bottom of",
                     "both": f"outside {low:.3g} to {high:.3g},"}[number.bad]
            return f"{key} = {value:.3g} is {place} the band of our runs of {task} at these frames: {remedy}"
    elif number.limit is not None and updates >= UNSETTLED and (
            value > number.limit if number.bad == "high" else value < number.limit):
        side = "above" if number.bad == "high" else "below"
        return f"{key} = {value:.3g} is {side} {number.limit:g}: {remedy}"
    return None


def band_of(task: str, key: str, frames: int) -> tuple[float, float] | None:
    """What is normal at ``frames``: the extremes of our runs around the last evaluation before, and ROOM."""
    points = [point for point in bands().get(task, {}).get(key, ()) if point[0] <= frames]
    if not points:
        return None
    _, low, high = points[-1]
    room = ROOM * (high - low) + 0.1 * max(abs(low), abs(high))
    return low - room, high + room


def bands() -> dict[str, dict[str, list[list[float]]]]:
    """Task -> metric -> [frames, lowest, highest]."""
    return dict(_file().get("bands", {}))


@cache
def _file() -> dict[str, Any]:
    return dict(json.loads(BANDS.read_text(encoding="utf-8"))) if BANDS.exists() else {}


class Watcher:
    """Looks at the records of a run as they are written; gives every warning once until its cause has gone.

    A number must be off at two records in a row, since a single one is noisy. ``sizes``: the numbers in an observation,
    by the reconstruction loss that sums over them.
    """

    NAMES = {"model/image_loss": "image loss", "model/vector_loss": "vector loss"}

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self.suspects: set[str] = set()  # off at their last record
        self.warned: set[str] = set()
        self.first: dict[str, list[float]] = {}  # loss -> its first mean, frames (-1: it has fallen) and updates then

    def see(self, task: str, counters: Mapping[str, int], record: Mapping[str, float],
            config: Mapping[str, Any] | None = None) -> list[str]:
        """New warnings about one record; ``counters``: agent_steps, frames, updates; ``config``: see ``fitting``."""
        frames, updates = counters["frames"], counters["updates"]
        found = {key: warning for key, value in record.items()
                 if (warning := judge(task, key, frames, value, updates, config))}
        certain = {key: warning for key, warning in found.items() if key in self.suspects}
        self.suspects = (self.suspects - record.keys()) | found.keys()
        certain |= {key: warning for key in self.sizes.keys() & record.keys()
                    if (warning := self._flat(key, counters, record[key], config))}
        fresh = [warning for key, warning in certain.items() if key not in self.warned]
        self.warned = (self.warned - record.keys()) | certain.keys()
        return fresh

    def _flat(self, key: str, counters: Mapping[str, int], loss: float,
              config: Mapping[str, Any] | None) -> str | None:
        """A reconstruction loss that has never fallen. Once it has, it may stay where it is."""
        above = loss - FLOOR * self.sizes[key]
        first, since, begun = self.first.setdefault(key, [above, float(counters["frames"]), float(counters["updates"])])
        if above < (1 - FALLEN) * first or above < NEAR * self.sizes[key]:
            self.first[key][1] = since = -1.0
        if since < 0 or counters["updates"] - begun < FLAT:
            return None
        remedy = fitting("check input normalisation (obs_scale), check model_opt.lr", config)
        return f"{self.NAMES[key]} flat since frame {since:,.0f}: {remedy}"

    def state_dict(self) -> dict[str, Any]:
        return {"suspects": sorted(self.suspects), "warned": sorted(self.warned), "first": self.first}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.suspects, self.warned = set(state["suspects"]), set(state["warned"])
        self.first = {key: [float(value) for value in values] for key, values in state["first"].items()}
