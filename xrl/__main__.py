"""The command line: ``xrl COMMAND [PATH ...] [--flags] key=value ...``; `xrl --help` lists the commands."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import xrl
from xrl.common.config import ResolvedConfig, describe, load_config
from xrl.common.errors import ConfigError, XrlError
from xrl.common.registry import load

_EXPERIMENT = ("method", "env", "env_id", "config")


@dataclass(frozen=True)
class Command:
    """``run`` returns the exit code, None for 0. ``paths``: how many it takes, at least and at most, and what they are;
    where it takes none, its words are key=value. ``flags``: those that mean something to it."""

    text: str
    run: Callable[[argparse.Namespace], int | None]
    flags: tuple[str, ...]
    paths: tuple[int, int, str] | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for a mistake the user can mend, 130 for Ctrl-C; 1 where a crash
    does not come again, a machine is not ready, or a published score did not come back."""
    arguments = _parser().parse_intermixed_args(argv)
    try:
        command = _COMMANDS[arguments.command]
        _check_usage(arguments, command)
        _import_user_module(arguments.module)
        return command.run(arguments) or 0
    except XrlError as error:
        print(f"xrl: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("xrl: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:12} {command.text}" for name, command in _COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="xrl", description=f"commands:\n{commands}", formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: xrl train --method DreamerV2 --env atari --env-id ALE/Pong-v5 running_steps=1e6 seed=3",
        allow_abbrev=False)
    parser.add_argument("command", choices=list(_COMMANDS))
    parser.add_argument("words", nargs="*", metavar="word", help="paths, or key=value; keys of sections are dotted")
    parser.add_argument("--method", help="name of the method, e.g. DreamerV2")
    parser.add_argument("--env", help="environment family, e.g. classic_control")
    parser.add_argument("--env-id", help="environment in the family, e.g. CartPole-v1")
    parser.add_argument("--config", metavar="PATH", help="YAML file over the shipped defaults")
    parser.add_argument("--import", dest="module", metavar="MODULE", help="import this first: it registers your own")
    parser.add_argument("--resume", nargs="?", const="", metavar="PATH",
                        help="train, benchmark: go on with the run at PATH, or with the newest one of model_dir")
    parser.add_argument("--json", metavar="PATH", help="profile: write the table to this file too")
    parser.add_argument("--seeds", type=int, metavar="N", help="benchmark, reproduce: train N seeds")
    parser.add_argument("--jobs", type=int, metavar="N", help="benchmark, reproduce: seeds side by side; else as fit")
    parser.add_argument("--reference", metavar="PATH", help="plot, benchmark, reproduce: file of published scores")
    parser.add_argument("--baselines", metavar="PATH", help="benchmark, reproduce: people's scores, to normalise by")
    parser.add_argument("--games", help="reproduce: pong,boxing or all")
    parser.add_argument("--frames", type=float, metavar="N", help="reproduce: how far, else as far as was published")
    parser.add_argument("--out", metavar="PATH", help="plot: a .png, .svg or .pdf; report: the file to write")
    parser.add_argument("--panels", action="store_true", default=None, help="plot: a panel for each task")
    parser.add_argument("--port", type=int, metavar="N", help="dream: of the page; else a free one")
    parser.add_argument("--host", help="dream: address to listen at; else 127.0.0.1, this machine alone")
    parser.add_argument("--open", action="store_true", default=None, help="dream: open the page in a browser")
    parser.add_argument("--version", action="version", version=f"xrl {xrl.__version__}")
    return parser


_ALWAYS = {"command", "words", "module"}


def _check_usage(arguments: argparse.Namespace, command: Command) -> None:
    """Raises ConfigError for a flag or a number of words that the command has no use for."""
    for flag, value in vars(arguments).items():
        if value is not None and flag not in _ALWAYS and flag not in command.flags:
            users = " and ".join(name for name, other in _COMMANDS.items() if flag in other.flags)
            raise ConfigError(f"command line: --{flag.replace('_', '-')}: {arguments.command} has no use for it; it "
                              f"belongs to {users}")
    if command.paths is not None:
        least, most, what = command.paths
        if not least <= len(arguments.words) <= most:
            needs = "one PATH" if most == 1 else "at least one PATH"
            raise ConfigError(f"command line: {arguments.command}: needs {needs}, {what}, and got "
                              f"{len(arguments.words)}")


def _import_user_module(name: str | None) -> None:
    """Import a module from the current folder (or an installed one), as ``python -m`` would find it."""
    if name is None:
        return
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module exists; something it imports does not
        raise ConfigError(f"command line: --import: no module named {name!r} in {os.getcwd()} or installed; "
                          "give its name without .py") from None


# Commands ----------------------------------------------------------------------------------------------------------


def _resolved(arguments: argparse.Namespace) -> ResolvedConfig:
    return load_config(arguments.method, arguments.env, arguments.env_id, arguments.config, arguments.words)


