"""Refusing a replay that cannot fit, and reading what the system has left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xrl.common.errors import ConfigError
from xrl.memory import available_memory, check_fits, memory_check

GIB = 2**30


def test_refusal_names_the_key_the_sizes_and_a_capacity_that_fits():
    with pytest.raises(ConfigError) as refusal:
        check_fits(8 * GIB, buffer_size=2_000_000, available=4 * GIB)
    assert str(refusal.value) == (
        "buffer_size: 2000000 needs 8.00 GiB of memory, but only 4.00 GiB are available (the replay may take 90% of "
        "them); use buffer_size=900000 or less")
    check_fits(8 * GIB * 900_000 // 2_000_000, buffer_size=900_000, available=4 * GIB)
    with pytest.raises(ConfigError):
        check_fits(8 * GIB * 950_000 // 2_000_000, buffer_size=950_000, available=4 * GIB)


def test_the_systems_memory_is_asked_when_none_is_given(monkeypatch):
    monkeypatch.setattr(memory_check, "available_memory", lambda: GIB)
    with pytest.raises(ConfigError, match=r"only 1\.00 GiB"):
        check_fits(2 * GIB, buffer_size=10)
    monkeypatch.setattr(memory_check, "available_memory", lambda: None)
    check_fits(2**60, buffer_size=10)  # unknown: nothing is refused


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_meminfo(tmp_path):
    write(tmp_path / "meminfo", "MemTotal:   9000 kB\nMemFree:   100 kB\nMemAvailable:   5000 kB\n")
    assert memory_check._meminfo_available(tmp_path / "meminfo") == 5000 * 1024
    assert memory_check._meminfo_available(tmp_path / "absent") is None


def test_cgroup_version_2_limits_of_the_own_group_and_its_parents(tmp_path):
    write(tmp_path / "own", "0::/slice/job\n")
    write(tmp_path / "slice/job/memory.max", "1000\n")
    write(tmp_path / "slice/job/memory.current", "700\n")
    write(tmp_path / "slice/job/memory.stat", "anon 400\ninactive_file 300\n")
    write(tmp_path / "slice/memory.max", "5000\n")
    write(tmp_path / "slice/memory.current", "4900\n")
    write(tmp_path / "memory.max", "max\n")
    write(tmp_path / "memory.current", "4900\n")
    assert memory_check._cgroup_headrooms(tmp_path, tmp_path / "own") == [600, 100]


def test_cgroup_seen_from_inside_a_container(tmp_path):
    write(tmp_path / "own", "0::/\n")
    write(tmp_path / "memory.max", "1000\n")
    write(tmp_path / "memory.current", "300\n")
    assert memory_check._cgroup_headrooms(tmp_path, tmp_path / "own") == [700]


def test_cgroup_version_1(tmp_path):
    write(tmp_path / "own", "7:cpu,cpuacct:/\n4:memory:/docker/abc\n")  # the mount shows the container's group on top
    write(tmp_path / "memory/memory.limit_in_bytes", "2000\n")
    write(tmp_path / "memory/memory.usage_in_bytes", "500\n")
    write(tmp_path / "memory/memory.stat", "inactive_file 1\ntotal_inactive_file 50\n")
    assert memory_check._cgroup_headrooms(tmp_path, tmp_path / "own") == [1550]


@pytest.mark.parametrize(("groups", "meminfo", "total", "expected"), [
    ([300, 200], 250, 900, 200), ([300], 250, 900, 250), ([-5], 250, 900, 0), ([], None, 900, 900),
    ([300], None, None, 300), ([], None, None, None)])
def test_the_tightest_limit_counts_and_the_total_is_a_last_resort(monkeypatch, groups, meminfo, total, expected):
    monkeypatch.setattr(memory_check, "_cgroup_headrooms", lambda: list(groups))
    monkeypatch.setattr(memory_check, "_meminfo_available", lambda: meminfo)
    monkeypatch.setattr(memory_check, "_total_memory", lambda: total)
    assert available_memory() == expected


def test_a_system_without_sysconf_is_unknown(monkeypatch):
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert memory_check._total_memory() is None
