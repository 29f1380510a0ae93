"""What every record of a benchmark carries: commit, versions, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("ale-py", "gymnasium", "numpy", "torch")


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
