"""Where runs lie and where their logs do, and how those are read: half-written, or in a stranger's folder."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CURVE, VIDEOS = "curve.json", "videos"
DEEPEST = 7  # folders below model_dir lies the run of a benchmark: benchmarks/<method>/<env_id>/seed_1/<the same>/<run>
LARGEST_LOG = 256 * 2**20  # bytes; what comes after is not read


def folders_with(root: Path, *names: str, deepest: int = DEEPEST) -> Iterator[Path]:
    """Folders with a file of one of ``names`` at ``root`` or at most ``deepest`` below, each once, though a link leads
    there, too. What lies deeper in those is none; what begins with a dot was not finished being made."""
    seen: set[str] = set()
    for name, folders, files in os.walk(root, followlinks=True):
        here, place = Path(name), os.path.realpath(name)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        if not {*names}.isdisjoint(files):
            yield here
            folders.clear()
        elif len(here.relative_to(root).parts) >= deepest:
            folders.clear()
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))


def log_folders(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """Where the run in ``folder`` logged, in that order: beside its models, and where ``log_dir`` leads. A run that was
    resumed with another ``log_dir`` has parts in both; what an even earlier one holds nobody knows."""
    log_dir = config.get("log_dir")
    if not isinstance(log_dir, str):
        return [folder]
    env_id = str(config.get("env_id")).replace("/", "-")
    return [folder, Path(log_dir) / str(config.get("method")) / env_id / folder.absolute().name]


def is_file(path: Path) -> bool:
    """A file of its own: a link may lead anywhere, and a pipe would keep its reader waiting."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def read_bytes(path: Path, most: int) -> bytes:
    """At most ``most`` bytes; none where there is no such file, or it went just now."""
    try:
        if is_file(path):
            with path.open("rb") as file:
                return file.read(most)
    except OSError:
        pass
    return b""


def log_lines(path: Path, notes: list[str], having: str = "") -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(number, JSON object) of each line with the text ``having``; None for a line that is none, but not for the last,
    which may still be being written. ``notes`` gets a sentence where the file is too long to be read whole."""
    data = read_bytes(path, LARGEST_LOG)
    if len(data) == LARGEST_LOG:
        notes.append(f"Only the first {LARGEST_LOG // 2**20} MiB of {path.name} were read.")
    lines, wanted = data.splitlines(), having.encode()
    for number, line in enumerate(lines, start=1):
        if wanted not in line:
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict):
            yield number, content
        elif number < len(lines):
            yield number, None
