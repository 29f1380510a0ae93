"""Learning curves on file: the published format, those of our runs, and the names of tasks that both share."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from xrl.common.config_files import read_yaml, shown
from xrl.common.errors import ConfigError
from xrl.common.files import write_atomic
from xrl.common.logger import METRICS
from xrl.common.registry import suggestion
from xrl.common.run_folder import CONFIG
from xrl.report.run_log import CURVE, folders_with, is_file, log_folders, log_lines

SCORES = "scores.json"  # of a benchmark: the curves of all its seeds (CURVE: of one run)
RETURN, WALL = "eval/return", "time/wall"
FORM = 'a JSON list of {"task": "...", "method": "...", "seed": "...", "xs": [frames, ...], "ys": [scores, ...]}'


@dataclass(frozen=True)
class Curve:
    """Scores ``ys`` of one seed of a method in a task, at ``xs``: frames, finite and strictly increasing. ``minutes``:
    how long it had trained by then, as long and as increasing; None where nobody knows, as of published scores."""

    task: str
    method: str
    seed: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    minutes: tuple[float, ...] | None = field(default=None, compare=False)


# The published format ------------------------------------------------------------------------------------------------

def read_scores(path: str | Path) -> list[Curve]:
    """The curves of a file in the published format, FORM. Raises ConfigError, naming file, record and field."""
    records = read_json(path, FORM)
    if not isinstance(records, list) or not records:
        found = "an empty list" if records == [] else f"a JSON {_kind(records)}"
        raise ConfigError(f"{path}: holds {found}; it must be {FORM}")
    return [_curve(f"{path}: record {index}", record) for index, record in enumerate(records)]


def write_scores(path: str | Path, curves: Iterable[Curve]) -> None:
    """Write ``curves`` in the published format, whole or not at all. Where ``minutes`` are known they are a field
    more, which that format's other readers pass over."""
    records = [{name: value for name, value in asdict(curve).items() if value is not None} for curve in curves]
    write_atomic(Path(path), json.dumps(records).encode())


def read_json(path: str | Path, form: str) -> Any:
    """The content of a JSON file that should be of ``form``. Raises ConfigError if it cannot be read or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; it should be {form}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; name a file: {form}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; it should be {form}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON ({shown(str(error))}); it must be {form}") from error


def is_number(value: Any) -> bool:
    """Whether ``value``, out of a JSON file, is a finite number."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False


def _curve(where: str, record: Any) -> Curve:
    if not isinstance(record, dict):
        raise ConfigError(f"{where}: is a JSON {_kind(record)}; the file must be {FORM}")
    if missing := [name for name in ("task", "method", "seed", "xs", "ys") if name not in record]:
        raise ConfigError(f"{where}: {missing[0]!r} is missing; the file must be {FORM}")
    for name in ("task", "method", "seed"):
        allowed = str | int if name == "seed" else str  # a run's own curve has its seed as a number
        if not isinstance(record[name], allowed) or isinstance(record[name], bool):
            raise ConfigError(f"{where}: {name!r} is {_brief(record[name])}, not a string; the file must be {FORM}")
    for name in ("xs", "ys"):
        _check_numbers(where, name, record[name])
    xs, ys = record["xs"], record["ys"]
    if len(xs) != len(ys):
        raise ConfigError(f"{where}: {len(xs)} 'xs' but {len(ys)} 'ys'; each score belongs to a number of frames")
    _check_increasing(where, "xs", xs)
    return Curve(record["task"], record["method"], str(record["seed"]), tuple(map(float, xs)), tuple(map(float, ys)),
                 _minutes(where, record))


def _minutes(where: str, record: dict[str, Any]) -> tuple[float, ...] | None:
    minutes = record.get("minutes")
    if minutes is None:
        return None
    _check_numbers(where, "minutes", minutes)
    if len(minutes) != len(record["xs"]):
        raise ConfigError(f"{where}: {len(record['xs'])} 'xs' but {len(minutes)} 'minutes'; leave the minutes out")
    _check_increasing(where, "minutes", minutes)
    return tuple(map(float, minutes))


def _check_increasing(where: str, name: str, values: list[float]) -> None:
    for index in range(1, len(values)):
        if values[index] <= values[index - 1]:
            raise ConfigError(f"{where}: {name!r} must increase, but {name}[{index}] = {values[index]:g} follows "
                              f"{values[index - 1]:g}")


def _check_numbers(where: str, name: str, values: Any) -> None:
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{where}: {name!r} is {_brief(values)}, not a list of numbers; the file must be {FORM}")
    for index, value in enumerate(values):
        if not is_number(value):
            raise ConfigError(f"{where}: {name}[{index}] is {_brief(value)}, not a finite number; mend or remove "
                              f"the record")


