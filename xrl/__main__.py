"""The command line: ``xrl COMMAND [PATH ...] [--flags] key=value ...``; `xrl --help` lists the commands."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
    example: str
    paths: tuple[int, int, str] | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for a mistake the user can mend, 130 for Ctrl-C; 1 where a crash
    does not come again, a machine is not ready, or a published score did not come back."""
    words = sys.argv[1:] if argv is None else list(argv)
    if {"-h", "--help"} & set(words) and words[0] in _COMMANDS:
        _parser(words[0]).print_help()
        return 0
    parser = _parser()
    arguments = parser.parse_intermixed_args(words)
    if arguments.command is None:
        parser.error("name a command; `xrl --help` lists them")
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


_FLAGS: dict[str, dict[str, Any]] = {
    "method": {"help": "name of the method, e.g. DreamerV2"},
    "env": {"help": "environment family, e.g. classic_control"},
    "env_id": {"help": "environment in the family, e.g. CartPole-v1"},
    "config": {"metavar": "PATH", "help": "YAML file over the shipped defaults"},
    "resume": {"nargs": "?", "const": "", "metavar": "PATH",
               "help": "go on with the run at PATH, or with the newest one of model_dir"},
    "json": {"metavar": "PATH", "help": "write the table to this file too"},
    "seeds": {"type": int, "metavar": "N", "help": "train so many seeds"},
    "jobs": {"type": int, "metavar": "N", "help": "seeds side by side; else as many as fit"},
    "reference": {"metavar": "PATH", "help": "file of published scores"},
    "baselines": {"metavar": "PATH", "help": "file of people's scores, to normalise by"},
    "games": {"help": "pong,boxing or all"},
    "frames": {"type": float, "metavar": "N", "help": "how far, else as far as was published"},
    "out": {"metavar": "PATH", "help": "the file to write"},
    "threshold": {"metavar": "SCORE", "help": "what is asked for: when did each get there? Of several tasks "
                                              "TASK=SCORE,TASK=SCORE"},
    "panels": {"action": "store_true", "default": None, "help": "a panel for each task"},
    "port": {"type": int, "metavar": "N", "help": "of the page; else a free one"},
    "host": {"help": "address to listen at; else 127.0.0.1, this machine alone"},
    "open": {"action": "store_true", "default": None, "help": "open the page in a browser"},
}


