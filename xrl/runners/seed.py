"""One seed of a benchmark: train it, play its models, put the result on file.

``python -m xrl.runners.seed CONFIG FOLDER [--import MODULE ...]`` is what `xrl.runners.benchmark` starts. It holds the
other end of this process's standard input: when that closes, because the benchmark was stopped or killed, the training
stops as after SIGTERM, with a checkpoint.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from xrl.common.callback import Callback
from xrl.common.checkpoint import checkpoint_paths
from xrl.common.config import ResolvedConfig, load_config
from xrl.common.errors import ConfigError, XrlError
from xrl.common.files import read_metadata, write_atomic
from xrl.common.provenance import provenance
from xrl.common.run_folder import BEST_MODEL, FINAL_MODEL, locked
from xrl.configs.schemas.base import RunConfig
from xrl.environment import make_envs
from xrl.environment.registry import Family, find_entry
from xrl.runners.resume import run_folders

RESULT, CLOCK, LOG = "result.json", "clock.json", "log.txt"
SEED_CONFIG = "seed.yaml"  # not config.yaml, which is what makes a folder a run
LOCK_TRIES = 15  # of some seconds each: the seed of a benchmark that was just killed may still be saving


def seed_folder(folder: Path, seed: int) -> Path:
    """The folder of a seed in that of its benchmark: its model_dir, and RESULT, LOG and SEED_CONFIG."""
    return folder / f"seed_{seed}"


def main(argv: Sequence[str] | None = None) -> int:
    """Train the seed that CONFIG describes in FOLDER; returns the exit code. ``--check``: only make its environment,
    and print which class or function that was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--import", dest="modules", action="append", default=[], metavar="MODULE")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args(argv)
    try:
        if not arguments.check:
            stop_with_parent()
        for module in arguments.modules:
            importlib.import_module(module)
        resolved = load_config(config_path=arguments.config)
        if arguments.check:
            make_envs(resolved.config, parallels=1).close()
            print(entry_name(resolved.config))
        else:
            run_seed(resolved, arguments.folder)
    except XrlError as error:
        print(f"xrl: error: {error}", file=sys.stderr)
        return 2
    return 0


def stop_with_parent() -> None:
    """SIGTERM for this process when its standard input ends."""
    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="wait for the parent", daemon=True).start()


def run_seed(resolved: ResolvedConfig, folder: Path) -> None:
    """Train in ``folder``, going on with an unfinished run there; play ``test_episode`` episodes with the best and the
    last model on environments that neither training nor evaluation has seen; write RESULT.

    Raises whatever training raises, and ConfigError while another process trains there.
    """
    from xrl.runners.runner import CURVE, Runner

    with ExitStack() as stack:
        _lock(folder, stack)
        # A run without a checkpoint has nothing to go on from; it stays where it is, and another one begins.
        unfinished = next((run for run in run_folders(folder) if checkpoint_paths(run)), None)
        clock = Clock(folder / CLOCK, goes_on=unfinished is not None)
        made = provenance()
        run = Runner(resolved, callbacks=[clock]).benchmark(resume=unfinished or False)
        result = {"seed": resolved.config.seed, "run": run.relative_to(folder).as_posix(), "wall_s": clock.total(),
                  "frames": json.loads((run / CURVE).read_text())[0]["xs"][-1], **made,
                  **_play(resolved.config, run)}
        write_atomic(folder / RESULT, (json.dumps(result, indent=1) + "\n").encode())


def _lock(folder: Path, stack: ExitStack) -> None:
    for _ in range(LOCK_TRIES - 1):
        with suppress(ConfigError):
            stack.enter_context(locked(folder))
            return
    stack.enter_context(locked(folder))


def _play(config: RunConfig, run: Path) -> dict[str, Any]:
    """Test scores of the best and the last model, and what they were computed on."""
    import torch

    from xrl.common.seeding import TEST_SEED
    from xrl.runners.runner import make_agent

    found: dict[str, Any] = {"threads": torch.get_num_threads()}
    with make_envs(config, parallels=1) as envs:
        agent = make_agent(config, envs, ())
        found["device"] = "cpu" if agent.device.type == "cpu" else torch.cuda.get_device_name(agent.device)
        for name, file in (("best", BEST_MODEL), ("last", FINAL_MODEL)):
            agent.load_model(run / file)
            evaluation = agent.evaluate(config.test_episode, TEST_SEED)
            found[name] = {"test_mean": evaluation.mean, "test_scores": list(evaluation.scores),
                           "frames": read_metadata(run / file)["counters"]["frames"]}
    return found


class Clock(Callback):
    """Keeps on file how long a run has trained, evaluations included, over all its resumptions. Of a run that is
    killed, the time since its last evaluation is not counted."""

    def __init__(self, path: Path, goes_on: bool) -> None:
        self.path = path
        self.before = float(json.loads(path.read_text())["wall_s"]) if goes_on and path.exists() else 0.0
        self.start: float | None = None

    def total(self) -> float:
        """Seconds."""
        return round(self.before + (0.0 if self.start is None else time.perf_counter() - self.start), 1)

    def on_train_begin(self, agent: Any, target_steps: int) -> None:
        self.start = time.perf_counter()

    def on_evaluation(self, agent: Any, evaluation: Any) -> None:
        self.write()

    def on_train_end(self, agent: Any) -> None:
        self.write()

    def write(self) -> None:
        write_atomic(self.path, json.dumps({"wall_s": self.total()}).encode(), durable=False)


def entry_name(config: RunConfig) -> str | None:
    """``module:name`` of the class or function that makes the environments; None for one that no module holds under a
    name of its own, such as a lambda."""
    entry = find_entry(config.env_name)
    maker = entry.make if isinstance(entry, Family) else entry
    named = inspect.isclass(maker) or inspect.isfunction(maker)
    return f"{maker.__module__}:{maker.__qualname__}" if named and "<" not in maker.__qualname__ else None


if __name__ == "__main__":
    sys.exit(main())
