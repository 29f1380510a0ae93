"""One full DreamerV2 update of SheepRL, as it ships, and one of xrl: seconds, peak memory, ratio to a matrix product.

    python benchmarks/peers/sheeprl_update.py [--workloads W1 W2 W3] [--precision fp32 bf16] [--repeats 5]

The first run creates benchmarks/peers/.venv-sheeprl and installs torch, then requirements-sheeprl.txt there (about
1.2 GB; pip takes torch from wherever it is configured to, so point PIP_INDEX_URL at PyTorch's CPU wheels to avoid
CUDA's). Timed is SheepRL's own `sheeprl.algos.dreamer_v2.dreamer_v2.train` (world model, actor and critic: forward,
backward, optimiser, its metrics) on random data, with its own builder, optimisers and configuration (its experiment
dreamer_v2_ms_pacman, in which the discount head is on); only the sizes of the workload are set. Every workload and
precision runs in a process of its own, so that the peak memory is its own; xrl's update (benchmarks/update.py) follows
each at once, in the Python that runs this script. Writes benchmarks/results/sheeprl_update.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE / ".venv-sheeprl"
REQUIREMENTS = HERE / "requirements-sheeprl.txt"
RESULT = HERE.parent / "results" / "sheeprl_update.json"
TORCH = "torch==2.13.0"  # the version of xrl's own requirements.txt
THREADS = 2
BUSY = 100  # times per second that another process took a core from us, above which the seconds are not to be trusted
MATMUL_SIZE = 2048
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}  # ours: Lightning Fabric's
PARTS = ("world model", "actor", "critic")


@dataclass(frozen=True)
class Workload:
    """Sizes of a batch and its model; `parameters` of world model, actor, critic as the specification counts them."""

    batch: int
    observation: tuple[int, ...]  # (1, 64, 64) image, or (4,) vector
    actions: int
    deter: int
    parameters: tuple[int, int, int]
    length: int = 50

    @property
    def key(self) -> str:
        return "rgb" if len(self.observation) == 3 else "state"


WORKLOADS = {
    "W1": Workload(50, (1, 64, 64), 6, 600, (19_968_179, 1_133_606, 1_131_601)),
    "W2": Workload(16, (1, 64, 64), 6, 600, (19_968_179, 1_133_606, 1_131_601)),
    "W3": Workload(16, (4,), 2, 200, (4_418_454, 972_002, 971_601)),
}


# --- in the caller's Python: standard library only -------------------------------------------------------------------

def main() -> None:
    options = arguments()
    if options.measure:
        print(json.dumps(measure(options.workloads[0], options.precision[0], options.repeats)))
        return
    python = prepare_environment()
    print(f"{'':12}{'median s':>10}{'peak GiB':>10}{'GFLOP/s':>10}{'x matmul':>10}  parameters (specification)")
    runs = []
    for workload in options.workloads:
        for precision in options.precision:
            theirs = in_own_process(python, workload, precision, options.repeats)
            ours = xrl_update(workload, precision, options.repeats)
            runs.append({**theirs, "xrl": ours})
            faster = theirs["median_seconds"] / ours["median_seconds"]
            print(f"{row(theirs)}\n{'  xrl':12}{numbers(ours)}  {faster:.2f} times as fast", flush=True)
            if max(theirs["preempted_per_second"], ours["preempted_per_second"]) > BUSY:
                print("        the machine was busy with something else: repeat when it is idle")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"commit": commit(), "threads": THREADS, "cpu": cpu_name(),
                                          "runs": runs}, indent=1) + "\n")
    print("written to", options.output)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--repeats", type=int, default=5, help="updates timed, after one warm-up")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)  # how the script calls itself
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats is {options.repeats}: at least one update has to be timed")
    return options


def prepare_environment() -> Path:
    """The Python of SheepRL's environment, which is created when missing, incomplete or of other requirements."""
    python, installed = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "installed.txt"
    wanted = f"{TORCH}\n{REQUIREMENTS.read_text()}"
    if not installed.exists() or installed.read_text() != wanted:
        print("creating", ENVIRONMENT, flush=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        for command in ([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)],
                        [*pip, TORCH],
                        [*pip, "--no-deps", "--requirement", str(REQUIREMENTS)]):
            if subprocess.run(command).returncode:
                sys.exit(f"failed: {' '.join(command)}\nMend what it says above and run again.")
        installed.write_text(wanted)
    return python


