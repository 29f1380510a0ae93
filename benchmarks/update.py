"""One full DreamerV2 update: seconds, peak memory, arithmetic, and how close that is to the machine's peak.

    python benchmarks/update.py [--workloads W1 W2 W3 ...] [--precision fp32 bf16] [--compile off on] [--repeats 5]
    python benchmarks/update.py --levers --workloads W2 W3 --precision fp32 [--rounds 5]

World model, actor and critic: forward, backward, optimiser, on random data. W1 to W3 are the workloads of
peers/sheeprl_update.py, the others the shipped configurations. Every case runs in a process of its own, so that the
peak memory is its own. With --levers what each thing that makes the update fast is worth, by doing without it, one at
a time; --rounds goes through them again and again, so that a machine that slows down favours none. Prints Markdown
tables; writes benchmarks/results/update.json, or levers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import levers
import torch
from recording import MATMUL_GFLOP, RESULTS, matmul_peak, peak_memory, provenance, timed

from xrl.common import accelerate
from xrl.common.config import load_config
from xrl.common.row import ActionSpec, ObsSpec
from xrl.common.stopwatch import Operations
from xrl.configs.schemas.dreamer_v2 import DreamerV2Config
from xrl.learners.dreamer_v2 import Batch, DreamerV2Learner
from xrl.policies.dreamer_v2 import DreamerV2Policy

MIN_SECONDS = 2.0  # of timed updates: short ones are repeated more often than asked for
BUSY = 100  # times per second that another process took a core from us, above which the seconds are not to be trusted
PARTS = ("world_model", "actor", "critic")
IMAGE = ObsSpec("image", (64, 64, 1))


@dataclass(frozen=True)
class Workload:
    """A shipped configuration, what is changed in it, and the parameters of each part that must come out (or ())."""

    env: str
    env_id: str
    obs: ObsSpec
    action: ActionSpec
    changes: dict[str, Any] = field(default_factory=dict)
    parameters: tuple[int, ...] = ()


# Of W1 and W2 the counts are the paper's model for 6 actions; W3 is that model, smaller, on vectors.
WORKLOADS = {
    "W1": Workload("atari", "ALE/Pong-v5", IMAGE, ActionSpec("discrete", 6), {"batch_size": 50, "seq_len": 50},
                   (19_968_179, 1_133_606, 1_131_601)),
    "W2": Workload("atari", "ALE/Pong-v5", IMAGE, ActionSpec("discrete", 6), {"batch_size": 16, "seq_len": 50},
                   (19_968_179, 1_133_606, 1_131_601)),
    "W3": Workload("atari", "ALE/Pong-v5", ObsSpec("vector", (4,)), ActionSpec("discrete", 2),
                   {"batch_size": 16, "seq_len": 50, "world_model.rssm.deter": 200, "world_model.rssm.hidden": 200},
                   (4_418_454, 972_002, 971_601)),
    "CartPole-v1": Workload("classic_control", "CartPole-v1", ObsSpec("vector", (4,)), ActionSpec("discrete", 2)),
    "Pendulum-v1": Workload("classic_control", "Pendulum-v1", ObsSpec("vector", (3,)), ActionSpec("continuous", 1)),
    "Catch-v0": Workload("toy", "Catch-v0", IMAGE, ActionSpec("discrete", 3)),
}


@dataclass(frozen=True)
class Case:
    """What one process measures; ``without`` names the lever it does without, or nothing."""

    workload: str
    precision: str
    compile: str
    threads: int
    without: str = ""


# --- the whole comparison --------------------------------------------------------------------------------------------

def main() -> None:
    options = arguments()
    if options.measure is not None:
        print(json.dumps(measure(Case(**options.measure), options.repeats)))
        return
    record = {**provenance(), "threads": options.threads, "cases": []}
    output = options.output or RESULTS / ("levers.json" if options.levers else "update.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    todo = [(number, case) for number in range(options.rounds)
            for case in (lever_cases(options) if options.levers else cases(options))]
    for number, case in todo:
        record["cases"].append({"round": number, **in_own_process(case, options.repeats)})
        print(summary(record["cases"][-1]), file=sys.stderr, flush=True)
        output.write_text(json.dumps(record, indent=1) + "\n")
    print((lever_table if options.levers else table)(record["cases"]))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--compile", nargs="+", choices=("off", "on"), default=["off", "on"], help="not with --levers")
    parser.add_argument("--repeats", type=int, default=5, help="updates timed, at least; more of short ones")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--levers", action="store_true", help="what each lever is worth, eagerly")
    parser.add_argument("--only", nargs="+", choices=levers.LEVERS, help="with --levers: these")
    parser.add_argument("--rounds", type=int, default=1, help="how often everything is measured")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)  # how the script calls itself
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats is {options.repeats}: at least one update has to be timed")
    return options


def cases(options: argparse.Namespace) -> list[Case]:
    return [Case(workload, precision, compiled, options.threads) for workload in options.workloads
            for precision in options.precision for compiled in options.compile]


def lever_cases(options: argparse.Namespace) -> list[Case]:
    """Of each workload and precision everything on, then each lever off, then everything on again: the noise."""
    found = []
    for name in options.workloads:
        workload = WORKLOADS[name]
        pulled = [lever for lever in levers.levers_for(workload.obs.kind == "image", workload.action.kind == "discrete")
                  if options.only is None or lever in options.only]
        for precision in options.precision:
            base = Case(name, precision, "off", options.threads)
            found += [base, *(replace(base, without=lever) for lever in pulled), base]
    return found


def in_own_process(case: Case, repeats: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", json.dumps(asdict(case)), "--repeats", str(repeats)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(case.threads), "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as compiled:  # a start-up with nothing compiled before
        environment["TORCHINDUCTOR_CACHE_DIR"] = compiled
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if child.returncode:
        sys.exit(f"{case} ended with status {child.returncode}; if it is -9, memory ran out")
    return dict(json.loads(child.stdout.splitlines()[-1]))


# --- one case, in its own process ------------------------------------------------------------------------------------

def measure(case: Case, repeats: int) -> dict[str, Any]:
    """``seconds`` of each update, and what they are to be compared with."""
    torch.set_num_threads(case.threads)
    with levers.LEVERS[case.without]() if case.without else nullcontext():
        accelerate.keep_memory()
        peak = matmul_peak(case.precision)
        learner, batch = build_case(case)
        warm_up = warm(learner, batch)
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        seconds = time_updates(learner, batch, repeats, MIN_SECONDS)
        preempted = (resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - before) / (time.perf_counter() - start)
        memory = peak_memory()
        peak = max(peak, matmul_peak(case.precision))  # short enough for one disturbance to halve it
        gflop, operations = count(case, learner, batch)
    median = statistics.median(seconds)
    return {**asdict(case), "seconds": [round(value, 6) for value in seconds], "median_seconds": median,
            "start_up_seconds": sum(warm_up), "warm_up_updates": len(warm_up), "peak_rss_gib": memory,
            "peak_gflops": peak, "matmul_ratio": median * peak / MATMUL_GFLOP, "gflop": gflop,
            "share_of_peak": gflop / median / peak, "operations": operations, "preempted_per_second": preempted,
            "parameters": parameters(learner.policy)}


def build_case(case: Case) -> tuple[DreamerV2Learner, Batch]:
    workload = WORKLOADS[case.workload]
    changes = workload.changes | levers.CONFIG_CHANGES | {"precision": case.precision, "compile": case.compile}
    config = load_config("DreamerV2", workload.env, workload.env_id, overrides=changes).config
    assert isinstance(config, DreamerV2Config)
    learner, batch = build(config, workload.obs, workload.action)
    found = tuple(parameters(learner.policy).values())
    if workload.parameters and found != workload.parameters:  # other seconds would compare nothing
        sys.exit(f"{case.workload}: {found} parameters of {PARTS}, the specification has {workload.parameters}")
    return learner, batch


def build(config: DreamerV2Config, obs: ObsSpec, action: ActionSpec) -> tuple[DreamerV2Learner, Batch]:
    """A fresh learner and a random batch: one episode that neither begins nor ends inside it."""
    torch.manual_seed(0)
    policy = DreamerV2Policy({obs.kind: obs}, action, config)
    lead, random = (config.seq_len, config.batch_size), torch.Generator().manual_seed(1)
    if obs.kind == "image":
        observation = torch.randint(256, (*lead, *obs.shape), generator=random, dtype=torch.uint8)
    else:
        observation = torch.randn(*lead, *obs.shape, generator=random)
    if action.kind == "discrete":
        actions = torch.eye(action.size)[torch.randint(action.size, lead, generator=random)]
    else:
        actions = torch.rand(*lead, action.size, generator=random) * 2 - 1
    is_first = torch.zeros(lead, dtype=torch.bool)
    is_first[0] = True
    reward = torch.randn(lead, generator=random)
    batch = Batch({obs.kind: observation}, actions, reward, is_first, torch.zeros(lead, dtype=torch.bool))
    return DreamerV2Learner(policy, config, torch.Generator().manual_seed(2)), batch


def warm(learner: DreamerV2Learner, batch: Batch) -> list[float]:
    """Seconds of the first updates: two, or as many as it takes until nothing is compiled any more."""
    seconds = [timed(lambda: learner.step(batch)) for _ in range(2)]
    while seconds[-1] < 0.5 * seconds[-2]:
        seconds.append(timed(lambda: learner.step(batch)))
    return seconds


def time_updates(learner: DreamerV2Learner, batch: Batch, repeats: int, least: float) -> list[float]:
    """Seconds of each of ``repeats`` updates, or more until they sum up to ``least`` seconds."""
    seconds: list[float] = []
    while len(seconds) < repeats or sum(seconds) < least:
        seconds.append(timed(lambda: learner.step(batch)))
    return seconds


def count(case: Case, learner: DreamerV2Learner, batch: Batch) -> tuple[float, int | None]:
    """GFLOP of the matrix products and convolutions of one update, and its operations.

    A compiled update cannot be watched: its arithmetic is that of the same update not compiled, its operations are
    unknown.
    """
    if case.compile == "on":
        learner, batch = build_case(replace(case, compile="off"))
    with Operations() as counted:
        learner.step(batch)
    return counted.flop / 1e9, counted.operations if case.compile == "off" else None


def parameters(policy: DreamerV2Policy) -> dict[str, int]:
    modules = (policy.world_model, policy.actor, policy.critic)
    return {part: sum(value.numel() for value in module.parameters())
            for part, module in zip(PARTS, modules, strict=True)}


# --- what is printed -------------------------------------------------------------------------------------------------

def summary(case: dict[str, Any]) -> str:
    busy = "; the machine was busy with something else: repeat when it is idle"
    without = f" without {case['without']}" if case["without"] else ""
    return (f"{case['workload']} {case['precision']} compile={case['compile']}{without}: {case['median_seconds']:.4g} s"
            f", {case['peak_rss_gib']:.2f} GiB{busy if case['preempted_per_second'] > BUSY else ''}")


def table(cases: Sequence[dict[str, Any]]) -> str:
    lines = ["| workload | precision | compile | seconds | x matmul | share of peak | GFLOP | operations | peak GiB "
             "| start-up s |", "|---|---|---|---|---|---|---|---|---|---|"]
    lines += [f"| {case['workload']} | {case['precision']} | {case['compile']} | {case['median_seconds']:.3g} "
              f"| {case['matmul_ratio']:.3g} | {case['share_of_peak']:.0%} | {case['gflop']:,.3g} "
              f"| {case['operations'] or 'unknown'} | {case['peak_rss_gib']:.2f} | {case['start_up_seconds']:.1f} |"
              for case in cases]
    return "\n".join(lines)


def lever_table(cases: Sequence[dict[str, Any]]) -> str:
    """Change: of the seconds, against the mean of the runs with every lever in the same round: median and range."""
    lines = ["| workload | precision | without | seconds | change | from | to | GFLOP | operations | peak GiB |",
             "|---|---|---|---|---|---|---|---|---|---|"]
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for case in cases:
        groups.setdefault((case["workload"], case["precision"], case["without"]), []).append(case)
    for (workload, precision, without), group in groups.items():
        def base(case: dict[str, Any], setting: tuple[str, ...] = (workload, precision, "")) -> float:
            return statistics.mean(other["median_seconds"] for other in groups[setting]
                                   if other["round"] == case["round"])

        change = [case["median_seconds"] / base(case) - 1 for case in group]
        seconds, memory = (statistics.median(case[key] for case in group) for key in ("median_seconds", "peak_rss_gib"))
        lines.append(f"| {workload} | {precision} | {without or '(nothing)'} | {seconds:.3g} "
                     f"| {statistics.median(change):+.1%} | {min(change):+.1%} | {max(change):+.1%} "
                     f"| {group[0]['gflop']:,.3g} | {group[0]['operations']} | {memory:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