def _brief(value: Any) -> str:
    return shown(json.dumps(value), 40)


def _kind(value: Any) -> str:
    return "object" if isinstance(value, dict) else "list" if isinstance(value, list) else "value"


# Runs ----------------------------------------------------------------------------------------------------------------

class _NoEvaluation(ConfigError):
    """A run that has not come to its first evaluation."""


def run_curve(folder: str | Path) -> Curve:
    """The evaluations of a run, over frames, of a run that is still being written, too.

    Raises ConfigError if ``folder`` is no run, or one without an evaluation.
    """
    folder = Path(folder)
    config = _run_config(folder)
    task = task_name(str(config["env_name"]), str(config["env_id"]))
    places = [place / METRICS for place in log_folders(folder, config)]
    if is_file(folder / CURVE):  # its points, whatever else the log holds; only that has a clock
        curve = replace(read_scores(folder / CURVE)[0], task=task)
        return replace(curve, minutes=_clock(places, curve.xs))
    points: dict[float, float] = {}
    for path in places:
        points |= {frames: score for frames, score, _ in _evaluations(path)}  # a later one replaces the one before
    if not points:
        looked = " and ".join(map(str, places))
        raise _NoEvaluation(f"{folder}: no evaluation yet (in {looked}); a run evaluates every eval_interval agent "
                            f"steps, never if that is 0")
    xs, ys = zip(*sorted(points.items()), strict=True)
    return Curve(task, str(config["method"]), str(config["seed"]), xs, ys, _clock(places, xs))


def _clock(places: Sequence[Path], xs: Sequence[float]) -> tuple[float, ...] | None:
    """The minutes that a run had trained at ``xs``, None unless all are known."""
    seconds: dict[float, float | None] = {}
    try:
        for path in places:
            seconds |= {frames: wall for frames, _, wall in _evaluations(path)}
    except ConfigError:  # a curve does not need it
        return None
    minutes = [wall / 60 for x in xs if (wall := seconds.get(x)) is not None]
    grows = all(before < after for before, after in pairwise(minutes))
    return tuple(minutes) if len(minutes) == len(xs) and grows else None


def find_curves(place: str | Path) -> list[Curve]:
    """The curves that ``place`` means: a file in the published format, a run, or all of these below a folder.

    A folder with SCORES is read from that alone. Runs without an evaluation are left out under a warning, unless there
    is nothing else. Where two runs have the same seed of a method in a task they are different experiments, which no
    mean should mix: the methods of these are told apart by the names of the runs. Raises ConfigError, for a file with
    two curves of one seed, too.
    """
    place = Path(place)
    if place.is_file():
        if place.suffix != ".json":
            raise ConfigError(f"{place}: is no file of scores; name a run folder, a folder of runs, or a .json of "
                              f"scores")
        return _one_of_each(place, read_scores(place))
    found: dict[Path, list[Curve]] = {}
    waiting: list[ConfigError] = []
    for folder in folders_with(place, SCORES, CONFIG):
        try:
            scores = folder / SCORES
            found[folder] = _one_of_each(scores, read_scores(scores)) if scores.exists() else [run_curve(folder)]
        except _NoEvaluation as error:
            waiting.append(error)
    if not found:
        raise waiting[0] if waiting else ConfigError(_nothing(place))
    for reason in waiting:
        warnings.warn(f"left out: {reason}", stacklevel=2)
    return _told_apart(place, found)


def _one_of_each(path: Path, curves: list[Curve]) -> list[Curve]:
    """The ``curves``. Raises ConfigError where two are of the same seed, for a mean would take them for two seeds."""
    first: dict[tuple[str, str, str], int] = {}
    for index, curve in enumerate(curves):
        before = first.setdefault((curve.task, curve.method, curve.seed), index)
        if before != index:
            raise ConfigError(f"{path}: records {before} and {index} are both of {curve.task}, {curve.method}, seed "
                              f"{curve.seed}; remove one of them, or give it another method")
    return curves


def _told_apart(place: Path, found: Mapping[Path, list[Curve]]) -> list[Curve]:
    """All curves, with the name of the folder in the method where several folders have the same seed of it."""
    counts = Counter((curve.task, curve.method, curve.seed) for curves in found.values() for curve in curves)
    mixed = {key[:2] for key, count in counts.items() if count > 1}
    short = Counter(folder.name for folder in found)

    def told(folder: Path, curve: Curve) -> Curve:
        if (curve.task, curve.method) not in mixed:
            return curve
        name = folder.name if short[folder.name] == 1 else folder.relative_to(place).as_posix()
        return replace(curve, method=f"{curve.method} ({name})")

    return [told(folder, curve) for folder, curves in found.items() for curve in curves]