def _run(arguments: argparse.Namespace) -> None:
    if arguments.seeds is not None:
        if arguments.resume is not None:
            raise ConfigError("command line: --resume: a benchmark of several seeds goes on by itself; leave it out")
        modules = () if arguments.module is None else (arguments.module,)
        load("xrl.runners.benchmark:run_benchmark")(
            _resolved(arguments), arguments.seeds, modules=modules, jobs=arguments.jobs,
            reference=_path(arguments.reference), baselines=_path(arguments.baselines))
        return
    for flag in ("jobs", "reference", "baselines"):
        if getattr(arguments, flag) is not None:
            raise ConfigError(f"command line: --{flag}: belongs to several seeds; give --seeds too")
    if arguments.resume is not None:
        _resume(arguments)
        return
    runner = load("xrl.runners.runner:make_runner")(_resolved(arguments), is_test=arguments.command == "test")
    runner.run(mode=arguments.command)


def _resume(arguments: argparse.Namespace) -> None:
    """The run itself knows its configuration; what is said here is compared with it."""
    if arguments.config is not None:
        raise ConfigError("command line: --config: a run that is resumed has a configuration of its own; give single "
                          "keys as key=value")
    place, overrides = arguments.resume, list(arguments.words)
    if "=" in place and not os.path.exists(place):  # `--resume running_steps=1e6` names no place
        place, overrides = "", [place, *overrides]
    load("xrl.runners.runner:resume_run")(
        place or None, arguments.command, method=arguments.method, env=arguments.env, env_id=arguments.env_id,
        overrides=overrides)


def _profile(arguments: argparse.Namespace) -> None:
    load("xrl.runners.runner:make_runner")(_resolved(arguments), is_test=False).profile(arguments.json)


def _config(arguments: argparse.Namespace) -> None:
    resolved = _resolved(arguments)
    print(describe(resolved.config, resolved.origins))


def _doctor(arguments: argparse.Namespace) -> int:
    return int(load("xrl.runners.doctor:run_doctor")(
        arguments.method, arguments.env, arguments.env_id, arguments.config, arguments.words))


def _checkpoints(arguments: argparse.Namespace) -> None:
    print(load("xrl.runners.resume:describe_checkpoints")(arguments.words[0]))


def _replay_crash(arguments: argparse.Namespace) -> int:
    report = load("xrl.agents.crash:replay_crash")(arguments.words[0])
    print(report)
    return 0 if report.reproduced else 1


def _report(arguments: argparse.Namespace) -> None:
    print(load("xrl.report.html:write_report")(arguments.words[0], _path(arguments.out)))


def _dream(arguments: argparse.Namespace) -> None:
    load("xrl.player.server:serve")(arguments.words[0], arguments.host or "127.0.0.1", arguments.port or 0,
                                    open_browser=bool(arguments.open))


def _plot(arguments: argparse.Namespace) -> None:
    print(load("xrl.report.plot:plot")(*arguments.words, reference=arguments.reference,
                                       out=arguments.out or "curves.png", panels=bool(arguments.panels)))


def _reproduce(arguments: argparse.Namespace) -> int:
    if not arguments.words or "=" in arguments.words[0]:
        raise ConfigError("command line: reproduce: needs the name of a published set first, e.g. atari-dreamerv2")
    name, *overrides = arguments.words
    for flag in ("games", "seeds", "reference"):
        if getattr(arguments, flag) is None:
            raise ConfigError(f"command line: reproduce: needs --{flag}; for instance: xrl reproduce atari-dreamerv2 "
                              f"--games pong --seeds 3 --reference atari-dreamerv2.json")
    found = load("xrl.runners.reproduce:reproduce")(
        name, arguments.games, arguments.seeds, arguments.reference, arguments.frames, arguments.baselines, overrides,
        jobs=arguments.jobs)
    return 1 if found.failed else 0


def _path(text: str | None) -> object:
    from pathlib import Path
    return None if text is None else Path(text)


_COMMANDS = {
    "train": Command("train, then save the final model", _run, (*_EXPERIMENT, "resume")),
    "test": Command("play the newest saved model of this method and env_id; render=true films it", _run, _EXPERIMENT),
    "benchmark": Command("train while evaluating on a fixed grid; with --seeds N several runs, and statistics", _run,
                         (*_EXPERIMENT, "resume", "seeds", "jobs", "reference", "baselines")),
    "reproduce": Command("train games of a published set and say which of its scores came back", _reproduce,
                         ("games", "seeds", "jobs", "reference", "baselines", "frames")),
    "report": Command("write report.html of a run: one file to read, keep and send", _report, ("out",),
                      (1, 1, "a run folder")),
    "dream": Command("open a page to play inside the learned model of a run", _dream, ("port", "host", "open"),
                     (1, 1, "a run, a folder of runs or a model file")),
    "plot": Command("draw learning curves of runs, folders of runs or files of scores", _plot,
                    ("reference", "out", "panels"), (1, 10_000, "a run, a folder of runs or a file of scores")),
    "profile": Command("time every part of a short run, print where it goes and one sentence of advice; keeps nothing",
                       _profile, (*_EXPERIMENT, "json")),
    "doctor": Command("is this machine ready for a planned run? Names what to mend, and how", _doctor, _EXPERIMENT),
    "checkpoints": Command("list the checkpoints of a run (or of all runs in a folder): step, time, size, whole or "
                           "damaged", _checkpoints, (), (1, 1, "a run or a folder of runs")),
    "replay-crash": Command("run the update again that stopped a run because its numbers were not finite, and show "
                            "where", _replay_crash, (), (1, 1, "the crash folder that the error named")),
    "config": Command("print every key of the resolved config: value, where it came from, unit and meaning", _config,
                      _EXPERIMENT),
}


if __name__ == "__main__":
    sys.exit(main())
