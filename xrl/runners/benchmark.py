"""Several seeds of one configuration, and what they make together.

The folder of a benchmark is the same at each call, <model_dir>/benchmarks/<method>/<env_id with / as ->, so that the
same call goes on with an interrupted one, and one with more seeds trains only the new ones.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xrl.common.config import ResolvedConfig, load_config, save_config
from xrl.common.config_keys import flatten
from xrl.common.errors import ConfigError, XrlError
from xrl.common.files import write_atomic
from xrl.common.provenance import provenance
from xrl.common.registry import suggestion
from xrl.common.run_folder import experiment_name, locked
from xrl.configs.schemas.base import RunConfig
from xrl.environment import make_envs
from xrl.report.baselines import PEOPLE, Baselines, read_baselines
from xrl.report.command import BENCHMARK
from xrl.report.plot import plot
from xrl.report.scores import SCORES, Curve, read_scores, run_curve, task_name, write_scores
from xrl.report.statistics import final_score, summarise
from xrl.report.tables import Table, score_table
from xrl.runners.resume import FREE
from xrl.runners.seed import LOG, RESULT, SEED_CONFIG, run_seed, seed_folder
from xrl.runners.side_by_side import Ended, elsewhere, last_line, memory_of_a_run, plan, train_side_by_side

TABLE, ROWS, SUMMARY, CURVES = "table.md", "table.csv", "summary.json", "curves.png"

# Seeds that differ in these belong together. How often and how long an evaluation is decides which model is the best
# one, and how long the run is its score.
IRRELEVANT = (FREE - {"running_steps", "eval_interval", "test_episode"}) | {"seed", "env_seed"}
ENV_SEEDS = 1000  # environment seeds for each seed: those of two have nothing in common


class SeedsFailed(XrlError, RuntimeError):
    """Some seeds of a benchmark did not come to their end; the others did."""


def run_benchmark(resolved: ResolvedConfig, seeds: int | Sequence[int], *, modules: Sequence[str] = (),
                  jobs: int | None = None, reference: Path | None = None, baselines: Path | None = None) -> Path:
    """Train and test each seed that is not finished yet, then write scores, tables and curves; returns the folder.

    Args:
        resolved: the configuration; its ``seed`` is the first one, ``env_seed`` becomes 1000 * seed.
        seeds: how many, or which.
        modules: imported by each process that trains a seed, because they register environments.
        jobs: seeds at a time; None: as many as cores (or GPUs) and memory allow.
        reference: published scores, drawn beneath the curves.
        baselines: the published baselines.json: the table has scores normalised by people's, too.

    Raises:
        ConfigError: nothing to benchmark, the folder holds seeds of other settings, or the results of the finished
            seeds cannot be written; that stops no seed.
        SeedsFailed: at least one seed; the others are trained and written down first.
        KeyboardInterrupt, SystemExit: on a signal, when every seed under way has saved a checkpoint.
    """
    config = resolved.config
    numbers = _numbers(seeds, config.seed)
    people = _check(config, jobs, reference, baselines)
    with make_envs(config, parallels=1) as envs:  # a misspelt environment is named before anything starts
        need = memory_of_a_run(config, envs)
    folder = benchmark_folder(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"model_dir: {folder} cannot be made: {error}; name another one") from error
    failed: dict[int, str] = {}
    with locked(folder):
        _write_settings(folder, config)
        left = [seed for seed in numbers if not (seed_folder(folder, seed) / RESULT).exists()]
        if len(left) < len(numbers):
            print(f"{folder}: finished earlier: seeds {_listed(set(numbers) - set(left))}", flush=True)
        if left:
            failed = _train(folder, config, left, modules, jobs, need)
        trouble = _finish(folder, reference, people)
    if failed:
        reasons = "; ".join(f"seed {seed}: {reason}" for seed, reason in failed.items())
        raise SeedsFailed(f"{len(failed)} of {len(numbers)} seeds failed: {reasons}; the same command tries them again"
                          f"{f'; and {trouble}' if trouble else ''}")
    if trouble is not None:
        raise trouble
    return folder


def _finish(folder: Path, reference: Path | None, people: Baselines | None) -> XrlError | None:
    """Write and print what the finished seeds make; returns why it cannot be written, if so."""
    try:
        print(write_results(folder, reference, people), flush=True)
    except OSError as error:
        return ConfigError(f"{folder}: the results cannot be written: {error}; mend that and give the same command "
                           f"again: no finished seed is trained again")
    except XrlError as error:
        return error
    return None


def benchmark_folder(config: RunConfig) -> Path:
    """Where the seeds of a configuration lie."""
    return Path(config.model_dir) / "benchmarks" / experiment_name(config)


def _numbers(seeds: int | Sequence[int], first: int) -> list[int]:
    """Which seeds: so many from ``first`` on, or those listed."""
    numbers = list(range(first, first + seeds)) if isinstance(seeds, int) else list(seeds)
    if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise ConfigError(f"seeds: {seeds!r}: give how many (at least 1), or a list of different numbers, 0 or more")
    return numbers


def _check(config: RunConfig, jobs: int | None, reference: Path | None, baselines: Path | None) -> Baselines | None:
    """The ``baselines``. Raises ConfigError for what is better known before the training than after it."""
    task = task_name(config.env_name, config.env_id)
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs: {jobs} is too few; train at least 1 seed at a time")
    if config.eval_interval == 0:
        raise ConfigError("eval_interval: 0 leaves nothing to benchmark; give the agent steps between evaluations")
    if reference is not None:
        known = {curve.task for curve in read_scores(reference)}
        if task not in known:
            raise ConfigError(f"{reference}: has no curve of {task};{suggestion(task, known)} leave the reference out")
    if baselines is None:
        return None
    people = read_baselines(baselines)
    for person in PEOPLE:
        people.normalise(task, 0.0, person)  # named now if the file lacks it
    return people


# The settings ------------------------------------------------------------------------------------------------------


def settings_of(config: RunConfig) -> dict[str, Any]:
    """What all seeds of a benchmark share, by dotted key, as JSON has it."""
    flat = {key: value for key, value in flatten(config).items() if key not in IRRELEVANT}
    return dict(json.loads(json.dumps(flat, default=str)))


def _write_settings(folder: Path, config: RunConfig) -> None:
    """Write the settings down, or compare them with those that the folder's seeds were trained with."""
    made, programs = provenance(), check_settings(folder, config)
    if programs is None:
        write_atomic(folder / BENCHMARK, json_bytes({"config": settings_of(config), **made}))
    elif programs != {key: made[key] for key in programs}:
        print(f"{folder}: begun with other versions of the programs; the {RESULT} of each seed has its own", flush=True)