def _run_config(folder: Path) -> dict[str, Any]:
    if not is_file(folder / CONFIG):
        raise ConfigError(_nothing(folder))
    config = dict(read_yaml(folder / CONFIG))
    if missing := [key for key in ("method", "env_name", "env_id", "seed") if key not in config]:
        raise ConfigError(f"{folder / CONFIG}: {missing[0]!r} is missing; a run folder holds the whole configuration "
                          f"as the run wrote it")
    return {"log_dir": None, **config}


def _nothing(place: Path) -> str:
    if not place.exists():
        return f"{place}: no such file or folder; name a run folder, a folder of runs or a file of scores"
    found = "an empty folder" if place.is_dir() and not any(place.iterdir()) else "no run"
    return f"{place}: {found} (a run is a folder with {CONFIG}); name one, a folder of runs or a file of scores (.json)"


def _evaluations(path: Path) -> Iterator[tuple[float, float, float | None]]:
    """(frames, mean return, seconds trained) of every evaluation in a log."""
    notes: list[str] = []
    for number, record in log_lines(path, notes, f'"{RETURN}"'):
        if record is None:
            raise ConfigError(f"{path}: line {number} is not JSON; remove that line")
        frames: Any = record.get("frames")
        score: Any = record.get(RETURN)
        if not (is_number(frames) and is_number(score)):
            raise ConfigError(f"{path}: line {number}: frames {_brief(frames)} and {RETURN} {_brief(score)} must be "
                              f"finite numbers; remove that line")
        wall: Any = record.get(WALL)
        yield float(frames), float(score), float(wall) if is_number(wall) else None
    for note in notes:
        warnings.warn(f"{path}: {note}", stacklevel=2)


# Names of tasks ------------------------------------------------------------------------------------------------------

# The games of the published Atari scores, and of the table in the paper.
ATARI_GAMES = (
    "alien", "amidar", "assault", "asterix", "asteroids", "atlantis", "bank_heist", "battle_zone", "beam_rider",
    "berzerk", "bowling", "boxing", "breakout", "centipede", "chopper_command", "crazy_climber", "demon_attack",
    "double_dunk", "enduro", "fishing_derby", "freeway", "frostbite", "gopher", "gravitar", "hero", "ice_hockey",
    "james_bond", "kangaroo", "krull", "kung_fu_master", "montezuma_revenge", "ms_pacman", "name_this_game", "phoenix",
    "pitfall", "pong", "private_eye", "qbert", "riverraid", "road_runner", "robotank", "seaquest", "skiing", "solaris",
    "space_invaders", "star_gunner", "tennis", "time_pilot", "tutankham", "up_n_down", "venture", "video_pinball",
    "wizard_of_wor", "yars_revenge", "zaxxon")
_IRREGULAR = {"james_bond": "Jamesbond"}  # of all others the words are those of the emulator's name


def task_name(env_name: str, env_id: str) -> str:
    """What published scores call an environment: ``ALE/MsPacman-v5`` of atari is ``atari_ms_pacman``; of other families
    it is the ``env_id`` itself."""
    game = re.fullmatch(r"ALE/(\w+)-v\d+", env_id)
    if env_name != "atari" or game is None:
        return env_id
    regular = re.sub(r"(?<!^)(?=[A-Z])", "_", game[1]).lower()
    return "atari_" + {name.lower(): words for words, name in _IRREGULAR.items()}.get(regular, regular)


def atari_env_id(game: str) -> str:
    """The ``env_id`` of a published game, as ``pong``, ``atari_pong``, ``MsPacman`` or ``ALE/Pong-v5``.

    Raises ConfigError, with the nearest name, if it is none of ATARI_GAMES.
    """
    plain = re.sub(r"^(ALE/|atari_)|-v\d+$", "", game.strip())
    by_letters = {words.replace("_", ""): words for words in ATARI_GAMES}
    words = by_letters.get(plain.replace("_", "").lower())
    if words is None:
        raise ConfigError(f"games: {game!r} is none of the {len(ATARI_GAMES)} published Atari games."
                          f"{suggestion(plain, ATARI_GAMES)} Known: {', '.join(ATARI_GAMES)}")
    name = _IRREGULAR.get(words) or "".join(word.capitalize() for word in words.split("_"))
    return f"ALE/{name}-v5"
