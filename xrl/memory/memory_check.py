"""Will the replay fit into memory? Asked before the run starts, not answered by a crash hours later."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from xrl.common.errors import ConfigError

GIB = 2**30
USABLE = 0.9
"""Share of the available memory that the replay may take; networks and emulators need the rest."""

# Folder below the mount, limit, usage, and the page cache that usage counts but the kernel gives back.
_CGROUP_FILES = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def check_fits(nbytes: int, buffer_size: int, available: int | None = None) -> None:
    """Refuse a replay that cannot fit in memory.

    ``nbytes``: bytes it needs (``SequenceReplay.nbytes_needed``); ``buffer_size``: its capacity in agent steps;
    ``available``: bytes, asked of the system when None. Where the system does not tell, nothing is refused.

    Raises ConfigError naming the size in GiB, what is available and the largest ``buffer_size`` that fits.
    """
    available = available_memory() if available is None else available
    if available is None or nbytes <= USABLE * available:
        return
    largest = int(buffer_size * USABLE * available / nbytes)
    raise ConfigError(
        f"buffer_size: {buffer_size} needs {nbytes / GIB:.2f} GiB of memory, but only {available / GIB:.2f} GiB are "
        f"available (the replay may take {USABLE:.0%} of them); use buffer_size={largest} or less")


def check_disk(nbytes: int, buffer_size: int, folder: Path) -> None:
    """As ``check_fits``, for a replay whose rows lie in ``folder`` (which need not exist yet)."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if nbytes <= USABLE * free:
        return
    largest = int(buffer_size * USABLE * free / nbytes)
    raise ConfigError(
        f"buffer_size: {buffer_size} needs {nbytes / GIB:.2f} GiB of disk, but only {free / GIB:.2f} GiB are free in "
        f"{there} (the replay may take {USABLE:.0%} of them); use buffer_size={largest} or less, or another model_dir")


def available_memory() -> int | None:
    """Bytes this process can still take: the machine's, or what its control groups leave. None when unknown.

    Without Linux's /proc/meminfo it is the machine's total, where that is known (macOS), hence an upper bound.
    """
    candidates = _cgroup_headrooms()
    machine = _meminfo_available()
    machine = _total_memory() if machine is None else machine
    if machine is not None:
        candidates.append(machine)
    return max(0, min(candidates)) if candidates else None


def _meminfo_available(path: Path = Path("/proc/meminfo")) -> int | None:
    for line in _read(path).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _total_memory() -> int | None:
    if not hasattr(os, "sysconf") or not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(os.sysconf_names):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_headrooms(mount: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Bytes that each memory limit above this process leaves: versions 2 and 1, its own group and all around it."""
    headrooms = []
    for line in _read(own).splitlines():  # "0::/path" (version 2) or "4:memory:/path" (version 1)
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        folder, limit_name, usage_name, cache_key = _CGROUP_FILES[1 if controllers else 0]
        group = Path(path.lstrip("/"))
        for level in (group, *group.parents):
            at = mount / folder / level
            limit, usage = _read(at / limit_name).strip(), _read(at / usage_name).strip()
            if limit.isdigit() and usage.isdigit():  # "max" and a missing file set no limit
                headrooms.append(int(limit) - int(usage) + _stat(at / "memory.stat", cache_key))
    return headrooms


def _stat(path: Path, key: str) -> int:
    entries = dict(line.split(maxsplit=1) for line in _read(path).splitlines() if " " in line)
    return int(entries.get(key, 0))


def _read(path: Path) -> str:
    """The file's text, empty when there is none to read: other systems and locked-down containers have none."""
    try:
        return path.read_text()
    except OSError:
        return ""