def check_settings(folder: Path, config: RunConfig) -> dict[str, Any] | None:
    """Which programs a benchmark's folder was begun with, None for a new one. Raises ConfigError if its seeds have
    other settings than ``config``."""
    path, now = folder / BENCHMARK, settings_of(config)
    if not path.exists():
        return None
    try:
        saved = json.loads(path.read_text())
        then, programs = dict(saved["config"]), {key: saved[key] for key in ("versions", "commit")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error!r}; give another model_dir, or remove {folder}") from error
    if changed := [key for key in {**then, **now} if then.get(key) != now.get(key)]:
        named = ", ".join(f"{key} was {then.get(key)!r} and is {now.get(key)!r} now" for key in changed[:3])
        more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
        raise ConfigError(f"{folder}: its seeds have other settings: {named}{more}; go on with the old ones, give "
                          f"another model_dir, or remove the folder")
    return programs


# Training ----------------------------------------------------------------------------------------------------------


def _train(folder: Path, config: RunConfig, left: Sequence[int], modules: Sequence[str], jobs: int | None,
           need: int) -> dict[int, str]:
    """Train the seeds; returns those that failed, each with the reason."""
    failed: dict[int, str] = {}

    def ended(seed: int, reason: str | None, rest: Sequence[int]) -> None:
        if reason is not None:
            failed[seed] = reason
        left = f"; left: {_listed(rest)}" if rest else ""
        try:
            print(f"seed {seed}: {_outcome(folder, seed) if reason is None else f'FAILED: {reason}'}{left}", flush=True)
            if rest and reason is None:
                write_results(folder)
        except (OSError, XrlError) as error:  # the other seeds go on; in the end it is tried again
            print(f"seed {seed}: ended, but what the seeds make so far cannot be written: {error}{left}",
                  file=sys.stderr, flush=True)

    for seed in left:
        own = seed_folder(folder, seed)
        own.mkdir(exist_ok=True)
        changes = {"seed": seed, "env_seed": ENV_SEEDS * seed, "model_dir": str(own)}
        save_config(config.model_copy(update=changes), own / SEED_CONFIG)
    modules, reason = elsewhere(config, modules, seed_folder(folder, left[0]) / SEED_CONFIG)
    try:
        if reason:
            print(f"{folder}: seeds {_listed(left)}, one after another in this process: {reason}", flush=True)
            _train_here(folder, left, ended)
        else:
            shares = plan(config, len(left), jobs, need)
            print(f"{folder}: seeds {_listed(left)}, {shares.jobs} at a time, torch threads for each: "
                  f"{shares.threads}", flush=True)
            train_side_by_side(folder, left, shares, modules, ended)
    except (KeyboardInterrupt, SystemExit):
        print(f"{folder}: stopped; the same command goes on", file=sys.stderr, flush=True)
        raise
    return failed


