"""The command line: ``xrl COMMAND --method M --env E --env-id ID key=value ...``; `xrl --help` lists the commands."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import xrl
from xrl.common.config import describe, load_config
from xrl.common.errors import ConfigError, XrlError
from xrl.common.registry import load

_COMMANDS = {
    "train": "train, then save the final model",
    "test": "play the newest saved model of this method and env_id",
    "benchmark": "train while evaluating on a fixed grid; keep the best model and write the curve",
    "profile": "time every part of a short run, print where it goes and one sentence of advice; keeps nothing",
    "checkpoints": "list the checkpoints of a run (or of all runs in a folder): step, time, size, whole or damaged",
    "replay-crash": "run the update again that stopped a run because its numbers were not finite, and show where",
    "config": "print every key of the resolved config: value, where it came from, unit and meaning",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for a mistake the user can mend, 130 for Ctrl-C; 1 where a crash
    does not come again."""
    arguments = _parser().parse_intermixed_args(argv)
    try:
        _import_user_module(arguments.module)
        if arguments.command == "replay-crash":
            return _replay_crash(arguments)
        _run(arguments)
    except XrlError as error:
        print(f"xrl: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("xrl: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:12} {text}" for name, text in _COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="xrl", description=f"commands:\n{commands}", formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: xrl train --method DreamerV2 --env atari --env-id ALE/Pong-v5 running_steps=1e6 seed=3",
        allow_abbrev=False)
    parser.add_argument("command", choices=list(_COMMANDS))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config keys, dotted for sections")
    parser.add_argument("--method", help="name of the method, e.g. DreamerV2")
    parser.add_argument("--env", help="environment family, e.g. classic_control")
    parser.add_argument("--env-id", help="environment in the family, e.g. CartPole-v1")
    parser.add_argument("--config", metavar="PATH", help="YAML file over the shipped defaults")
    parser.add_argument("--import", dest="module", metavar="MODULE", help="import this first: it registers your own")
    parser.add_argument("--resume", nargs="?", const="", metavar="PATH",
                        help="train, benchmark: go on with the run at PATH, or with the newest one of model_dir")
    parser.add_argument("--json", metavar="PATH", help="profile: write the table to this file too")
    parser.add_argument("--version", action="version", version=f"xrl {xrl.__version__}")
    return parser


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


def _run(arguments: argparse.Namespace) -> None:
    if arguments.json is not None and arguments.command != "profile":
        raise ConfigError(f"command line: --json: {arguments.command} writes no table; use it with profile")
    if arguments.command == "checkpoints":
        print(load("xrl.runners.resume:describe_checkpoints")(_only_path(arguments)))
        return
    if arguments.resume is not None:
        _resume(arguments)
        return
    resolved = load_config(arguments.method, arguments.env, arguments.env_id, arguments.config, arguments.overrides)
    if arguments.command == "config":
        print(describe(resolved.config, resolved.origins))
        return
    runner = load("xrl.runners.runner:make_runner")(resolved, is_test=arguments.command == "test")
    if arguments.command == "profile":
        runner.profile(arguments.json)
    else:
        runner.run(mode=arguments.command)


def _only_path(arguments: argparse.Namespace) -> str:
    words = arguments.overrides
    if len(words) != 1:
        what = {"checkpoints": "a run or a folder of runs", "replay-crash": "the crash folder that the error named"}
        raise ConfigError(f"command line: {arguments.command}: needs one PATH, {what[arguments.command]}, and got "
                          f"{len(words)}")
    return str(words[0])


def _replay_crash(arguments: argparse.Namespace) -> int:
    report = load("xrl.agents.crash:replay_crash")(_only_path(arguments))
    print(report)
    return 0 if report.reproduced else 1


def _resume(arguments: argparse.Namespace) -> None:
    """The run itself knows its configuration; what is said here is compared with it."""
    if arguments.command not in ("train", "benchmark"):
        raise ConfigError(f"command line: --resume: {arguments.command} trains nothing; use it with train or benchmark")
    if arguments.config is not None:
        raise ConfigError("command line: --config: a run that is resumed has a configuration of its own; give single "
                          "keys as key=value")
    place, overrides = arguments.resume, list(arguments.overrides)
    if "=" in place and not os.path.exists(place):  # `--resume running_steps=1e6` names no place
        place, overrides = "", [place, *overrides]
    load("xrl.runners.runner:resume_run")(
        place or None, arguments.command, method=arguments.method, env=arguments.env, env_id=arguments.env_id,
        overrides=overrides)


if __name__ == "__main__":
    sys.exit(main())
