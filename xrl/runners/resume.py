"""Finding the run to go on with, and what may be different about it this time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from xrl.common.checkpoint import CHECKPOINTS, Checkpoint, checkpoint_paths, find_checkpoints, read_checkpoint
from xrl.common.config import load_config
from xrl.common.config_keys import flatten
from xrl.common.errors import CheckpointError, ConfigError
from xrl.common.run_folder import CONFIG, FINAL_MODEL, check_closed
from xrl.configs.schemas.base import RunConfig
from xrl.report.run_log import DEEPEST, folders_with

OWN = 3  # model_dir/<method>/<env_id>/<run>

# Keys that can change without making it another run: how long it is, where it is seen, what it survives.
FREE = frozenset({
    "running_steps", "checkpoint_every", "keep_checkpoints", "max_env_failures", "env_timeout", "skip_nonfinite",
    "eval_interval", "test_episode", "log_interval", "logger", "project_name", "log_dir", "model_dir", "render_mode",
    "inspect", "render", "fps"})


def find_run(place: str | Path | None, model_dir: str, asked: Callable[[Path], RunConfig]) -> tuple[Path, RunConfig]:
    """The folder of the run that ``place`` means, and its configuration with what the user asked for over it.

    ``place``: a run folder, or a folder of run folders, of which the newest is meant that agrees with what was asked
    for; None: ``model_dir``. Runs of a benchmark's seeds are not meant: it goes on with them itself.
    ``asked(path)``: the configuration in a file, and the user's own words over it.
    Raises CheckpointError where there is none, ConfigError where the words would make it another run.
    """
    root = Path(model_dir if place is None else place)
    folders = run_folders(root, OWN)
    if not folders:
        raise CheckpointError(_no_run(root))
    reasons, mistakes = [], []
    for folder in folders:
        try:
            check_closed(folder)
            saved = flatten(read_config(folder))
            config = asked(folder / CONFIG)
        except CheckpointError as error:
            reasons.append(f"{error}")
            continue
        except ConfigError as error:
            mistakes.append(error)
            continue
        now = flatten(config)
        if refused := sorted(key for key in saved.keys() | now.keys() if key not in FREE and
                             saved.get(key) != now.get(key)):
            key = refused[0]
            reasons.append(f"{folder}: {key} is {saved.get(key)!r} in this run, not {now.get(key)!r}")
            continue
        return folder, config
    if not reasons:
        raise mistakes[0]  # in what was asked for, whichever run it is
    raise ConfigError(f"resume: {reasons[0]}; resume with the run's own values, or start a new run (these can change: "
                      f"{', '.join(sorted(FREE))})")


def _no_run(root: Path) -> str:
    run = next((parent for parent in root.absolute().parents if (parent / CONFIG).exists()), None)
    found = "no run" if root.exists() else "no such file or folder, so no run"
    known = f"; {run} is one" if run else "; those of a benchmark go on with it" if run_folders(root) else ""
    return (f"{root}: {found} to go on with here (a folder with {CONFIG}){known}; name another place, or leave resume "
            f"out to start one")


def run_folders(root: Path, deepest: int = DEEPEST) -> list[Path]:
    """Run folders at ``root`` or at most ``deepest`` below (OWN: without those of benchmarks, which lie deeper), the
    one that was written to last first."""
    return sorted(folders_with(root, CONFIG, deepest=deepest), key=_last_written, reverse=True)


def _last_written(folder: Path) -> float:
    paths = [folder / CONFIG, folder / CHECKPOINTS]
    return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)


def read_config(folder: Path) -> RunConfig:
    """The configuration that a run was started with. Raises CheckpointError."""
    try:
        return load_config(config_path=folder / CONFIG).config
    except ConfigError as error:
        raise CheckpointError(f"{folder}: its configuration cannot be read: {error}") from error


def steps_of_finished_run(folder: Path) -> int:
    """The agent steps of a run that came to its end, 0 of any other: its last model comes after its last checkpoint."""
    checkpoints, final = find_checkpoints(folder), folder / FINAL_MODEL
    if not checkpoints or not final.exists() or final.stat().st_mtime < checkpoints[-1].manifest["time"]:
        return 0
    return checkpoints[-1].counters["agent_steps"]


def describe_checkpoints(place: str | Path) -> str:
    """A table of the checkpoints of every run at ``place`` or below, each file of them compared with its checksum."""
    folders = run_folders(Path(place))
    if not folders:
        raise CheckpointError(f"{place}: no run here (a folder with {CONFIG}); name a run, or a folder of runs")
    blocks = []
    for folder in folders:
        rows: list[tuple[str, ...]] = [("agent steps", "updates", "written", "size", "complete", "verified", "resume")]
        rows += [_line(path) for path in checkpoint_paths(folder)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        blocks.append("\n".join([str(folder), *(lines if len(rows) > 1 else ["no checkpoint yet"])]))
    return "\n\n".join(blocks)


def _line(path: Path) -> tuple[str, ...]:
    try:
        checkpoint = read_checkpoint(path)
    except CheckpointError as error:
        return path.name, "", "", "", f"no: {error}", "", ""
    counters, facts = checkpoint.counters, checkpoint.manifest["facts"]
    written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(checkpoint.manifest["time"]))
    exact = "exact" if facts.get("exact", True) else f"not exact: {facts.get('not_exact_because')}"
    return (f"{counters['agent_steps']:,}", f"{counters['updates']:,}", written, _size(checkpoint.bytes), "yes",
            _verified(checkpoint), exact)


def _verified(checkpoint: Checkpoint) -> str:
    try:
        checkpoint.verify()
    except CheckpointError as error:
        return f"no: {error}"
    return "yes"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"
