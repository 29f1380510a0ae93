"""One run as one page: RUN/report.html, to be read without a network, on a phone, in light or dark."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xrl.common.errors import ConfigError
from xrl.common.files import write_atomic
from xrl.common.logger import METRICS
from xrl.report import charts
from xrl.report.charts import SMALL, WIDE
from xrl.report.command import (
    benchmark_command,
    benchmark_of,
    defaults,
    differing,
    imported,
    repeat_command,
    run_commands,
)
from xrl.report.diagnosis import (
    Findings,
    findings,
    health,
    health_verdict,
    losses,
    models_a_world,
    time_verdict,
    timing,
)
from xrl.report.page import command, note, page, pairs, picture, row, section, table, text
from xrl.report.run_files import RunFiles, read_run
from xrl.report.run_log import VIDEOS

REPORT = "report.html"
MOST_FACTS = 60


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write what the run in ``folder`` has left so far as one HTML file, RUN/report.html or ``out``; its path.

    Raises ConfigError where ``folder`` is no run folder, matplotlib is missing or the file cannot be written.
    """
    folder = Path(folder)
    path = folder / REPORT if out is None else Path(out)
    content = report_html(read_run(folder)).encode("utf-8", "replace")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {str(path.parent)!r} to write the report into; make it first")
    try:
        write_atomic(path, content)
    except OSError as error:
        raise ConfigError(f"{path}: the report cannot be written: {error.strerror}; name another place "
                          f"(--out)") from error
    return path


def report_html(run: RunFiles) -> str:
    """The page."""
    found = findings(run)
    name = f"{run.config.get('env_id')}, {run.config.get('method')}, seed {run.config.get('seed')}"
    inside = [section("dream", "Newest dream", dreams(run)),
              section("health", "Health of the world model", health(run, found))]
    if not models_a_world(run):
        inside = [section("film", "Newest film", dreams(run))] if run.pictures else []
    return page(name, [
        header(run, found), section("curves", "Curves", curves(run)), *inside, section("losses", "Losses", losses(run)),
        section("time", "Where the time goes", timing(run)),
        section("machine", "Machine and versions", machine(run)),
        section("config", "Configuration", configuration(run)), section("commands", "Commands", commands(run))])


# Header --------------------------------------------------------------------------------------------------------------

def header(run: RunFiles, found: Findings) -> str:
    """What run this is, how far it got, and one line each on its health and its time."""
    config, returns = run.config, run.series("eval/return")[1]
    tiles = [("frames", _count(run.newest("frames"))), ("agent steps", _count(run.newest("agent_steps"))),
             ("updates", _count(run.newest("updates"))), ("time trained", duration(seconds_trained(run))),
             ("best evaluation", _score(max(returns, default=math.nan))),
             ("newest evaluation", _score(returns[-1] if returns else math.nan))]
    started = "" if math.isnan(run.started) else time.strftime(", started %Y-%m-%d %H:%M", time.localtime(run.started))
    verdicts = "\n".join(f'<p class="{kind}"><strong>{name}.</strong> {text(words)}</p>' for name, (kind, words) in (
        ("Health", health_verdict(run, found)), ("Time", time_verdict(run))))
    notes = [*run.notes] if run.records else [_where_the_log_is_not(run), *run.notes]
    return (f'<header>\n<p class="kicker">{text(config.get("method"))}, seed {text(config.get("seed"))}{started}</p>\n'
            f'<h1>{text(config.get("env_id"))}</h1>\n<p><span class="badge">{state(run)}</span></p>\n'
            f'{pairs(tiles, "tiles")}\n<div class="verdicts">\n{verdicts}\n</div>\n'
            + "\n".join(map(note, notes)) + "\n</header>")


def state(run: RunFiles) -> str:
    """Finished, still being written, or where it stopped."""
    if run.finished:
        return "finished"
    if run.being_written:
        return "still being written"
    steps = run.newest("agent_steps")
    return "stopped before its first record" if math.isnan(steps) else f"stopped at {steps:,.0f} agent steps"


def seconds_trained(run: RunFiles) -> float:
    """The records' own clocks added up, so that pauses between two resumes do not count; NaN without any."""
    seconds, last = 0.0, 0.0
    for record in run.records:
        if record.get("time/fps", 0.0) > 0 and "frames" in record:
            seconds += max(record["frames"] - last, 0.0) / record["time/fps"]
            last = record["frames"]
    return seconds or math.nan