def _parser(only: str | None = None) -> argparse.ArgumentParser:
    """Of all commands, or for the help of one."""
    commands = "\n".join(f"  {name:12} {command.text}" for name, command in _COMMANDS.items())
    examples = "\n".join(f"  {command.example}" for command in _COMMANDS.values())
    if only is None:
        usage, text = "xrl COMMAND [PATH ...] [--flags] [key=value ...]", f"commands:\n{commands}"
        end = f"examples:\n{examples}\n\n`xrl COMMAND --help` says more about one."
    else:
        own = _COMMANDS[only]
        most = None if own.paths is None else own.paths[1]
        words = {None: " key=value ...", 0: "", 1: " PATH"}.get(most, " PATH ...")
        usage, text = f"xrl {only} [--flags]{words}", f"{own.text}\n\nexample: {own.example}"
        end = "" if most == 0 else f"PATH: {own.paths[2]}" if own.paths else (
            "Keys, dotted for sections, override the shipped defaults; `xrl config` with the same words lists them.")
    parser = argparse.ArgumentParser(prog="xrl", usage=usage, description=text, epilog=end, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=list(_COMMANDS), help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", metavar="word", help=argparse.SUPPRESS)
    for flag, options in _FLAGS.items():
        if only is None or flag in _COMMANDS[only].flags:
            users = [name for name, command in _COMMANDS.items() if flag in command.flags]
            prefix = f"{', '.join(users)}: " if only is None and len(users) < 4 else ""
            parser.add_argument(f"--{flag.replace('_', '-')}", **{**options, "help": prefix + options["help"]})
    parser.add_argument("--import", dest="module", metavar="MODULE", help="import this first: it registers your own")
    parser.add_argument("--version", action="version", version=f"xrl {xrl.__version__}")
    return parser


_ALWAYS = {"command", "words", "module"}


def _check_usage(arguments: argparse.Namespace, command: Command) -> None:
    """Raises ConfigError for a flag or a number of words that the command has no use for."""
    for flag, value in vars(arguments).items():
        if value is not None and flag not in _ALWAYS and flag not in command.flags:
            *others, last = (name for name, other in _COMMANDS.items() if flag in other.flags)
            users = f"{', '.join(others)} and {last}" if others else last
            raise ConfigError(f"command line: --{flag.replace('_', '-')}: {arguments.command} has no use for it; it "
                              f"belongs to {users}")
    if command.paths is not None:
        least, most, what = command.paths
        if not least <= len(arguments.words) <= most:
            needs = {0: "takes no PATH", 1: f"needs one PATH, {what},"}.get(most, f"needs at least one PATH, {what},")
            raise ConfigError(f"command line: {arguments.command}: {needs} and got {len(arguments.words)}")
        if keys := [word for word in arguments.words if "=" in word and not os.path.exists(word)]:
            raise ConfigError(f"command line: {arguments.command}: {keys[0]!r} is no path; "
                              f"{arguments.command} takes no keys")


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


def _methods(arguments: argparse.Namespace) -> None:
    print(load("xrl.common.catalogue:describe_methods")())


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


def _compare(arguments: argparse.Namespace) -> None:
    print(load("xrl.report.compare:compare")(*arguments.words, threshold=arguments.threshold,
                                             out=arguments.out or "comparison.png"))


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


_CARTPOLE = "--method DreamerV2 --env classic_control --env-id CartPole-v1"
_COMMANDS = {
    "train": Command("train, then save the final model", _run, (*_EXPERIMENT, "resume"),
                     "xrl train --method DreamerV2 --env atari --env-id ALE/Pong-v5 running_steps=1e6 seed=3"),
    "test": Command("play the newest saved model of this method and env_id; render=true films it", _run, _EXPERIMENT,
                    f"xrl test {_CARTPOLE} render=true"),
    "benchmark": Command("train while evaluating on a fixed grid; with --seeds N several runs, and statistics", _run,
                         (*_EXPERIMENT, "resume", "seeds", "jobs", "reference", "baselines"),
                         f"xrl benchmark {_CARTPOLE} --seeds 5"),
    "reproduce": Command("train games of a published set and say which of its scores came back", _reproduce,
                         ("games", "seeds", "jobs", "reference", "baselines", "frames"),
                         "xrl reproduce atari-dreamerv2 --games pong,boxing --seeds 3 --reference dreamerv2.json"),
    "report": Command("write report.html of a run: one file to read, keep and send", _report, ("out",),
                      "xrl report models/DreamerV2/CartPole-v1/seed_1_20250101-120000", (1, 1, "a run folder")),
    "dream": Command("open a page to play inside the learned model of a run", _dream, ("port", "host", "open"),
                     "xrl dream models --open", (1, 1, "a run, a folder of runs or a model file")),
    "plot": Command("draw learning curves of runs, folders of runs or files of scores", _plot,
                    ("reference", "out", "panels"), "xrl plot models/DreamerV2/CartPole-v1 --out curves.png",
                    (1, 10_000, "a run, a folder of runs or a file of scores")),
    "compare": Command("lay methods on one picture, by frames and by time, with one table", _compare,
                       ("threshold", "out"), "xrl compare models/PPO models/DreamerV3 --threshold CartPole-v1=475",
                       (1, 10_000, "a run, a folder of runs or a file of scores")),
    "profile": Command("time every part of a short run, print where it goes and one sentence of advice; keeps nothing",
                       _profile, (*_EXPERIMENT, "json"), f"xrl profile {_CARTPOLE}"),
    "doctor": Command("is this machine ready for a planned run? Names what to mend, and how", _doctor, _EXPERIMENT,
                      "xrl doctor"),
    "checkpoints": Command("list the checkpoints of a run (or of all runs in a folder): step, time, size, whole or "
                           "damaged", _checkpoints, (), "xrl checkpoints models", (1, 1, "a run or a folder of runs")),
    "replay-crash": Command("run the update again that stopped a run because its numbers were not finite, and show "
                            "where", _replay_crash, (), "xrl replay-crash RUN/crash_4017",
                            (1, 1, "the crash folder that the error named")),
    "methods": Command("list the methods: the observations and actions that each takes, and the environments it has "
                       "files for", _methods, (), "xrl methods", (0, 0, "none")),
    "config": Command("print every key of the resolved config: value, where it came from, unit and meaning", _config,
                      _EXPERIMENT, f"xrl config {_CARTPOLE}"),
}


if __name__ == "__main__":
    sys.exit(main())