def _train_here(folder: Path, left: Sequence[int], ended: Ended) -> None:
    for done, seed in enumerate(left, start=1):
        own, reason = seed_folder(folder, seed), None
        print(f"seed {seed}: begins", flush=True)
        try:
            run_seed(load_config(config_path=own / SEED_CONFIG), own)
        except Exception as error:  # whatever it was, the other seeds go on, as they do in processes of their own
            with (own / LOG).open("a") as log:
                log.write(traceback.format_exc())
            reason = f"{own / LOG}: {type(error).__name__}: {last_line(str(error))}"
        ended(seed, reason, left[done:])


def _outcome(folder: Path, seed: int) -> str:
    result = read_result(folder, seed)
    best, last = result["best"], result["last"]
    return (f"best model {best['test_mean']:.1f}, last model {last['test_mean']:.1f} (means of "
            f"{len(best['test_scores'])} test episodes), {result['wall_s'] / 60:.1f} minutes")


# Results -----------------------------------------------------------------------------------------------------------


def read_result(folder: Path, seed: int) -> dict[str, Any]:
    """What a finished seed left, see `run_seed`. Raises ConfigError where that cannot be read."""
    path = seed_folder(folder, seed) / RESULT
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error!r}; remove it, and its seed is tested again") from error


def write_results(folder: Path, reference: Path | None = None, baselines: Baselines | None = None) -> str:
    """Write what the finished seeds make together: SCORES, TABLE, ROWS, SUMMARY and CURVES; returns the tables, and a
    line for what could not be made because a package is missing."""
    seeds = sorted(int(path.parent.name.removeprefix("seed_")) for path in folder.glob(f"seed_*/{RESULT}"))
    if not seeds:
        return f"{folder}: no seed has finished"
    results = {seed: read_result(folder, seed) for seed in seeds}
    curves = [run_curve(seed_folder(folder, seed) / result["run"]) for seed, result in results.items()]
    write_scores(folder / SCORES, curves)
    by_seed = _by_seed(results, curves)
    shown = [by_seed.markdown()]

    def statistics() -> None:
        table = score_table(curves, baselines=baselines)
        shown.insert(0, table.markdown())
        task = curves[0].task
        samples = {"score": [final_score(curve) for curve in curves],
                   **{f"{name}_model": [result[name]["test_mean"] for result in results.values()]
                      for name in ("best", "last")}}
        summary = {name: asdict(summarise({task: scores})) for name, scores in samples.items()}
        write_atomic(folder / ROWS, table.csv().encode())
        write_atomic(folder / SUMMARY, json_bytes({"task": task, "method": curves[0].method, **summary,
                                              "seeds": by_seed.json()["rows"], "table": table.json()}))

    missing = [if_installed(statistics), if_installed(lambda: plot(folder, reference=reference, out=folder / CURVES))]
    write_atomic(folder / TABLE, "\n".join(shown).encode())
    return "\n".join([*shown, *filter(None, dict.fromkeys(missing)), f"results: {folder}"])


def _by_seed(results: Mapping[int, dict[str, Any]], curves: Sequence[Curve]) -> Table:
    rows = [(seed, final_score(curve), result["best"]["test_mean"], result["last"]["test_mean"],
             result["best"]["frames"], result["frames"], result["wall_s"] / 60)
            for (seed, result), curve in zip(results.items(), curves, strict=True)]
    return Table(("seed", "score", "best model", "last model", "frames of the best", "frames", "minutes"), tuple(rows),
                 ("best model, last model: means of test episodes, in environments that neither training nor its "
                  "evaluations have seen.",))


def if_installed(write: Callable[[], Any]) -> str:
    """Call ``write``; the message if it does without a package of the extras."""
    try:
        write()
    except ConfigError as error:
        if not isinstance(error.__cause__, ImportError):
            raise
        return f"not written: {error}"
    return ""


def json_bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _listed(seeds: Iterable[int]) -> str:
    return " ".join(str(seed) for seed in sorted(seeds))
