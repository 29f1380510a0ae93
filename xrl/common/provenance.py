"""Where a result comes from: versions, the commit, the machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# What the last bit of a run depends on, beside its configuration.
PACKAGES = ("xrl", "torch", "numpy", "gymnasium", "ale-py")


def provenance() -> dict[str, Any]:
    """Versions, the commit of xrl ("+changes" if the package differs from it; None outside of git) and the machine."""
    return {"versions": {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}},
            "commit": commit(), "machine": {"system": f"{platform.system()} {platform.machine()}", "cpu": cpu(),
                                            "cores": os.cpu_count()}}


def command() -> list[str]:
    """How this process was started, in words that start it elsewhere."""
    program, *words = sys.argv
    name = Path(program).name
    if name in ("xrl", "xrl.exe") or Path(program) == Path(__file__).parents[1] / "__main__.py":
        return ["xrl", *words]
    return ["python", name, *words]


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # xrl itself, run from its source without being installed
        return "not installed"


def commit() -> str | None:
    """Of the repository that holds this package, not of one that merely has it installed somewhere inside."""
    package = Path(__file__).parents[1]

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=package, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "--short", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
