"""What a run has left so far, read with distrust: the run may still be written, and the folder may be a stranger's."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xrl.common.config import ResolvedConfig, load_config
from xrl.common.config_files import read_yaml, shown
from xrl.common.config_keys import flatten
from xrl.common.errors import ConfigError
from xrl.common.logger import HEALTH, METRICS
from xrl.common.run_folder import CONFIG, FACTS, FINAL_MODEL, LOCK
from xrl.report.run_log import CURVE, VIDEOS, folders_with, is_file, log_folders, log_lines, read_bytes

LARGEST_FILE = 2**20        # bytes of run.json
LARGEST_PICTURE = 8 * 2**20  # bytes
LARGEST_NUMBER = 1e100      # in magnitude; charts of larger ones overflow
LONGEST = 10_000            # entries of a list
MOST_KEYS = 200             # of a record
MOST_NAMED = 5              # runs in an error
LATE = 3                    # intervals of a log, by which one that is there from the start has begun
PICTURES = {".gif": (b"GIF87a", b"GIF89a"), ".png": (b"\x89PNG\r\n\x1a\n",)}  # how their files begin
UNSHOWN = ("command", "created", "exact", "not_exact_because")  # of the facts
LISTS = ("horizon", "open_loop", "still", "reward_error", "kl", "categories")
POINTS = {"reward_calibration": 3, "discount_calibration": 3, "returns": 2, "values": 2}  # numbers per point

Record = dict[str, float]


@dataclass(frozen=True)
class Health:
    """One line of health.jsonl. ``lists``: numbers by name, NaN where there is none. ``points``: tuples by name.
    ``classes``: categories of a latent, NaN of other latents."""

    frames: float
    updates: float
    metrics: Record
    lists: dict[str, list[float]]
    points: dict[str, list[tuple[float, ...]]]
    classes: float


@dataclass(frozen=True)
class Picture:
    """A file in videos/: its bytes, or, where they are not to be shown, why. ``kind``: dream or evaluation."""

    kind: str
    name: str
    frames: int
    data: bytes = b""
    problem: str = ""


@dataclass(frozen=True)
class RunFiles:
    """A run folder as it is at this moment.

    ``config``: by dotted key. ``resolved``: the same, checked; None where this installation cannot, for the reason
    ``problem``. ``logs``: where it logs now. ``records`` and ``health``: in the order written. ``facts``: machine and
    versions. ``created``: run.json. ``pictures``: the newest of each kind. ``started``: seconds since 1970.
    """

    folder: Path
    logs: Path
    config: dict[str, Any]
    resolved: ResolvedConfig | None
    problem: str
    records: list[Record]
    health: list[Health]
    facts: dict[str, str]
    created: dict[str, Any]
    pictures: list[Picture]
    started: float
    finished: bool
    being_written: bool
    benchmark: bool
    notes: list[str] = field(default_factory=list)

    def newest(self, key: str) -> float:
        """The last value of a metric, NaN if there is none."""
        return next((record[key] for record in reversed(self.records) if key in record), math.nan)

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Frames and values of a metric."""
        found = [record for record in self.records if key in record and "frames" in record]
        return [record["frames"] for record in found], [record[key] for record in found]


def read_run(folder: Path) -> RunFiles:
    """Read what is there. Raises ConfigError where ``folder`` is no run folder."""
    flat, resolved, problem = _read_config(folder)
    notes: list[str] = []
    places = log_folders(folder, flat)
    records = _joined([[_record(line) for line in _lines(place / METRICS, notes)] for place in places])
    health = [_health(line) for place in places for line in _lines(place / HEALTH, notes)]
    notes += _missing(records, number(flat.get("log_interval")) + number(flat.get("parallels")))
    created = _read_json(folder / FACTS)
    steps = flat.get("running_steps")
    last = next((record["agent_steps"] for record in reversed(records) if "agent_steps" in record), 0.0)
    written_whole = (folder / FINAL_MODEL).exists()
    return RunFiles(
        folder, places[-1], flat, resolved, problem, records, health, _facts(folder, created), created,
        [picture for kind in ("dream", "evaluation") for picture in _newest_pictures(folder / VIDEOS, kind)],
        _started(folder), written_whole and last >= number(steps), _is_locked(folder), (folder / CURVE).exists(), notes)


def number(value: Any) -> float:
    """A number out of a JSON file as a float; NaN for everything else, infinite and absurd numbers too."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST_NUMBER:
        return math.nan
    return float(value)


# Configuration -------------------------------------------------------------------------------------------------------

def _read_config(folder: Path) -> tuple[dict[str, Any], ResolvedConfig | None, str]:
    path = folder / CONFIG
    if not is_file(path):
        raise ConfigError(_no_run(folder))
    try:
        resolved = load_config(config_path=path)
    except ConfigError as error:  # of a method that is not imported here, say
        return dict(_flat("", dict(read_yaml(path)))), None, str(error)
    return flatten(resolved.config), resolved, ""


def _no_run(folder: Path) -> str:
    if folder.is_file():
        return f"{folder}: is a file; name the run folder that holds it: {folder.parent}"
    if not folder.is_dir():
        return f"{folder}: no such folder; name a run folder, e.g. models/DreamerV2/CartPole-v1/seed_1_..."
    runs = list(folders_with(folder, CONFIG))
    more = f" and {len(runs) - MOST_NAMED} more" if len(runs) > MOST_NAMED else ""
    remedy = f"the runs below it are {', '.join(map(str, runs[:MOST_NAMED]))}{more}; name one" if runs else \
        "name a run folder"
    return f"{folder}: not a run folder, it has no {CONFIG}; {remedy}"


def _flat(prefix: str, section: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping) and value and prefix + str(key) != "env_kwargs":
            yield from _flat(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value


# Logs ----------------------------------------------------------------------------------------------------------------

def _lines(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file; a line that is none is left out."""
    return (content for _, content in log_lines(path, notes) if content is not None)