def duration(seconds: float) -> str:
    """2 d 3 h, 3 h 20 min, 4 min 5 s, 6 s."""
    if math.isnan(seconds) or seconds > 1e10:
        return "-"
    for size, unit, part, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} {seconds % size // part:.0f} {name}"
    return f"{seconds:.0f} s"


def _count(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f}"


def _score(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.1f}".removesuffix(".0")


def _where_the_log_is_not(run: RunFiles) -> str:
    return f"No record yet: {run.logs / METRICS} is not there, or empty."


# Curves, pictures ----------------------------------------------------------------------------------------------------

def curves(run: RunFiles) -> Iterator[str]:
    """Scores over frames."""
    wide, narrow = charts.returns(run, WIDE), charts.returns(run, SMALL)
    if wide:
        yield f'<figure class="wide">{wide}</figure>\n<figure class="narrow">{narrow}</figure>'
    evaluations = len(run.series("eval/return")[0])
    if evaluations == 0:
        yield note("Evaluations are off (eval_interval: 0)." if run.config.get("eval_interval") == 0 else
                   "No evaluation yet.")
    elif evaluations > 1:
        yield note(f"The best of {evaluations} evaluations is a choice by a noisy number: its score is biased upwards.")


def dreams(run: RunFiles) -> Iterator[str]:
    """The newest dream and film."""
    words = {"dream": "What the model imagined of an episode it never saw, with the true actions",
             "evaluation": "An evaluation episode"}
    shown = []
    for found in run.pictures:
        if found.problem:
            yield note(f"{VIDEOS}/{found.name} {found.problem}.")
        else:
            caption = f"{words[found.kind]}, after {found.frames:,} frames."
            shown.append(picture(found.data, found.name.rpartition(".")[2], caption))
    if shown:
        yield '<div class="pictures">\n' + "\n".join(shown) + "\n</div>"
    if models_a_world(run) and not any(found.kind == "dream" for found in run.pictures):
        yield note(f"No dream yet: there is none in {VIDEOS}/.")


# Machine, configuration, commands ------------------------------------------------------------------------------------

def machine(run: RunFiles) -> Iterator[str]:
    facts = list(run.facts.items())[:MOST_FACTS]
    if not facts:
        yield note("Not known yet: no checkpoint and no run.json.")
        return
    facts.insert(0, ("asked for", f"device={run.config.get('device')}, precision={run.config.get('precision')}"))
    yield table([], [row([("name", text(name)), ("", text(value))]) for name, value in facts], "slim")


def configuration(run: RunFiles) -> Iterator[str]:
    """What differs from the defaults, and all the rest folded."""
    if run.resolved is None:
        yield note(f"What differs from the defaults cannot be said: {run.problem}")
        yield _all_keys(run.config)
        return
    usual, changed = defaults(run.resolved.config), differing(run.resolved.config)
    if changed:
        yield "<p>What differs from the defaults of this method and environment:</p>"
        yield table(["key", "value", "default"], [
            row([("name", f"<code>{text(key)}</code>"), ("", f"<code>{_value(value)}</code>"),
                 ("", f"<code>{_value(usual[key])}</code>")]) for key, value in changed.items()], "slim")
    else:
        yield "<p>Everything is as the defaults of this method and environment say.</p>"
    yield _all_keys(run.config)


def _all_keys(config: Mapping[str, Any]) -> str:
    rows = [row([("name", f"<code>{text(key)}</code>"), ("", f"<code>{_value(value)}</code>")])
            for key, value in config.items()]
    return f"<details><summary>All {len(rows)} keys</summary>\n{table(['key', 'value'], rows, 'slim')}\n</details>"


def _value(value: Any) -> str:
    return text(value if isinstance(value, str) else json.dumps(value, default=str))


def commands(run: RunFiles) -> Iterator[str]:
    """The lines that repeat the run and that go on with it."""
    argv = run.created.get("command")
    started = argv if isinstance(argv, list) and all(isinstance(word, str) for word in argv) else []
    imports = imported(started)
    whole = benchmark_of(run.folder)
    if started[:2] == ["python", "seed.py"]:  # which a benchmark starts, and nobody else can
        started = []
    if run.resolved is not None and whole is not None:
        yield command(benchmark_command(run.resolved.config, whole, imports),
                      "Go on with the benchmark that this run is a seed of; in another model_dir, repeat it:")
    elif run.resolved is not None:
        script = bool(started) and started[0] != "xrl"
        yield command(repeat_command(run.resolved.config, "benchmark" if run.benchmark else "train", imports),
                      "Repeat this run, if the script below registers nothing that it needs:" if script else
                      "Repeat this run:")
    else:
        yield note("The command to repeat it cannot be said without its configuration; see there.")
    if started:
        yield command(shlex.join(started), "It was started with:")
    for words, line in run_commands(run.folder, run.config, imports)[0 if whole is None else 1:]:
        yield command(line, words)
