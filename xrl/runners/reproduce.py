"""Published scores, once more: train the games of a published set and compare at the same frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from xrl.common.config import ResolvedConfig, load_config
from xrl.common.config_files import parse_assignments
from xrl.common.config_keys import flatten
from xrl.common.errors import ConfigError
from xrl.common.files import write_atomic
from xrl.common.registry import suggestion
from xrl.report.baselines import PEOPLE, Baselines, read_baselines
from xrl.report.plot import plot
from xrl.report.scores import ATARI_GAMES, SCORES, Curve, atari_env_id, read_scores, task_name
from xrl.report.statistics import HumanScores, final_score, human_scores
from xrl.report.tables import Cell, Table
from xrl.runners.benchmark import (
    CURVES,
    IRRELEVANT,
    SeedsFailed,
    benchmark_folder,
    check_settings,
    if_installed,
    json_bytes,
    run_benchmark,
)

PASS, FAIL, NOT_COMPARABLE, ERROR = "pass", "fail", "not comparable", "error"
FEWEST_POINTS = 10  # evaluations of a run
STILL_THERE = 0.98  # a published seed that ended earlier than this share of the frames is not compared with


@dataclass(frozen=True)
class ScoreSet:
    """A published set: what to train, and how its file of scores calls the method. ``origin``: what its authors say of
    the configuration behind it."""

    method: str
    env_name: str
    published_as: str
    frames: int
    games: tuple[str, ...]
    origin: str


SETS = {"atari-dreamerv2": ScoreSet(
    "DreamerV2", "atari", "dreamerv2", 200_000_000, ATARI_GAMES,
    "Which configuration produced the published curves is not stated by their authors")}


@dataclass(frozen=True)
class Comparison:
    """One game. ``ours``, ``published``: the score of each seed, the mean of its last 5 points at or before ``frames``.

    ``verdict``: PASS where the mean of ours reaches the lowest published seed, else FAIL; NOT_COMPARABLE where nothing
    is published at or before these frames; ERROR where our training failed, for the reason ``error``.
    """

    game: str
    task: str
    verdict: str
    frames: int
    ours: tuple[float, ...] = ()
    published: tuple[float, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Reproduction:
    """What came out, and the folder with it on file. ``failed``: games below the published range, or not trained."""

    folder: Path
    comparisons: tuple[Comparison, ...]

    @property
    def failed(self) -> tuple[str, ...]:
        return tuple(found.game for found in self.comparisons if found.verdict in (FAIL, ERROR))


@dataclass(frozen=True)
class Game:
    """What is to be trained. ``differs``: the keys, beside the frames, that are not as shipped, and how."""

    name: str
    task: str
    resolved: ResolvedConfig
    differs: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """What was asked for, read and checked."""

    name: str
    games: tuple[Game, ...]
    frames: int
    published: tuple[Curve, ...]
    baselines: Baselines | None
    reference: Path

    @property
    def scores(self) -> ScoreSet:
        return SETS[self.name]


def reproduce(name: str, games: str | Sequence[str], seeds: int | Sequence[int], reference: str | Path,
              frames: float | None = None, baselines: str | Path | None = None, overrides: Sequence[str] = (), *,
              jobs: int | None = None) -> Reproduction:
    """Train each of ``games`` as a benchmark, then say whether the published scores came back.

    The report, reproduce.md, .csv, .json and CURVES, lies in <model_dir>/reproduce/<name>/ and grows with each game.

    Args:
        name: one of SETS.
        games: "pong,boxing", a list of names, or "all".
        seeds, jobs: see `run_benchmark`.
        reference: the published file of scores.
        frames: how far to train; None: as far as the published runs went.
        baselines: the published baselines.json, for scores normalised by people's.
        overrides: ``key=value``, as on the command line.

    Raises:
        ConfigError: anything of this is wrong, which is found before the training; or a game's folder holds seeds of
            other settings, which is found before, too.
        KeyboardInterrupt, SystemExit: on a signal; the same call goes on.
    """
    request = _request(name, games, Path(reference), frames, baselines, overrides)
    folder = Path(request.games[0].resolved.config.model_dir) / "reproduce" / name
    found: list[Comparison] = []
    curves: dict[Path, list[Curve]] = {}
    for game in request.games:
        print(f"{game.name}: {_at(request, request.frames)}", flush=True)
        try:
            place = run_benchmark(game.resolved, seeds, jobs=jobs, reference=request.reference)
        except SeedsFailed as error:  # the other games go on
            found.append(Comparison(game.name, game.task, ERROR, 0, error=str(error)))
        else:
            curves[place] = read_scores(place / SCORES)
            found.append(compare(game.name, curves[place], request.published))
        print(f"{game.name}: {found[-1].verdict}", flush=True)
        table = _write(folder, request, found, curves)
    print(table, flush=True)
    return Reproduction(folder, tuple(found))


def compare(game: str, ours: Sequence[Curve], published: Sequence[Curve]) -> Comparison:
    """Our seeds, as far as all of them got, with the published ones of the same task at the same frames.

    A published seed that had ended by then says nothing about these frames and is left out.
    """
    frames = min(curve.xs[-1] for curve in ours)
    same = [curve for curve in published if curve.task == ours[0].task and curve.xs[0] <= frames]
    last = max((x for curve in same for x in curve.xs if x <= frames), default=0.0)
    theirs = tuple(final_score(curve, frames) for curve in same if curve.xs[-1] >= STILL_THERE * last)
    mine = tuple(final_score(curve, frames) for curve in ours)
    verdict = NOT_COMPARABLE if not theirs else PASS if fmean(mine) >= min(theirs) else FAIL
    return Comparison(game, ours[0].task, verdict, int(frames), mine, theirs)


# What was asked for ------------------------------------------------------------------------------------------------


def _request(name: str, games: str | Sequence[str], reference: Path, frames: float | None,
          baselines: str | Path | None, overrides: Sequence[str]) -> Request:
    if name not in SETS:
        raise ConfigError(f"reproduce: {name!r} is unknown.{suggestion(name, SETS)} Known: {', '.join(SETS)}")
    scores = SETS[name]
    if frames is not None and not 0 < frames <= scores.frames:
        raise ConfigError(f"frames: {frames} must be more than 0 and at most the {scores.frames:,} that were published")
    length = scores.frames if frames is None else int(frames)
    listed = games.split(",") if isinstance(games, str) else list(games)
    if listed == ["all"]:
        listed = list(scores.games)
    ids = list(dict.fromkeys(atari_env_id(game) for game in listed))
    if not ids:
        raise ConfigError("games: none is named; give names such as pong,boxing, or all")
    published = tuple(curve for curve in read_scores(reference) if curve.method == scores.published_as)
    wanted = tuple(_game(scores, env_id, length, overrides, reference, published) for env_id in ids)
    for game in wanted:
        check_settings(benchmark_folder(game.resolved.config), game.resolved.config)
    people = None if baselines is None else read_baselines(baselines)
    if people is not None:
        for game in wanted:
            _normalised(people, game.task, 0.0)  # a game that the file lacks is named now
    return Request(name, wanted, length, published, people, reference)


def _game(scores: ScoreSet, env_id: str, frames: int, overrides: Sequence[str], reference: Path,
          published: Sequence[Curve]) -> Game:
    """The configuration of one game: as shipped, but for the length and what was asked for."""
    task = task_name(scores.env_name, env_id)
    if task not in {curve.task for curve in published}:
        raise ConfigError(f"{reference}: has no curve of {scores.published_as!r} in {task!r}; leave this game out, or "
                          f"give the file with it")
    said = dict(parse_assignments(overrides))
    if "running_steps" in said:
        raise ConfigError(f"running_steps: {said['running_steps']!r}: the length of a reproduction is given in frames "
                          f"(frames=, --frames)")
    asked = load_config(scores.method, scores.env_name, env_id, None, overrides).config
    steps = frames // asked.environment.action_repeat
    if steps < FEWEST_POINTS:
        raise ConfigError(f"frames: {frames:,} is too short for a curve; give {scores.published_as}'s first point, "
                          f"{published[0].xs[0]:,.0f}, or more")
    interval = asked.eval_interval if "eval_interval" in said else min(asked.eval_interval, steps // FEWEST_POINTS)
    first = min(curve.xs[0] for curve in published if curve.task == task)
    game = env_id.removeprefix("ALE/").partition("-")[0]
    _check_reach(game, steps, interval, asked.environment.action_repeat, first)
    resolved = load_config(scores.method, scores.env_name, env_id, None,
                           [text for text in overrides if text.partition("=")[0].strip() != "eval_interval"]
                           + [f"running_steps={steps}", f"eval_interval={interval}"])
    shipped = flatten(load_config(scores.method, scores.env_name, env_id, None, [f"preset={asked.preset}"]).config)
    now = flatten(resolved.config)
    differs = tuple(f"{key}: {now[key]} instead of {shipped[key]}" for key in now
                    if key not in IRRELEVANT | {"running_steps"} and now[key] != shipped[key])
    return Game(game, task, resolved, differs)


def _check_reach(game: str, steps: int, interval: int, repeat: int, first: float) -> None:
    """Raises ConfigError where the last evaluation misses the ``first`` published frames that the training reaches;
    says so where not even that reaches them."""
    if interval == 0:
        return  # which the benchmark refuses
    last = steps // interval * interval * repeat
    if last >= first:
        return
    missed = (f"{game}: not comparable: the last evaluation is at {last:,} frames, the first published point at "
              f"{first:,.0f}")
    if steps * repeat >= first:
        raise ConfigError(f"eval_interval: {interval:,}: {missed}; choose an eval_interval that divides {steps:,} "
                          f"agent steps, or give more frames")
    print(f"{missed}; give more frames for a verdict", flush=True)


# The report --------------------------------------------------------------------------------------------------------


def _write(folder: Path, request: Request, found: Sequence[Comparison], curves: dict[Path, list[Curve]]) -> str:
    """Write what is known so far; returns the Markdown."""
    lines = [*_notes(request, found), *_over_games(request, [curve for group in curves.values() for curve in group])]
    table = _table(request, found, lines)
    heading = f"# {request.name}: {_outcome(request, found)}, {_at(request, request.frames)}\n\n"
    text = heading + table.markdown()
    write_atomic(folder / "reproduce.md", text.encode())
    write_atomic(folder / "reproduce.csv", table.csv().encode())
    write_atomic(folder / "reproduce.json", json_bytes({
        "set": request.name, "frames": request.frames, "of_frames": request.scores.frames, "notes": lines,
        "games": [asdict(comparison) for comparison in found]}))
    if curves and (missing := if_installed(lambda: plot(
            *curves, reference=request.reference, out=folder / CURVES, panels=True))):
        text += f"\n{missing}\n"
    return f"{text}\nresults: {folder}"


def _outcome(request: Request, found: Sequence[Comparison]) -> str:
    verdicts = [comparison.verdict for comparison in found]
    shown = [PASS, FAIL, NOT_COMPARABLE, *([ERROR] if ERROR in verdicts else [])]
    return (f"trained {len(found) - verdicts.count(ERROR)} of {_games(len(request.games))}: "
            + ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in shown))


def _games(count: int) -> str:
    return f"{count} game" if count == 1 else f"{count} games"


def _table(request: Request, found: Sequence[Comparison], notes: Sequence[str]) -> Table:
    columns = ["game", "verdict", "seeds", "ours", "ours min", "ours max", "published min", "published mean",
               "published max", "published seeds", "frames"]
    if request.baselines is not None:
        columns += ["gamer", "record"]
    return Table(tuple(columns), tuple(_row(request, comparison) for comparison in found), tuple(notes))


def _row(request: Request, found: Comparison) -> tuple[Cell, ...]:
    def spread(scores: Sequence[float]) -> tuple[Cell, Cell, Cell]:
        return (fmean(scores), min(scores), max(scores)) if scores else (None, None, None)

    mean, low, high = spread(found.published)
    cells: tuple[Cell, ...] = (found.game, found.verdict, len(found.ours), *spread(found.ours), low, mean, high,
                               len(found.published), _at(request, found.frames) if found.ours else "")
    if request.baselines is None:
        return cells
    people = _normalised(request.baselines, found.task, fmean(found.ours)) if found.ours else (None, None)
    return (*cells, *people)


def _normalised(baselines: Baselines, task: str, score: float) -> tuple[float, float]:
    gamer, record = (baselines.normalise(task, score, person) for person in PEOPLE)
    return gamer, record


def _notes(request: Request, found: Sequence[Comparison]) -> list[str]:
    games, config = request.games, request.games[0].resolved.config
    left = [game.name for game in games[len(found):]]
    differs = dict.fromkeys(key for game in games for key in game.differs)
    return [
        *([f"Not trained yet: {', '.join(left)}."] if left else []),
        "pass: the mean over our seeds is within the range of the published seeds at the same frames, or above it; "
        "fail: below. Score of a seed: the mean of its last 5 points at or before these frames. Not comparable: the "
        "published curve has no point that early. Published seeds that had ended before are left out.",
        f"Configuration: {config.method}, preset {config.preset}, as shipped but for the frames"
        f"{' and ' + '; '.join(differs) if differs else ''}. {request.scores.origin}.",
        *(["preset=debug learns nothing: it is made to try the commands, and no score of it counts."]
          if config.preset == "debug" else []),
        *(f"{comparison.game}: {comparison.error}" for comparison in found if comparison.error)]


def _over_games(request: Request, ours: Sequence[Curve]) -> list[str]:
    """Normalised scores over the games so far, ours and the published ones, and what was corrected in the baselines."""
    if request.baselines is None or not ours:
        return []
    tasks = {curve.task for curve in ours}
    published = [curve for curve in request.published if curve.task in tasks]
    lines = [f"Over {_games(len(tasks))}, ours, {_at(request, request.frames)}: "
             f"{_summary(human_scores(ours, request.baselines))}."]
    if all(curve.xs[0] <= request.frames for curve in published):
        lines.append(f"Over the same games, published, {_at(request, request.frames)}, all seeds: "
                     f"{_summary(human_scores(published, request.baselines, request.frames))}.")
    return [*lines, *request.baselines.notes]


def _summary(scores: HumanScores) -> str:
    return (f"gamer median {scores.gamer_median:.3f}, gamer mean {scores.gamer_mean:.3f}, record mean "
            f"{scores.record_mean:.3f}, clipped record mean {scores.clipped_record_mean:.3f}")


def _at(request: Request, frames: int) -> str:
    return f"at {frames:,} of {request.scores.frames:,} frames"