def _joined(parts: list[list[Record]]) -> list[Record]:
    """The records of all parts of a log. Where one begins, what an earlier one says of later steps was made again."""
    joined: list[Record] = []
    for part in parts:
        begin = next((record["agent_steps"] for record in part if "agent_steps" in record), math.inf)
        joined = [record for record in joined if not record.get("agent_steps", 0.0) >= begin] + part
    return joined


def _missing(records: list[Record], interval: float) -> list[str]:
    """A sentence where the log begins so late that its beginning must lie elsewhere."""
    begin = next((record["agent_steps"] for record in records if "agent_steps" in record), 0.0)
    if not begin > LATE * interval:
        return []
    return [f"The log begins at agent step {begin:,.0f}: what the run logged before was not found; log_dir was "
            f"another one then, perhaps."]


def _record(line: Mapping[str, Any]) -> Record:
    """The finite numbers of a line."""
    pairs = ((key, number(value)) for key, value in list(line.items())[:MOST_KEYS])
    return {key: value for key, value in pairs if not math.isnan(value)}


def _health(line: Mapping[str, Any]) -> Health:
    metrics = line.get("metrics")
    lists = {name: [number(value) for value in _list(line.get(name))] for name in LISTS}
    points = {name: [tuple(number(value) for value in point) for point in _list(line.get(name))
                     if isinstance(point, list) and len(point) == width] for name, width in POINTS.items()}
    return Health(number(line.get("frames")), number(line.get("updates")),
                  _record(metrics) if isinstance(metrics, dict) else {}, lists,
                  {name: [point for point in found if not any(map(math.isnan, point))]
                   for name, found in points.items()}, number(line.get("classes")))


def _list(value: Any) -> list[Any]:
    return value[:LONGEST] if isinstance(value, list) else []


def _facts(folder: Path, created: Mapping[str, Any]) -> dict[str, str]:
    """Those that the run itself wrote down when it began, or else those of its newest checkpoint."""
    if not (found := created):
        from xrl.common.checkpoint import find_checkpoints  # brings torch along, which a report can do without
        checkpoints = find_checkpoints(folder)
        found = checkpoints[-1].manifest["facts"] if checkpoints else {}
    return {name: value for name, value in _one_level(found).items() if name not in UNSHOWN}


def _one_level(facts: Mapping[str, Any]) -> dict[str, str]:
    """Names and words; what is grouped (versions) stands under the names within the group."""
    pairs = [pair for name, value in facts.items()
             for pair in (value.items() if isinstance(value, dict) else [(name, value)])]
    return {name: str(value) for name, value in pairs}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_bytes(path, LARGEST_FILE) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


# Pictures and the state ----------------------------------------------------------------------------------------------

def _newest_pictures(folder: Path, kind: str) -> list[Picture]:
    """videos/<kind>_<frames>.gif and .png, of the most frames."""
    if folder.is_symlink():
        return []
    paths = [path for path in sorted(folder.glob(f"{kind}_*")) if path.suffix in PICTURES and is_file(path)]
    newest = max(map(_frames, paths), default=0)
    return [_picture(kind, path) for path in paths if _frames(path) == newest]


def _picture(kind: str, path: Path) -> Picture:
    data, problem = read_bytes(path, LARGEST_PICTURE + 1), ""
    if len(data) > LARGEST_PICTURE:
        problem = f"is larger than {LARGEST_PICTURE // 2**20} MiB; open it in the run folder"
    elif not data.startswith(PICTURES[path.suffix]):
        problem = f"is not a {path.suffix[1:].upper()} file, or not yet written to its end"
    return Picture(kind, shown(path.name), _frames(path), b"" if problem else data, problem)


def _frames(path: Path) -> int:
    """The number in a name, or 0."""
    found = re.search(r"\d{1,15}", path.stem)
    return int(found[0]) if found else 0


def _is_locked(folder: Path) -> bool:
    """Whether a process holds the run: it is training it."""
    try:
        import fcntl
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):  # no such locks on this system; or never locked
        return False
    return False


def _started(folder: Path) -> float:
    """By the name of the folder, or else by the age of its config.yaml."""
    found = re.search(r"_(\d{8}-\d{6})(-\d+)?$", folder.absolute().name)
    try:
        return time.mktime(time.strptime(found[1], "%Y%m%d-%H%M%S")) if found else (folder / CONFIG).stat().st_mtime
    except (ValueError, OverflowError, OSError):
        return math.nan
