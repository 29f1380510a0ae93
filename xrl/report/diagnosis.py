"""The report's sections on health, losses and time: numbers, charts and what they mean."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from xrl.common.logger import HEALTH
from xrl.report import charts
from xrl.report.page import chart, note, row, table, text
from xrl.report.page import charts as side_by_side
from xrl.report.run_files import Health, RunFiles

FEWEST_UPDATES = 100  # before which the time says nothing of the run to come
MOST_ROWS = 80  # of a table whose rows a file decides on
SPEEDS = ("fps", "updates_per_s", "gpu_idle", "launches", "wall")  # what stands under time/ and is no part of it
DEVICE = ("time/gpu_idle", "time/launches")
NO_UPDATE = ("episode", "eval", "env", "time", "health", "update")  # parts of the log that no update fills
MOST_OTHERS = 24  # charts of numbers that only the method knows
HUES = 9        # colours of a stacked bar: --p0 to --p8
LOSSES = (
    ("Image loss", {"model/image_loss": "image"}, "nats per image, summed over pixels"),
    ("Vector loss", {"model/vector_loss": "vector"}, "nats per row"),
    ("Reward loss", {"model/reward_loss": "reward"}, "nats; floor 0.919"),
    ("Discount loss", {"model/discount_loss": "discount"}, "nats"),
    ("KL", {"model/kl": "KL"}, "nats: what an observation tells beyond the prediction"),
    ("Entropy of the latents", {"model/post_entropy": "posterior", "model/prior_entropy": "prior"}, "nats"),
    ("Policy entropy", {"actor/entropy": "policy"}, "nats, at imagined states"),
    ("Advantage", {"actor/advantage_std": "deviation", "actor/advantage": "mean"}, "reward"),
    ("Value", {"critic/value": "value", "critic/target": "target"}, "transformed reward, at imagined states"),
    ("Critic loss", {"critic/loss": "critic"}, "nats"),
    ("Gradient norms", {"model/grad_norm": "model", "actor/grad_norm": "actor", "critic/grad_norm": "critic"},
     "before clipping"),
)


# Health --------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Findings:
    """The newest health metrics, and for some of them a sentence that says what is wrong."""

    frames: float
    numbers: dict[str, float]
    warnings: dict[str, str]
    early: bool  # too early to judge
    compared: bool  # with runs of ours of this task


def findings(run: RunFiles) -> Findings:
    from xrl.report.health import YOUNG, judge, task_of
    frames, updates, numbers = _newest_numbers(run)
    early = not updates >= YOUNG
    task, at = task_of(run.config), 0 if math.isnan(frames) else int(frames)
    judged = {} if early else {key: judge(task, key, at, value, int(updates), run.config)
                               for key, value in numbers.items()}
    return Findings(frames, numbers, {key: words for key, words in judged.items() if words}, early, bool(task))


def _newest_numbers(run: RunFiles) -> tuple[float, float, dict[str, float]]:
    """Frames, updates and health metrics of the newest evaluation that has any."""
    for entry in reversed(run.health):
        if entry.metrics:
            return entry.frames, entry.updates, entry.metrics
    for record in reversed(run.records):  # the log may lie where health.jsonl does not
        if found := {key: value for key, value in record.items() if key.startswith("health/")}:
            return record.get("frames", math.nan), record.get("updates", math.nan), found
    return math.nan, math.nan, {}


def models_a_world(run: RunFiles) -> bool:
    """Whether the run has a world model, as far as can be seen: updates that left no loss of one had none."""
    parts = {key.partition("/")[0] for record in run.records for key in record if "/" in key}
    return bool(run.health) or bool({"model", "health"} & parts) or parts <= {*NO_UPDATE}


def health_verdict(run: RunFiles, found: Findings) -> tuple[str, str]:
    """Kind (of paragraph) and one line."""
    if not models_a_world(run):
        return "unknown", f"{run.config.get('method')} has no world model to judge."
    if not found.numbers:
        return "unknown", "No evaluation has looked at the world model yet."
    if found.early:
        return "unknown", "Too few updates to judge the world model yet."
    if not found.warnings and not found.compared:
        return "fine", "No number passes a limit. There are no runs of ours with these settings to compare with."
    if not found.warnings:
        return "fine", f"None of {len(found.numbers)} numbers is outside of what is normal."
    first = next(iter(found.warnings.values()))
    more = f" ({len(found.warnings) - 1} more below)" if len(found.warnings) > 1 else ""
    return "warning", f"{len(found.warnings)} of {len(found.numbers)} numbers outside of what is normal: {first}{more}"


def health(run: RunFiles, found: Findings) -> Iterator[str]:
    """The newest numbers in a table, and what is no number in charts."""
    if not found.numbers:
        yield note(f"No evaluation has looked at the world model yet: no health numbers in {run.logs}.")
    else:
        at = "" if math.isnan(found.frames) else f" after {found.frames:,.0f} frames"
        yield f"<p>On episodes that no learner has seen, at the newest evaluation{at}.</p>"
        yield _health_table(found)
    if run.health:
        yield "<h3>In pictures</h3>\n" + side_by_side(_pictures(run.health))
    elif found.numbers:
        yield note(f"No {HEALTH} beside the log, so no charts.")


def _health_table(found: Findings) -> str:
    rows = []
    for key, value in sorted(list(found.numbers.items())[:MOST_ROWS], key=lambda item: item[0] not in found.warnings):
        words, status = text(_meaning(key)), '<span class="good">ok</span>'
        if key in found.warnings:
            status = '<span class="bad">warning</span>'
            words = f"<strong>{text(found.warnings[key])}</strong><br>{words}"
        elif found.early or not words:
            status = "too early" if found.early else "not judged"
        rows.append(row([("name", f"<code>{text(key.removeprefix('health/'))}</code>"),
                         ("number", escape(f"{value:.4g}")), ("status", status), ("", words)]))
    return table(["number", "#value", "status", "what it means"], rows, "cards")


def _meaning(key: str) -> str:
    from xrl.report.health import explain
    try:
        return explain(key)
    except KeyError:  # a number of another version
        return ""


def _pictures(entries: Sequence[Health]) -> list[str]:
    lists, points, classes = entries[-1].lists, entries[-1].points, entries[-1].classes
    return [
        chart("Open-loop error", "Squared error of imagined observations. Below the dashed line the model knows more "
              "than what it saw last.", charts.horizon(entries, "open_loop", "Open-loop error", "still")),
        chart("Reward error", "Of imagined rewards. An early model may leave the chart.",
              charts.horizon(entries, "reward_error", "Reward error")),
        chart("KL per latent", "Nats. Latents near 0 carry nothing.", charts.bars(lists["kl"], "KL per latent")),
        chart("Categories in use", f"Of each latent's {'' if math.isnan(classes) else f'{classes:.0f} '}categories.",
              charts.bars(lists["categories"], "Categories in use")),
        chart("Reward calibration", "Bins by prediction, larger where there are more rows. On the line: calibrated.",
              charts.against(points["reward_calibration"], "predicted", "true", "Reward calibration")),
        chart("Discount calibration", "Probability to go on, against the share of rows after which it went on.",
              charts.against(points["discount_calibration"], "predicted", "true", "Discount calibration")),
        chart("Imagined return", "Of dreams that begin in real states, against what these then paid.",
              charts.against(points["returns"], "imagined", "realised", "Imagined return")),
        chart("Value", "What the critic says, against what the episode then paid.",
              charts.against(points["values"], "value", "realised", "Value"))]


# Losses --------------------------------------------------------------------------------------------------------------

def losses(run: RunFiles) -> Iterator[str]:
    """The numbers of the updates: those in LOSSES, then whatever else the method logs."""
    known = [chart(title, words, charts.metric(run, keys, title)) for title, keys, words in LOSSES]
    others = [chart(key, "", charts.metric(run, {key: key}, key)) for key in _other_numbers(run)]
    yield side_by_side([*known, *others]) or note("No update yet.")


def _other_numbers(run: RunFiles) -> list[str]:
    """Keys of updates that LOSSES does not have, as they appear."""
    known = {key for _, keys, _ in LOSSES for key in keys}
    keys = dict.fromkeys(key for record in run.records for key in record)
    return [key for key in keys if key not in known and key.partition("/")[0] not in NO_UPDATE
            and re.fullmatch(r"[a-z]\w*/\w+", key)][:MOST_OTHERS]


# Time ----------------------------------------------------------------------------------------------------------------

def seconds_by_part(run: RunFiles) -> dict[str, float]:
    """Metric key time/<part> -> seconds per 1,000 agent steps, of the whole run: a record counts as many times as there
    are agent steps in it."""
    totals: dict[str, float] = {}
    covered = 0.0
    for steps, record in _timed(run):
        covered += steps
        for key, value in record.items():
            if is_part(key) and value >= 0:
                totals[key] = totals.get(key, 0.0) + value * steps
    return {key: total / covered for key, total in list(totals.items())[:MOST_ROWS]}


def on_device(run: RunFiles) -> dict[str, float]:
    """What was measured on a GPU: idle share and launches, of the whole run as above."""
    found = {key: [(steps, record[key]) for steps, record in _timed(run) if key in record] for key in DEVICE}
    return {key: sum(steps * value for steps, value in pairs) / sum(steps for steps, _ in pairs)
            for key, pairs in found.items() if pairs}


def _timed(run: RunFiles) -> Iterator[tuple[float, Mapping[str, float]]]:
    """(agent steps since the one before, record) of those with times."""
    last = 0.0
    for record in run.records:
        steps = record.get("agent_steps", 0.0) - last
        if steps > 0 and any(is_part(key) and value >= 0 for key, value in record.items()):
            last += steps
            yield steps, record


def is_part(key: str) -> bool:
    return key.startswith("time/") and key.removeprefix("time/") not in SPEEDS


def time_verdict(run: RunFiles) -> tuple[str, str]:
    """Kind (of paragraph) and one line."""
    from xrl.report.timing import verdict
    seconds = seconds_by_part(run)
    if not seconds or run.resolved is None:
        return "unknown", "Where the time goes was not measured yet."
    if not run.newest("updates") >= FEWEST_UPDATES:
        return "unknown", "Too few updates to say where the time goes."
    updates = 1000 * run.newest("updates") / max(run.newest("agent_steps"), 1)
    return "fine", verdict(seconds | on_device(run), run.config, updates)


def timing(run: RunFiles) -> Iterator[str]:
    """Seconds per 1,000 agent steps by part, as a bar and a table."""
    seconds = seconds_by_part(run)
    if not seconds:
        yield note(f"Not measured yet: no time/ metrics in {run.logs}.")
        return
    parts = dict(sorted(((key, value) for key, value in seconds.items() if key.count("/") == 1),
                        key=lambda item: -item[1]))
    whole = sum(parts.values()) or 1.0
    covered = sum(steps for steps, _ in _timed(run))
    yield (f"<p>Seconds per 1,000 agent steps, the average of the whole run ({covered:,.0f} agent steps). What is "
           f"indented is part of the update.</p>")
    shown = [(key, value / whole, hue) for hue, (key, value) in enumerate(parts.items()) if value / whole >= 0.005]
    yield '<div class="stack">' + "".join(
        f'<span title="{text(label(key))}" style="width:{100 * share:.1f}%;background:{_color(hue)}"></span>'
        for key, share, hue in shown) + "</div>"
    yield table(["part", "#seconds", "#share"], _time_rows(seconds, parts, whole), "slim")
    device = on_device(run)
    if "time/gpu_idle" in device:
        yield f"<p>The GPU had no update to work on for {device['time/gpu_idle']:.0%} of the time.</p>"
    if "time/launches" in device:
        yield f"<p>The host starts {device['time/launches']:,.0f} kernels and graphs per update.</p>"


def _time_rows(seconds: dict[str, float], parts: dict[str, float], whole: float) -> Iterator[str]:
    for hue, (key, value) in enumerate(parts.items()):
        swatch = f'<span class="swatch" style="background:{_color(hue)}"></span>'
        yield _time_row(swatch + text(label(key)), value, whole)
        inner = {name: part for name, part in seconds.items() if name.startswith(f"{key}/")}
        for name, part in sorted(inner.items(), key=lambda item: -item[1]):
            yield _time_row(text(label(name)), part, whole, "inside")
    yield _time_row("<strong>all</strong>", whole, whole)


def _time_row(name: str, value: float, whole: float, kind: str = "") -> str:
    return row([("name", name), ("number", f"{value:.3g}"), ("number", f"{value / whole:.1%}")], kind)


def _color(hue: int) -> str:
    return f"var(--p{min(hue, HUES - 1)})"


def label(key: str) -> str:
    return key.rpartition("/")[2].replace("_", " ")
