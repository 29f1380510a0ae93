"""Change configurations and checkpoints at random: each must load, or be refused with a message, and nothing else.

    python benchmarks/fuzz.py [--configs 10000] [--checkpoints 2000] [--seed 0]

What is tried is in mutants.py and forgeries.py. A config must load, or raise ConfigError with one line that names the
file, within two seconds of processor time and 500 MiB. A run whose checkpoints were changed must go on (from the newest
checkpoint or the one before) and make steps and updates, or raise XrlError; damage that left the checksums must never
change the state that is loaded. Nothing may run code, touch what lies outside the run's folder, crash the process or
hang it: each mutant is tried in a child process that is watched. Writes benchmarks/results/fuzz.json and prints a
Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import forgeries
import mutants
import numpy as np
import torch
from kill import arrays_of, digest
from recording import RESULTS, provenance

import xrl.configs
from xrl.common.callback import Callback
from xrl.common.config import as_dict, load_config, save_config
from xrl.common.config_keys import flatten
from xrl.common.errors import ConfigError, XrlError
from xrl.common.state import pack
from xrl.runners.runner import resume_run

SECONDS = 2.0   # that a config may take
MEMORY = 500    # MiB that loading a config may take
HUNG = 30.0     # seconds after which a child is killed
BATCH = 50      # mutants per child
RUN = ["--method", "DreamerV2", "--env", "classic_control", "--env-id", "CartPole-v1", "preset=debug", "logger=none",
       "device=cpu", "running_steps=120", "checkpoint_every=60", "buffer_size=100", "eval_interval=50",
       "test_episode=1", "model_dir=models"]
MORE = 15       # agent steps that a resumed run makes: one or two updates
# A config may ask for whatever it likes; here only what fits a fuzzer's patience.
SIZES = ("parallels", "batch_size", "buffer_size", "seq_len", "horizon", "pretrain", "train_steps", "train_every",
         "start_training", "test_episode", "test_parallels", "running_steps", "imagination", "world_model", "actor",
         "critic", "vectorize", "replay", "env_kwargs", "compile", "log_dir", "model_dir", "env_name", "env_id")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=int, default=10_000)
    parser.add_argument("--checkpoints", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS / "fuzz.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        parts = {"configs": fuzz_configs(options.configs, options.seed, place),
                 "checkpoints": fuzz_checkpoints(options.checkpoints, options.seed, place)}
    record = {**provenance(), "seed": options.seed, **{name: summary(results) for name, results in parts.items()}}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))
    if any(record[name]["findings"] for name in parts):
        sys.exit("findings: see above")


# Configurations ------------------------------------------------------------------------------------------------------


def fuzz_configs(count: int, seed: int, place: Path) -> list[dict[str, Any]]:
    canary, folder = place / "canary", place / "configs"
    folder.mkdir()
    tried = mutants.collect(mutants.configs(base_configs(), canary), count, seed)

    def work(mutant: tuple[str, bytes]) -> dict[str, Any]:
        path = folder / "config.yaml"
        path.write_bytes(mutant[1])
        start = time.process_time()  # the machine may have other work
        result = {"kind": mutant[0].split("+")[-1].strip(), **load_one(path)}
        result["seconds"] = time.process_time() - start
        if canary.exists():
            result.update(outcome="RAN CODE")
        elif result["seconds"] > SECONDS:
            result.update(outcome="SLOW")
        return result

    return in_children(work, tried, MEMORY)


def base_configs() -> list[str]:
    """The shipped files with a header, and a whole one as a run saves it."""
    root = Path(xrl.configs.__path__[0])
    header = "method: DreamerV2\nenv_name: classic_control\nenv_id: CartPole-v1\n"
    bases = [header + path.read_text() for path in sorted(root.rglob("*.yaml"))]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "config.yaml"
        save_config(load_config("DreamerV2", "atari", "ALE/Pong-v5").config, path)
        return [*bases, *[path.read_text()] * 3]


def load_one(path: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings(action="ignore"):
            config = load_config(config_path=path).config
    except ConfigError as error:
        return {"outcome": "refused", **complaint(f"{error}", path)}
    saved = path.with_name("saved.yaml")
    try:
        save_config(config, saved)
    except ConfigError as error:
        return {"outcome": "loaded, but cannot be saved", **complaint(f"{error}", saved)}
    with warnings.catch_warnings(action="ignore"):
        again = load_config(config_path=saved).config
    return {"outcome": "loaded" if repr(as_dict(again)) == repr(as_dict(config)) else "LOADED DIFFERENT"}


def complaint(message: str, path: Path | None = None) -> dict[str, str]:
    """An ``outcome`` of its own where a message is not what a user can use."""
    if "\n" in message or not message.isprintable():
        return {"outcome": "MESSAGE NOT OF ONE LINE", "message": message[:300]}
    if len(message) > 1500:
        return {"outcome": "MESSAGE TOO LONG", "message": message[:300]}
    if path is not None and str(path) not in message and not message.startswith(("config: method: missing",
                                                                                 "config: env")):
        return {"outcome": "MESSAGE WITHOUT THE FILE", "message": message[:300]}
    return {"message": message[:200]}


# Checkpoints ---------------------------------------------------------------------------------------------------------


def fuzz_checkpoints(count: int, seed: int, place: Path) -> list[dict[str, Any]]:
    if count == 0:
        return []
    base = train(place / "base")
    bases = [(base / "config.yaml").read_text()]
    expected: dict[str, str] = {}
    recipes = [forgeries.Recipe("nothing", False, 0, 0), forgeries.Recipe("a checkpoint missing", False, 0, 0)]
    for recipe, outcome in zip(recipes, ("newest", "older"), strict=True):
        result = in_children(lambda each: try_run(base, place, each, {}), [recipe], 4096)[0]
        if not result.get("digest"):
            sys.exit(f"a run that nobody changed does not go on: {result}")
        expected[result["digest"]] = outcome
    config = load_config(config_path=base / "config.yaml").config
    tried = [recipe for recipe in mutants.collect(forgeries.recipes(bases, place / "canary"), count * 5 // 4, seed)
             if recipe.how != "config" or modest(recipe.config, config, place)][:count]
    return in_children(lambda recipe: try_run(base, place, recipe, expected), tried, 4096)


def modest(content: bytes, config: Any, place: Path) -> bool:
    """Whether a changed config is refused or asks for nothing large."""
    path = place / "modest.yaml"
    path.write_bytes(content)
    try:
        with warnings.catch_warnings(action="ignore"):
            now, before = flatten(load_config(config_path=path).config), flatten(config)
    except ConfigError:
        return True
    return all(repr(now.get(key)) == repr(before[key]) for key in before if key.split(".")[0] in SIZES)


def train(place: Path) -> Path:
    """A small run with two checkpoints and several files of rows."""
    place.mkdir()
    done = subprocess.run([sys.executable, "-m", "xrl", "train", *RUN], cwd=place, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode != 0:
        sys.exit(done.stderr)
    return next(place.glob("models/*/*/*/"))


class Probe(Callback):
    """What the run was resumed with, before it goes on, and what it did then."""

    found = ""
    steps = updates = 0

    def on_train_begin(self, agent: Any, target_steps: int) -> None:
        arrays, tree = pack(agent.run_state())
        tree.pop("callbacks")
        self.found = digest([*arrays_of(arrays), json.dumps(tree, sort_keys=True).encode()])
        self.before = agent.agent_steps, agent.updates

    def on_train_end(self, agent: Any) -> None:
        self.steps, self.updates = agent.agent_steps - self.before[0], agent.updates - self.before[1]


def try_run(base: Path, place: Path, recipe: forgeries.Recipe, expected: dict[str, str]) -> dict[str, Any]:
    """Resume a copy of the run after ``recipe``."""
    from xrl.runners import runner

    work = place / f"work_{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    run, outside = work / "models" / base.name, work / "outside"
    shutil.copytree(base, run)
    outside.mkdir()
    (outside / "precious").write_text("precious")
    if recipe.how != "nothing":
        forgeries.apply(recipe, run, outside)
    before, probe = contents(outside), Probe()
    usual = runner.Checkpointer
    runner.Checkpointer = lambda *arguments: _with_probe(usual(*arguments), probe)  # type: ignore[misc]
    try:
        resume_run(str(run), "train", method=None, env=None, env_id=None, overrides=[f"running_steps={120 + MORE}"])
        result: dict[str, Any] = {"outcome": went_on(recipe, probe, expected), "digest": probe.found}
    except XrlError as error:
        result = {"outcome": "refused", **complaint(f"{error}")}
    finally:
        runner.Checkpointer = usual  # type: ignore[misc]
    if contents(outside) != before:
        result["outcome"] = "WROTE OUTSIDE"
    if (outside / "canary").exists() or (place / "canary").exists():
        result["outcome"] = "RAN CODE"
    shutil.rmtree(work)
    return {"kind": recipe.kind.strip(), **result}


def _with_probe(checkpointer: Any, probe: Probe) -> Any:
    begin, end = checkpointer.on_train_begin, checkpointer.on_train_end
    checkpointer.on_train_begin = lambda *arguments: (probe.on_train_begin(*arguments), begin(*arguments))
    checkpointer.on_train_end = lambda *arguments: (probe.on_train_end(*arguments), end(*arguments))
    return checkpointer


def went_on(recipe: forgeries.Recipe, probe: Probe, expected: dict[str, str]) -> str:
    if recipe.how == "names of rows":
        return "READ OUTSIDE"
    known = expected.get(probe.found)
    if known or not expected:
        return f"went on from the {known} checkpoint"
    if recipe.how in forgeries.DAMAGE or recipe.how == "config":
        return "began again" if probe.steps >= 120 else "WENT ON FROM ANOTHER STATE"
    return "went on with what was forged"


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


# Children ------------------------------------------------------------------------------------------------------------


def in_children(work: Callable[[Any], dict[str, Any]], items: Sequence[Any], memory: int) -> list[dict[str, Any]]:
    """``work`` for every item, in forked processes that may take ``memory`` MiB more than this one."""
    results: list[dict[str, Any]] = []
    while len(results) < len(items):
        results += one_child(work, items[len(results):len(results) + BATCH], memory)
        if sys.stderr.isatty():
            print(f"\r{len(results)} of {len(items)}", end="", file=sys.stderr)
    return [{**result, "item": repr(item)[:2000]} if result["outcome"].isupper() else result
            for result, item in zip(results, items, strict=True)]


def one_child(work: Callable[[Any], dict[str, Any]], items: Sequence[Any], memory: int) -> list[dict[str, Any]]:
    """The results up to the end of the batch, or up to the item that killed the child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        serve(work, items, memory, writing)
    os.close(writing)
    results, ended = [], False
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        data = b""
        while not ended and select.select([pipe], [], [], HUNG)[0]:
            piece = pipe.read(65536)
            data, ended = data + piece, not piece
            *lines, data = data.split(b"\n")
            results += [json.loads(line) for line in lines]
    if not ended:
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if not ended:
        results.append({"kind": "?", "outcome": "HUNG"})
    elif len(results) < len(items):
        results.append({"kind": "?", "outcome": "CRASHED THE PROCESS", "message": f"status {status}"})
    return results