def in_own_process(python: Path, workload: str, precision: str, repeats: int) -> dict[str, Any]:
    command = [str(python), __file__, "--measure", "--workloads", workload, "--precision", precision,
               "--repeats", str(repeats)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "CUDA_VISIBLE_DEVICES": ""}
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if child.returncode:
        sys.exit(f"{workload} {precision} ended with status {child.returncode}; if it is -9, memory ran out")
    return dict(json.loads(child.stdout.splitlines()[-1]))


def xrl_update(workload: str, precision: str, repeats: int) -> dict[str, Any]:
    """What benchmarks/update.py measures in the same case, not compiled."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "update.json"
        subprocess.run([sys.executable, HERE.parent / "update.py", "--workloads", workload, "--precision", precision,
                        "--compile", "off", "--repeats", str(repeats), "--threads", str(THREADS), "--output", output],
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        return dict(json.loads(output.read_text())["cases"][0])


def row(run: dict[str, Any]) -> str:
    counts = ", ".join(f"{part} {run['parameters'][part]:,} ({run['specification'][part]:,})" for part in PARTS)
    return f"{run['workload'] + ' ' + run['precision']:12}{numbers(run)}  {counts}"


def numbers(run: dict[str, Any]) -> str:
    return (f"{run['median_seconds']:10.3f}{run['peak_rss_gib']:10.2f}{run['peak_gflops']:10.0f}"
            f"{run['matmul_ratio']:10.0f}")


def commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


# --- in SheepRL's environment ----------------------------------------------------------------------------------------

def measure(name: str, precision: str, repeats: int) -> dict[str, Any]:
    """One workload in one precision: `seconds` of each update, and what they are to be compared with.

    `matmul_ratio` is the median of `seconds` over that of one 2048 x 2048 x 2048 product of the same precision.
    """
    import sheeprl
    import torch

    torch.set_num_threads(THREADS)
    workload = WORKLOADS[name]
    update, parameters = build(workload, configuration(workload, precision))
    check_sizes(name, parameters, workload.parameters)
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    matmul = matmul_seconds(dtype)
    update()
    seconds = [timed(update) for _ in range(repeats)]
    median = statistics.median(seconds)
    matmul = min(matmul, matmul_seconds(dtype))  # short enough for one disturbance to halve the peak
    after = resource.getrusage(resource.RUSAGE_SELF)
    kilobytes = after.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    preempted = (after.ru_nivcsw - before.ru_nivcsw) / (time.perf_counter() - start)
    return {"workload": name, "precision": precision, "seconds": seconds, "median_seconds": median,
            "peak_rss_gib": kilobytes / 1024**2, "peak_gflops": 2 * MATMUL_SIZE**3 / matmul / 1e9,
            "matmul_ratio": median / matmul, "preempted_per_second": preempted,
            "parameters": dict(zip(PARTS, parameters, strict=True)),
            "specification": dict(zip(PARTS, workload.parameters, strict=True)),
            "versions": {"sheeprl": sheeprl.__version__, "torch": torch.__version__,
                         "python": platform.python_version()}}


def configuration(workload: Workload, precision: str) -> Any:
    """SheepRL's experiment dreamer_v2_ms_pacman with the sizes of the workload, resolved as its command line does."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf
    from sheeprl.utils.utils import dotdict

    keys = {"cnn": "[]", "mlp": "[]", "cnn" if workload.key == "rgb" else "mlp": f"[{workload.key}]"}
    overrides = ["exp=dreamer_v2_ms_pacman", f"fabric.precision={PRECISIONS[precision]}",
                 f"algo.per_rank_batch_size={workload.batch}", f"algo.per_rank_sequence_length={workload.length}",
                 f"algo.world_model.recurrent_model.recurrent_state_size={workload.deter}",
                 f"algo.world_model.transition_model.hidden_size={workload.deter}",
                 f"algo.world_model.representation_model.hidden_size={workload.deter}"]
    overrides += [f"algo.{kind}_keys.{side}={names}" for kind, names in keys.items() for side in ("encoder", "decoder")]
    with initialize_config_module("sheeprl.configs", version_base="1.3"):
        config = compose("config", overrides)
    return dotdict(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))


