"""What every record of a benchmark carries, and the yardsticks: a matrix product, peak memory.

Imports the standard library only (``matmul_peak`` needs torch), so that the environment of a peer can use it too.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("ale-py", "gymnasium", "numpy", "torch")
MATMUL_SIZE = 2048
MATMUL_GFLOP = 2 * MATMUL_SIZE**3 / 1e9


def provenance() -> dict[str, Any]:
    """Commit (with "+changes" if the package differs from it), versions of what matters, the machine."""
    return {"commit": commit(), "versions": {"python": platform.python_version(),
                                             **{package: version(package) for package in PACKAGES}},
            "hardware": {"cpu": cpu(), "cores": os.cpu_count()}}


def commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "xrl")
    return git("rev-parse", "--short", "HEAD") + ("+changes" if changed else "")


def cpu() -> str:
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")] if Path("/proc/cpuinfo").exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def matmul_peak(precision: str) -> float:
    """GFLOP/s of a 2048 x 2048 x 2048 product in "fp32" or "bf16": median of ten, after one that warms up."""
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    left, right = torch.randn(2, MATMUL_SIZE, MATMUL_SIZE).to(dtype)
    left @ right
    return MATMUL_GFLOP / statistics.median(timed(lambda: left @ right) for _ in range(10))


def peak_memory() -> float:
    """GiB that this process occupied at most."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose ru_maxrss also counts what the parent occupied when it started this process
        kilobytes = {line.split()[0]: line.split()[1] for line in status.read_text().splitlines() if " kB" in line}
        if "VmHWM:" in kilobytes:
            return int(kilobytes["VmHWM:"]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def timed(work: Callable[[], Any]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