def serve(work: Callable[[Any], dict[str, Any]], items: Sequence[Any], memory: int, pipe: int) -> None:
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + memory * 2**20, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    random.seed(0)
    np.random.seed(0)
    for item in items:
        try:
            result = work(item)
        except BaseException as error:
            result = {"kind": getattr(item, "kind", str(item[0]) if isinstance(item, tuple) else "?"),
                      "outcome": "TRACEBACK", "message": f"{type(error).__name__}: {error}"[:300],
                      "traceback": traceback.format_exc()[-1500:]}
        os.write(pipe, json.dumps(result).encode() + b"\n")
    os._exit(0)


# The record ----------------------------------------------------------------------------------------------------------


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    kinds = sorted({result["kind"] for result in results})
    return {"tried": len(results), "outcomes": dict(Counter(result["outcome"] for result in results)),
            "by_kind": {kind: dict(Counter(result["outcome"] for result in results if result["kind"] == kind))
                        for kind in kinds},
            "longest_seconds": max((result.get("seconds", 0.0) for result in results), default=0.0),
            "findings": [result for result in results if result["outcome"].isupper()]}


def table(record: dict[str, Any]) -> str:
    lines = ["| what | tried | outcome | count |", "|---|---|---|---|"]
    for name in ("configs", "checkpoints"):
        part = record[name]
        lines += [f"| {name} | {part['tried']} | {outcome} | {count} |"
                  for outcome, count in sorted(part["outcomes"].items())]
    for finding in [found for name in ("configs", "checkpoints") for found in record[name]["findings"]][:20]:
        lines.append(f"\n{finding}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
