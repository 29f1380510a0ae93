"""Where the time of a run goes: a slice of the real training loop, part by part, beside what the machine could do."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import Any

import torch

from xrl.agents.base import Agent
from xrl.agents.timing import LOOP, UPDATE, launches, loop_parts
from xrl.common.config import as_config
from xrl.common.config_keys import flatten
from xrl.common.errors import ConfigError
from xrl.common.stopwatch import REST, Lap, Spent, Stopwatch, replaced, watching
from xrl.configs.schemas.base import RunConfig
from xrl.environment.registry import Family, find_entry
from xrl.report.timing import less_often

UPDATE_REST = "rest of the update"
RANDOM_STEPS = 200     # per environment, before the first update
BUFFER_SIZE = 50_000
LEAST, MOST, SECONDS = 3, 20, 10.0  # updates in the slice: at least, and at most, and no further one after so long
WARM = {"cuda": 5}     # updates before the slice; there the fourth is captured
PATIENCE = 20_000      # steps of the loop without an update
PEAK_SIZE, PEAK_SECONDS = {"cpu": 1024}, 0.3  # elsewhere 8192
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Part:
    """One line of the table. ``inside``: UPDATE for a part of the update, else empty.

    Per call, or for a part of the update per update: ``ms``, the median (of the rests the mean), ``operations`` and
    ``gflop``. ``peak``: share of the measured peak; ``share``: of the time of an agent step; ``per_step``: calls per
    agent step.
    """

    name: str
    inside: str
    ms: float
    operations: float
    gflop: float
    peak: float
    share: float
    per_step: float


@dataclass(frozen=True)
class Profile:
    """What was measured, and on what. ``peak_gflops``: of a matrix product in the run's precision; ``bf16_speedup``:
    of one in bf16 over float32; ``ms``: one agent step; ``launches``: kernels and graphs started per update, None
    without a GPU; ``native``: whether the environment has a vector of its own; ``less_often``: how this method would
    update less."""

    method: str
    env_id: str
    device: str
    precision: str
    compile: str
    threads: int
    cores: int
    parallels: int
    vectorize: str
    native: bool
    less_often: str
    peak_gflops: float
    bf16_speedup: float
    ms: float
    launches: float | None
    parts: tuple[Part, ...]

    @property
    def loop(self) -> list[Part]:
        """The parts that make up an agent step."""
        return [part for part in self.parts if not part.inside]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [self._title(), ""]
        lines.append(f"{'part':26}{'ms':>10}{'operations':>12}{'GFLOP':>10}{'of peak':>9}{'of the time':>13}")
        lines += [_line(part) for part in self.parts]
        updates = sum(part.per_step for part in self.loop if part.name == UPDATE)
        lines += ["", f"An agent step takes {self.ms:.3g} ms ({1000 / self.ms:,.0f} per second) with "
                      f"{updates:.3g} updates. ms, operations and GFLOP are those of one call."]
        if self.compile == "on":
            lines.append("The operations are those before compilation.")
        if self.launches is not None:
            lines.append(f"For an update the host starts {self.launches:,.0f} kernels or graphs. Each part waited for "
                         "the device, which the real loop does not; cuda_graph=off shows the parts of an update.")
        return "\n".join(lines)

    def _title(self) -> str:
        threads = f", {self.threads} of {self.cores} threads" if self.device == "cpu" else ""
        environments = "1 environment" if self.parallels == 1 else f"{self.parallels} environments"
        return (f"{self.method} in {self.env_id}: {environments} ({self.vectorize}), {self.precision} on {self.device}"
                f"{threads}; a matrix product reaches {self.peak_gflops:,.0f} GFLOP/s")


def _line(part: Part) -> str:
    name = f"  {part.name}" if part.inside else part.name
    counts = f"{part.operations:12,.0f}" if part.operations else f"{'-':>12}"
    if part.gflop:
        counts += f"{part.gflop:10.3f}" if part.gflop >= 0.001 else f"{'<0.001':>10}"
        counts += f"{part.peak:9.1%}"
    else:
        counts += f"{'-':>10}{'-':>9}"
    return f"{name:26}{part.ms:10.3f}{counts}{part.share:13.1%}"


def small_run(config: RunConfig, folder: str) -> RunConfig:
    """``config`` for a short run that keeps nothing outside ``folder``: a short random phase, a replay of moderate
    size, one thing after another. What decides the cost of a step stays."""
    keys = flatten(config)
    changes: dict[str, Any] = {
        "model_dir": folder, "log_dir": None, "logger": "none", "eval_interval": 0,
        "start_training": min(config.start_training, RANDOM_STEPS * config.parallels),
        "buffer_size": min(config.buffer_size, BUFFER_SIZE * config.parallels)}
    for key, most in {"pretrain": 1, "batches_ahead": 0, "policy_lag": 0}.items():  # keys of some methods
        if key in keys:
            changes[key] = min(keys[key], most)
    return as_config({**keys, **changes})


def measure(agent: Agent[Any], clock: Callable[[], float] = time.perf_counter) -> Profile:
    """Run ``agent`` until it is warm, counting the operations of an update, then time a slice of its loop.

    Raises:
        ConfigError: the agent makes no updates.
    """
    watch = Stopwatch(agent.device, clock)
    agent.restart_episodes()
    _until_update(agent, watch)
    inner = agent.learner.profile_parts
    with watching(watch, agent, loop_parts(agent)):
        with watching(watch, agent.learner, inner):
            counted = _counted(agent, watch)
        while agent.updates < WARM.get(agent.device.type, 0):
            _until_update(agent, watch)
        with watching(watch, agent.learner, inner):
            laps, steps = _timed(agent, watch)
    launches = _launches(agent, watch) if agent.device.type == "cuda" else None
    return _profile(agent, _rows(laps, counted, list(inner), steps), launches)


def _counted(agent: Agent[Any], watch: Stopwatch) -> Sequence[Lap]:
    watch.start()
    watch.counting = True
    _until_update(agent, watch)
    watch.counting = False
    return watch.laps


def _timed(agent: Agent[Any], watch: Stopwatch) -> tuple[Sequence[Lap], int]:
    """Laps from right after an update to right after another, and the agent steps in them."""
    watch.start()
    begun, first_step, first_update = watch.clock(), agent.agent_steps, agent.updates
    while (done := agent.updates - first_update) < MOST and (done < LEAST or watch.clock() - begun < SECONDS):
        _until_update(agent, watch)
    return watch.laps, agent.agent_steps - first_step


def _until_update(agent: Agent[Any], watch: Stopwatch) -> None:
    """Steps of the loop, a lap each, up to and including the next one that updates."""
    before = agent.updates
    for _ in range(PATIENCE):
        agent.step()
        watch.lap()
        if agent.updates > before:
            return
    raise ConfigError(f"profile: no update in {PATIENCE:,} steps of {agent.envs.num_envs} environments; see what was "
                      "said above, or have it update more often")


def _launches(agent: Agent[Any], watch: Stopwatch) -> float:
    """Kernels and graphs that the host starts on a GPU in one update."""
    counts: list[int] = []
    update = agent.learner.update

    def traced(batch: Any) -> dict[str, torch.Tensor]:
        metrics, count = launches(functools.partial(update, batch), agent.device)
        counts.append(count)
        return metrics

    with replaced(agent.learner, "update", traced):
        _until_update(agent, watch)
    return median(counts)


def _rows(laps: Sequence[Lap], counted: Sequence[Lap], inner: Sequence[str], steps: int) -> list[dict[str, Any]]:
    """Name, inside, ms, per_step, operations and gflop of every part that was called, in the order of the loop."""
    def row(name: str, owner: str, inside: str = "") -> dict[str, Any]:
        def calls(lap: Lap) -> int:
            return 1 if owner == REST else lap.get(owner, Spent()).calls

        def per_call(laps: Sequence[Lap], what: str) -> list[float]:
            return [getattr(lap.get(name, Spent()), what) / calls(lap) for lap in laps if calls(lap)] or [0.0]

        average = mean if name == owner and owner in (UPDATE, REST) else median  # the rests: much is only now and then
        return {"name": name, "inside": inside, "ms": 1000 * average(per_call(laps, "seconds")),
                "per_step": sum(map(calls, laps)) / steps, "operations": max(per_call(counted, "operations")),
                "gflop": max(per_call(counted, "flop")) / 1e9}

    called = {name for lap in laps for name in lap}
    rows = [row(name, name) for name in LOOP if name in called and name != UPDATE]
    parts = [*(row(name, UPDATE, UPDATE) for name in inner), row(UPDATE, UPDATE, UPDATE) | {"name": UPDATE_REST}]
    whole = {key: sum(part[key] for part in parts) for key in ("ms", "operations", "gflop")}
    if not called.intersection(inner):  # a CUDA graph of one piece
        parts = []
    return [*rows, row(UPDATE, UPDATE) | whole, *parts, row(REST, REST)]


def _profile(agent: Agent[Any], rows: Sequence[dict[str, Any]], launches: float | None) -> Profile:
    config, device = agent.config, agent.device
    entry = find_entry(config.env_name)
    peaks = {precision: matmul_peak(dtype, device) for precision, dtype in DTYPES.items()}
    peak = peaks[config.precision]
    ms = sum(row["ms"] * row["per_step"] for row in rows if not row["inside"])
    parts = tuple(Part(**row, peak=1000 * row["gflop"] / row["ms"] / peak if row["ms"] else 0.0,
                       share=row["ms"] * row["per_step"] / ms) for row in rows)
    return Profile(
        method=config.method, env_id=config.env_id, device=device.type, precision=config.precision,
        compile=config.compile, threads=torch.get_num_threads(), cores=os.cpu_count() or 1,
        parallels=agent.envs.num_envs, vectorize=config.vectorize,
        native=isinstance(entry, Family) and entry.make_native is not None,
        less_often=less_often(flatten(config)), peak_gflops=peak,
        bf16_speedup=peaks["bf16"] / peaks["fp32"], ms=ms, launches=launches, parts=parts)


def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """GFLOP/s of the fastest of several products of square matrices."""
    size = PEAK_SIZE.get(device.type, 8192)
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    watch = Stopwatch(device)
    times: list[float] = []
    while len(times) < 2 or sum(times) < PEAK_SECONDS:
        watch.start()
        with watch.part("product"):
            left @ right
        watch.lap()
        times.append(watch.laps[0]["product"].seconds)
    return 2 * size**3 / min(times) / 1e9
