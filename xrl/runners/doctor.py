"""Is this machine ready for a run, and what is to be mended? Every question by itself: none keeps another from being
asked, and PyTorch loads only where it is what is asked about."""

from __future__ import annotations

import io
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from xrl.common.callback import Callback
from xrl.common.config import as_config, load_config
from xrl.common.config_files import parse_assignments
from xrl.common.config_keys import canonical_pairs, flatten
from xrl.common.registry import load
from xrl.configs.schemas.base import RunConfig
from xrl.environment import check_env, make_envs
from xrl.environment.check import Finding, failed
from xrl.memory import SequenceReplay, available_memory, check_disk, check_fits
from xrl.runners import machine

GIB = 2**30
PATIENCE, SECONDS = 10_000, 120.0  # steps of every environment until the first update, and how long they may take
NAMES = 16         # columns of the longest name
MARKS = {"ok": "ok", "note": "note", "warning": "WARNING", "failed": "FAILED"}
DEFAULT_METHOD = "DreamerV2"
DEFAULT_ENV = ("classic_control", "CartPole-v1")


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was found, in the order of asking."""

    findings: tuple[Finding, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Nothing failed; notes and warnings are no failures."""
        return not any(finding.status == "failed" for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """0: nothing failed; 1: something did."""
        return 0 if self.ok else 1

    @property
    def summary(self) -> str:
        counts = {status: sum(finding.status == status for finding in self.findings) for status in MARKS}
        told = ", ".join(f"{count} {status}{'s' if status in ('note', 'warning') and count != 1 else ''}"
                         for status, count in counts.items() if count)
        return f"{told} in {self.seconds:.1f} s: {'this machine is ready' if self.ok else 'not ready'}"

    def __str__(self) -> str:
        return "\n".join([*map(line, self.findings), "", self.summary])


def line(finding: Finding) -> str:
    """One line in ASCII and, where something is to be done, an indented second one."""
    def plain(text: str) -> str:
        return " ".join(text.split()).encode("ascii", "backslashreplace").decode()

    lines = [f"{MARKS[finding.status]:8} {finding.name:{NAMES}} {plain(finding.found)}"]
    if finding.fix:
        lines.append(f"{'':8} {'':{NAMES}} fix: {plain(finding.fix)}")
    return "\n".join(lines)


def run_doctor(method: str | None = None, env: str | None = None, env_id: str | None = None,
               config_path: str | None = None, overrides: Sequence[str] = ()) -> int:
    """Print the diagnosis of a planned run, by default of DEFAULT_METHOD on CartPole; returns the exit code.

    Raises ConfigError for a configuration that is none.
    """
    said = canonical_pairs("command line", parse_assignments(overrides)).keys()
    if config_path is None:
        if method is None and "method" not in said:
            method = DEFAULT_METHOD
        if env is None and env_id is None and not said & {"env_name", "env_id"}:
            env, env_id = DEFAULT_ENV
    config = load_config(method, env, env_id, config_path, overrides).config
    print(f"doctor: {config.method} in {config.env_name}/{config.env_id}\n")
    diagnosis = doctor(config, lambda finding: print(line(finding), flush=True))
    print(f"\n{diagnosis.summary}")
    return diagnosis.exit_code


def doctor(config: RunConfig | None = None, tell: Callable[[Finding], None] = lambda finding: None) -> Diagnosis:
    """Look at everything that the run of ``config`` needs (None: as ``run_doctor``); ``tell`` hears of each finding at
    once. Takes seconds, writes a temporary file in ``model_dir`` and keeps nothing. It settles PyTorch's global
    generators and its determinism, as a run does."""
    if config is None:
        config = load_config(DEFAULT_METHOD, *DEFAULT_ENV).config
    begun = time.perf_counter()
    findings = []
    for name, look in _questions(config):
        for finding in _answers(name, look):
            findings.append(finding)
            tell(finding)
    return Diagnosis(tuple(findings), time.perf_counter() - begun)


def _questions(config: RunConfig) -> Iterator[tuple[str, Callable[[], Finding | list[Finding]]]]:
    yield "python", machine.python
    yield "pytorch", machine.pytorch
    yield "gpu", machine.gpu
    yield "cores", machine.cores
    makes = _can_be_made(config)
    yield "replay", partial(_replay, config) if makes else partial(_not_asked, "replay")
    yield "write speed", partial(machine.write_speed, Path(config.model_dir))
    yield "roms", partial(_roms, config)
    yield "rendering", machine.rendering
    yield "display", machine.display
    yield "videos", machine.videos
    for name in machine.PACKAGES:
        yield name, partial(machine.package, name, name == config.logger)
    yield "browser", machine.browser
    yield "environment", partial(_environment, config)
    yield "gradient step", partial(_gradient_step, config) if makes else partial(_not_asked, "gradient step")


def _can_be_made(config: RunConfig) -> bool:
    """Why it cannot is for check_env to tell, once."""
    try:
        with make_envs(config, parallels=1) as envs:
            envs.reset()
    except (Exception, SystemExit):
        return False
    return True


def _not_asked(name: str) -> Finding:
    return Finding(name, "note", "not asked: the environment cannot be made or reset, see env environment")


def _answers(name: str, look: Callable[[], Finding | list[Finding]]) -> list[Finding]:
    """A question that raises has an answer, too."""
    try:
        answer = look()
    except (Exception, SystemExit) as error:
        answer = failed(name, error)
        if not answer.fix and name in machine.MENDS:
            answer = replace(answer, fix=machine.MENDS[name])
    return answer if isinstance(answer, list) else [answer]


def _replay(config: RunConfig) -> Finding:
    """Room for a full replay, where the run will keep it; checkpoints keep its rows on disk in any case."""
    with make_envs(config, parallels=1) as envs:
        specs = envs.obs_spec, envs.action_spec
    needed = SequenceReplay.nbytes_needed(*specs, config.buffer_size, config.parallels)
    on_disk, folder, available = flatten(config).get("replay.storage") == "disk", Path(config.model_dir), (
        available_memory())
    if on_disk or config.checkpoint_every != 0:
        check_disk(needed, config.buffer_size, folder)
    if not on_disk:
        check_fits(needed, config.buffer_size, available)
    free = shutil.disk_usage(machine.existing(folder)).free
    memory = "memory is unknown" if available is None else f"{_size(available)} of memory available"
    found = (f"{config.buffer_size:,} agent steps take up to {_size(needed)} {'on disk' if on_disk else 'of memory'}; "
             f"{_size(free)} of disk free, {memory}")
    if on_disk and available is not None and needed > available:
        smaller = f"buffer_size={int(config.buffer_size * available / needed)}"
        return Finding("replay", "note", f"{found}, less than that; if sampling is slow, store fewer steps", smaller)
    return Finding("replay", "ok", found)


def _size(count: float) -> str:
    return f"{count / GIB:,.1f} GiB" if count >= GIB / 10 else f"{count / GIB * 1024:,.1f} MiB"


def _roms(config: RunConfig) -> Finding:
    if config.env_name != "atari":
        return machine.roms()
    import gymnasium

    load("xrl.environment.atari:ATARI")  # registers the games
    spec = gymnasium.registry.get(config.env_id)  # that there is none, env environment tells
    return machine.roms(spec.kwargs["game"]) if spec else machine.roms()


def _environment(config: RunConfig) -> list[Finding]:
    findings = check_env(config)
    return [Finding(f"env {each.name}"[:NAMES], each.status, each.found, each.fix) for each in findings]


class _Losses(Callback):
    """What the first update reports."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def on_update(self, agent: Any, metrics: dict[str, Any]) -> None:
        self.metrics = {key: float(value) for key, value in metrics.items()}


def _gradient_step(config: RunConfig) -> Finding:
    """One update of tiny networks with rows of the environment, on the device and in the precision of the run."""
    losses, begun = _Losses(), time.perf_counter()
    with TemporaryDirectory(prefix="xrl-doctor-") as folder, redirect_stderr(io.StringIO()):
        small = load("xrl.runners.profile:small_run")(_tiny(config), folder)
        with make_envs(small) as envs:
            agent = load("xrl.runners.runner:make_agent")(small, envs, [losses])
            try:
                agent.restart_episodes()
                for _ in range(PATIENCE):  # not agent steps: one that fails is none
                    agent.step()
                    failures = envs.failures
                    if (losses.metrics or failures > config.max_env_failures
                            or time.perf_counter() - begun > SECONDS):
                        break
            finally:
                agent.finish()
    if not losses.metrics:
        seconds = time.perf_counter() - begun
        return Finding("gradient step", "failed", f"no update in {agent.agent_steps:,} agent steps, {seconds:.0f} s; "
                       f"failures of environments: {failures}", "see the lines env ... above")
    where = f"{config.method}, tiny networks, {config.precision} on {agent.device}"
    if bad := [key for key, value in losses.metrics.items() if not math.isfinite(value)]:
        return Finding("gradient step", "failed", f"{where}: {', '.join(bad)} not finite", "device=cpu precision=fp32")
    seconds = time.perf_counter() - begun
    return Finding("gradient step", "ok", f"{where}: {len(losses.metrics)} finite numbers after {agent.agent_steps} "
                                          f"agent steps, in {seconds:.1f} s")


def _tiny(config: RunConfig) -> RunConfig:
    """The debug preset of this method, in this environment, on this device."""
    keys = flatten(config)
    same = ("method", "device", "precision", "seed")
    return as_config({"preset": "debug"} | {key: value for key, value in keys.items()
                                            if key in same or key.startswith(("environment.", "env_"))})
