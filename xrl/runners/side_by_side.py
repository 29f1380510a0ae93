"""Seeds of a benchmark in processes of their own: how many at a time, how they are started, stopped and watched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from xrl.common.config_keys import flatten
from xrl.common.interrupt import deferred_interrupt
from xrl.configs.schemas.base import RunConfig
from xrl.environment import REGISTRY_ENV, RowEnvs
from xrl.memory import SequenceReplay
from xrl.memory.memory_check import GIB, USABLE, available_memory
from xrl.runners.seed import LOG, SEED_CONFIG, entry_name, seed_folder

# A run takes about so many bytes, without a replay in memory. Measured peaks: 3.5 GiB for images, 0.9 GiB for vectors.
RUN_MEMORY = {"image": 4 * GIB, "vector": GIB}
POLL = 0.1  # s

Ended = Callable[[int, str | None, Sequence[int]], None]
"""Told of each seed that ended: which, why it failed (None: it did not), and those that are left."""


@dataclass(frozen=True)
class Plan:
    """``jobs`` seeds at a time with so many ``threads`` each. ``gpus``: what CUDA_VISIBLE_DEVICES becomes in the places
    that they take; empty: it stays."""

    jobs: int
    threads: int
    gpus: tuple[str, ...] = ()


def memory_of_a_run(config: RunConfig, envs: RowEnvs) -> int:
    """Bytes, roughly: program and networks, and the replay where it lies in memory."""
    images = any(len(spec.shape) == 3 for spec in envs.obs_spec.values())
    on_disk = flatten(config).get("replay.storage") == "disk"
    rows = min(config.buffer_size, config.running_steps)
    replay = 0 if on_disk else SequenceReplay.nbytes_needed(envs.obs_spec, envs.action_spec, rows, 1)
    return RUN_MEMORY["image" if images else "vector"] + replay


def plan(config: RunConfig, left: int, jobs: int | None, need: int) -> Plan:
    """Share the machine among ``left`` seeds, each of which takes ``need`` bytes; ``jobs``: see `run_benchmark`."""
    from xrl.agents.base import select_device

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus: tuple[str, ...] = ()
    most = cores
    if select_device(config.device).type == "cuda":
        gpus = visible_gpus() if config.device in ("auto", "cuda") else ()  # cuda:N is meant for all of them
        most = len(gpus) or 1
    if jobs is None:
        available = available_memory()
        fitting = most if available is None else max(1, int(USABLE * available // need))
        if fitting < min(left, most):
            print(f"{fitting} at a time, not {min(left, most)}: a run takes about {need / GIB:.1f} GiB of memory, and "
                  f"{(available or 0) / GIB:.1f} GiB are free", flush=True)
        jobs = min(most, fitting)
    jobs = min(jobs, left)
    said = os.environ.get("OMP_NUM_THREADS", "")
    return Plan(jobs, int(said) if said.isdecimal() and int(said) else max(1, cores // jobs), gpus)


def visible_gpus() -> tuple[str, ...]:
    """What to call each GPU of this process in CUDA_VISIBLE_DEVICES."""
    import torch

    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return tuple(named or (str(index) for index in range(torch.cuda.device_count())))


def elsewhere(config: RunConfig, modules: Sequence[str], path: Path) -> tuple[list[str], str]:
    """The modules that another process must import to make the environments of the configuration at ``path``, and
    why it cannot make them (empty: it can; this was tried)."""
    entry, modules = REGISTRY_ENV[config.env_name], list(modules)
    shipped = isinstance(entry, str) and entry.startswith("xrl.")
    if shipped and config.env_name != "gymnasium":  # an id of Gymnasium may be registered in this program alone
        return modules, ""
    name = entry_name(config)
    module = (name or "").partition(":")[0]
    if name is None or module == "__main__":
        return modules, (f"REGISTRY_ENV[{config.env_name!r}] is defined where another process cannot find it; to train "
                         f"them side by side, define it in a module and register it there")
    if not shipped and module not in modules:
        modules.append(module)
    tried = subprocess.run(_command([str(path), str(path.parent), "--check", *_imports(modules)]), env=_environment(),
                           stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if tried.returncode == 0 and tried.stdout.split()[-1:] == [name]:
        return modules, ""
    reason = last_line(tried.stderr) if tried.returncode else f"there it is {last_line(tried.stdout)}"
    return modules, (f"another process that imports {', '.join(modules) or 'nothing'} does not make {name}: {reason}; "
                     f"name the module that registers it (--import)")


def train_side_by_side(folder: Path, left: Sequence[int], plan: Plan, modules: Sequence[str], ended: Ended) -> None:
    """Train the seeds ``left``, each by its SEED_CONFIG. A signal is passed on to them, and they are waited for.

    Raises KeyboardInterrupt and SystemExit on signals.
    """
    waiting = list(left)
    with deferred_interrupt() as interrupt, _children() as running:
        while waiting or running:
            while waiting and len(running) < plan.jobs:
                seed, taken = waiting.pop(0), {child.place for child in running.values()}
                running[seed] = Child(folder, seed, min(set(range(plan.jobs)) - taken), plan, modules)
                print(f"seed {seed}: begins; {seed_folder(folder, seed) / LOG}", flush=True)
            time.sleep(POLL)
            for seed in [seed for seed, child in running.items() if child.process.poll() is not None]:
                reason = running.pop(seed).failure()
                ended(seed, reason, [*running, *waiting])
            interrupt.raise_if_pending()


class Child:
    """The process of one seed; ``place``: which of the ``jobs`` it takes."""

    def __init__(self, folder: Path, seed: int, place: int, plan: Plan, modules: Sequence[str]) -> None:
        own = seed_folder(folder, seed)
        self.log, self.place = own / LOG, place
        variables = {"OMP_NUM_THREADS": str(plan.threads)}
        if plan.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = plan.gpus[place % len(plan.gpus)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                _command([str(own / SEED_CONFIG), str(own), *_imports(modules)]), stdin=subprocess.PIPE, stdout=log,
                stderr=subprocess.STDOUT, env=_environment(**variables))

    def stop(self) -> None:
        """Ask it to save and end; see `xrl.runners.seed`."""
        if self.process.stdin is not None:
            self.process.stdin.close()

    def failure(self) -> str | None:
        """Why it failed, once it has ended; None if it did not."""
        self.stop()
        code = self.process.returncode
        if code == 0:
            return None
        how = f"ended by {signal.Signals(-code).name}; " if code < 0 else ""
        return f"{self.log}: {how}{last_line(self.log.read_text(errors='replace'))}"


@contextmanager
def _children() -> Iterator[dict[int, Child]]:
    """Seed -> its process. Those that still run when the block ends are stopped and waited for, and killed if that is
    interrupted."""
    running: dict[int, Child] = {}
    try:
        yield running
    finally:
        try:
            for child in running.values():
                child.stop()
            for child in running.values():
                child.process.wait()
        except KeyboardInterrupt:
            for child in running.values():
                child.process.kill()
                child.process.wait()
            raise


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "(nothing written)"


def _command(words: Iterable[str]) -> list[str]:
    return [sys.executable, "-m", "xrl.runners.seed", *words]


def _imports(modules: Iterable[str]) -> list[str]:
    return [word for module in modules for word in ("--import", module)]


def _environment(**variables: str) -> dict[str, str]:
    """This process's, and modules come from where they come from here, in the same order: the place of a script, what
    code put into sys.path, and the current folder (which `python -m` would put first) only where it is among them."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", **variables}
