"""What differs from the shipped defaults, and the command that says just that."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from xrl.common.config import as_dict, load_config
from xrl.common.config_files import parse_assignments
from xrl.common.config_keys import flatten
from xrl.common.errors import ConfigError
from xrl.configs.schemas.base import RunConfig

BENCHMARK = "benchmark.json"  # what makes a folder that of a benchmark of several seeds
BELOW_MODEL_DIR = 3  # folders: benchmarks/<method>/<env_id>


def defaults(config: RunConfig) -> dict[str, Any]:
    """Dotted key -> what it is where the user names method, environment and preset only."""
    shipped = load_config(config.method, config.env_name, config.env_id, overrides={"preset": config.preset}).config
    return {**flatten(shipped), "preset": RunConfig.model_fields["preset"].default}


def differing(config: RunConfig) -> dict[str, Any]:
    """The keys whose value is not the default, and their values, in the schema's order."""
    usual = defaults(config)
    return {key: value for key, value in flatten(config).items() if value != usual[key]}


def imported(words: Sequence[str]) -> list[str]:
    """``["--import", MODULE]`` for each of these among the words of a command line: what registers environments and
    methods of one's own."""
    modules = [after for word, after in pairwise(words) if word == "--import"]
    modules += [word.partition("=")[2] for word in words if word.startswith("--import=")]
    return [word for module in modules for word in ("--import", module)]


def repeat_command(config: RunConfig, command: str = "train", imports: Sequence[str] = ()) -> str:
    """The line for a shell that starts this run again. ``imports``: see `imported`.

    It resolves to the same configuration.
    """
    words = ["xrl", command, *imports, "--method", config.method, "--env", config.env_name, "--env-id", config.env_id]
    given = _plain(config)
    return shlex.join([*words, *(assignment(key, given[key]) for key in differing(config))])


def benchmark_of(folder: Path) -> Path | None:
    """The folder of the benchmark of several seeds that the run at ``folder`` belongs to."""
    above = folder.absolute().parents[:-BELOW_MODEL_DIR]
    return next((parent for parent in above if (parent / BENCHMARK).is_file()), None)


def benchmark_command(config: RunConfig, whole: Path, imports: Sequence[str] = ()) -> str:
    """The line that goes on with the benchmark at ``whole``, a seed of which has this configuration."""
    own = {"seed", "env_seed", "model_dir"}
    found = (re.fullmatch(r"seed_(\d+)", path.name) for path in whole.iterdir() if path.is_dir())
    seeds = [int(match[1]) for match in found if match] or [config.seed]
    words = ["xrl", "benchmark", *imports, "--method", config.method, "--env", config.env_name, "--env-id",
             config.env_id, "--seeds", str(max(seeds) - min(seeds) + 1)]
    given = _plain(config)
    first = [] if min(seeds) == type(config).model_fields["seed"].default else [assignment("seed", min(seeds))]
    place = assignment("model_dir", str(whole.parents[BELOW_MODEL_DIR - 1]))
    changed = [assignment(key, given[key]) for key in differing(config) if key not in own]
    return shlex.join([*words, *changed, *first, place])


def assignment(key: str, value: Any) -> str:
    """``key=value`` as `parse_assignments` reads it back."""
    if isinstance(value, str):
        plain = f"{key}={value}"
        try:
            if parse_assignments([plain]) == [(key, value)]:
                return plain
        except ConfigError:  # no YAML without quotes
            pass
    return f"{key}={json.dumps(value)}"


def run_commands(folder: Path, config: Mapping[str, Any], imports: Sequence[str] = ()) -> list[tuple[str, str]]:
    """(what it does, line) of what can be done with a run that is there. ``imports``: see `imported`."""
    test = ["xrl", "test", *imports, "--method", str(config.get("method")), "--env", str(config.get("env_name")),
            "--env-id", str(config.get("env_id"))]
    if config.get("model_dir") not in (None, "models"):
        test.append(assignment("model_dir", config["model_dir"]))
    run = str(folder)
    return [("Go on with it, from its newest checkpoint:", shlex.join(["xrl", "train", *imports, "--resume", run])),
            ("Play inside its model:", shlex.join(["xrl", "dream", *imports, run])),
            ("Test the best model of the newest run of this method and environment:", shlex.join(test)),
            ("Write this page again:", shlex.join(["xrl", "report", run]))]


def _plain(config: RunConfig) -> dict[str, Any]:
    """Dotted key -> value as YAML holds it."""
    nested = as_dict(config)

    def find(dotted: str) -> Any:
        value: Any = nested
        for name in dotted.split("."):
            value = value[name]
        return value

    return {key: find(key) for key in flatten(config)}