def build(workload: Workload, config: Any) -> tuple[Callable[[], None], list[int]]:
    """SheepRL's agent, optimisers and metrics: a closure that runs one update, and the parameters of each part."""
    import hydra
    import numpy as np
    import torch
    from gymnasium import spaces
    from sheeprl.algos.dreamer_v2.agent import build_agent
    from sheeprl.algos.dreamer_v2.dreamer_v2 import train
    from sheeprl.algos.dreamer_v2.utils import AGGREGATOR_KEYS, build_optimizer

    torch.set_float32_matmul_precision(config.float32_matmul_precision)
    torch.distributions.Distribution.set_default_validate_args(config.distribution.validate_args)
    fabric = hydra.utils.instantiate(config.fabric, _convert_="all")
    fabric.launch()
    fabric.seed_everything(config.seed)
    space = spaces.Dict({workload.key: spaces.Box(0, 255, workload.observation, np.float32)})
    world_model, actor, critic, target_critic, _ = build_agent(fabric, (workload.actions,), False, config, space)
    modules = (world_model, actor, critic)
    sizes = (config.algo.world_model, config.algo.actor, config.algo.critic)
    optimizers = fabric.setup_optimizers(*(build_optimizer(part.optimizer, module.parameters())
                                           for part, module in zip(sizes, modules, strict=True)))
    metrics = config.metric.aggregator
    metrics.metrics = {key: metric for key, metric in metrics.metrics.items() if key in AGGREGATOR_KEYS}
    aggregator = hydra.utils.instantiate(metrics, _convert_="all")
    data = random_data(workload)

    def update() -> None:
        train(fabric, *modules, target_critic, *optimizers, data, aggregator, config, (workload.actions,))

    return update, [sum(value.numel() for value in module.parameters()) for module in modules]


def random_data(workload: Workload) -> dict[str, Any]:
    """A batch as SheepRL's replay hands it to `train`: float32, (T, B, ...), images 0 to 255, no episode ends."""
    import torch

    shape = (workload.length, workload.batch)
    observation = (torch.randint(256, (*shape, *workload.observation)).float() if workload.key == "rgb"
                   else torch.randn(*shape, *workload.observation))
    action = torch.nn.functional.one_hot(torch.randint(workload.actions, shape), workload.actions).float()
    zeros = torch.zeros(*shape, 1)
    return {workload.key: observation, "actions": action, "rewards": torch.randn(*shape, 1),
            "terminated": zeros, "truncated": zeros.clone(), "is_first": zeros.clone()}


def check_sizes(name: str, parameters: list[int], expected: tuple[int, int, int]) -> None:
    """Exit when SheepRL built another model than the specification's: its seconds would compare nothing."""
    for part, count, wanted in zip(PARTS, parameters, expected, strict=True):
        if abs(count - wanted) > 0.005 * wanted:
            sys.exit(f"{name}: SheepRL's {part} has {count:,} parameters, the specification's {wanted:,}; "
                     "adapt configuration() to this version of SheepRL")


def matmul_seconds(dtype: Any) -> float:
    """Median seconds of ten products of two square matrices, after one that warms up."""
    import torch

    left, right = torch.randn(2, MATMUL_SIZE, MATMUL_SIZE).to(dtype)
    left @ right
    return statistics.median(timed(lambda: left @ right) for _ in range(10))


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
