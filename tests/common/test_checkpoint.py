"""Checkpoints: whole or not there, every damage found, nothing older lost, no way out of the folder."""

from __future__ import annotations

import errno
import json
import os
import shutil

import numpy as np
import pytest

from xrl.common import checkpoint as module
from xrl.common.checkpoint import Checkpoints, Snapshot, find_checkpoints, read_checkpoint
from xrl.common.errors import CheckpointError
from xrl.common.files import write_arrays
from xrl.common.state import pack

STATE = {"weights": np.arange(5.0), "counters": {"n": 3, "name": "x"}, "raw": b"\x00\x01"}


def rows(run, first, count=10):
    name = f"rows_{first:012d}_{first + count:012d}.safetensors"
    if not (run / "replay" / name).exists():
        size, digest = write_arrays(run / "replay" / name, {"a": np.full(count, first, np.float32)})
    else:
        size, digest = (run / "replay" / name).stat().st_size, module.sha256_of(run / "replay" / name)
    return {"name": name, "bytes": size, "sha256": digest, "first": first, "rows": count}


def snapshot(step, files=(), state=STATE):
    arrays, tree = pack({**state, "step": step})
    counters = {"agent_steps": step, "frames": 2 * step, "updates": step // 5}
    return Snapshot(arrays, tree, counters, rows=files, facts={"exact": True})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_state_comes_back(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    path = checkpoints.write(snapshot(12, [rows(tmp_path, 0)]))
    assert path.name == "step_0000000012_update_000000002"
    found = checkpoints.newest()
    state = found.load()
    assert np.array_equal(state["weights"], STATE["weights"]) and state["raw"] == STATE["raw"] and state["step"] == 12
    assert found.counters == {"agent_steps": 12, "frames": 24, "updates": 2}
    assert found.bytes == sum(file.stat().st_size for file in tmp_path.rglob("*.*") if file.name != "manifest.json")


def test_the_newest_stay_with_the_rows_that_they_count_on_and_newer_ones(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for number in range(5):  # a ring of two files: the oldest is forgotten
        held = range(max(0, number - 1), number + 1)
        checkpoints.write(snapshot(10 * number, [rows(tmp_path, 10 * n) for n in held]))
        rows(tmp_path, 10 * number + 10)  # stored while the checkpoint was written
    assert [one.counters["agent_steps"] for one in find_checkpoints(tmp_path)] == [30, 40]
    assert [name[5:17] for name in names(tmp_path / "replay")] == [f"{n:012d}" for n in (20, 30, 40, 50)]


def damage_cut(path):
    os.truncate(path, path.stat().st_size // 2)


def damage_flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def damage_swap(path):
    path.write_bytes(b"x" * path.stat().st_size)


def damage_remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [damage_cut, damage_flip, damage_swap, damage_remove])
@pytest.mark.parametrize("victim", ["state.safetensors", "state.json", "manifest.json", "rows"])
def test_a_damaged_newest_is_named_and_the_one_before_is_used(tmp_path, capsys, damage, victim):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.write(snapshot(10, [rows(tmp_path, 0)]))
    newest = checkpoints.write(snapshot(20, [rows(tmp_path, 0), rows(tmp_path, 10)]))
    path = newest / victim if victim != "rows" else tmp_path / "replay" / rows(tmp_path, 10)["name"]
    damage(path)
    if victim == "manifest.json" and damage is damage_flip:  # wherever it hits, it may still be a manifest; see fuzz
        path.write_text(path.read_text().replace('"format": 1', '"format": 7'))
    found = checkpoints.newest()
    assert found is not None and found.counters["agent_steps"] == 10
    assert str(path) in capsys.readouterr().err
    checkpoints.rewind(found)
    assert names(tmp_path / "replay") == [rows(tmp_path, 0)["name"]]
    assert [name[:8] for name in names(tmp_path / "checkpoints")] == ["aside_st", "step_000"], "nothing is thrown away"
    again = checkpoints.write(snapshot(20, [rows(tmp_path, 0), rows(tmp_path, 10)]))
    assert checkpoints.newest().path == again


def test_none_whole_is_an_error_and_none_at_all_is_none(tmp_path):
    assert Checkpoints(tmp_path, 1).newest() is None
    path = Checkpoints(tmp_path, 1).write(snapshot(1))
    damage_flip(path / "state.json")
    with pytest.raises(CheckpointError, match=r"no checkpoint is whole: .*state\.json: damaged"):
        Checkpoints(tmp_path, 1).newest()


@pytest.mark.parametrize("call", ["write_arrays", "write_atomic", "sync", "os.replace"])
def test_a_failed_write_leaves_nothing_half_written_and_the_old_ones(tmp_path, monkeypatch, call):
    checkpoints = Checkpoints(tmp_path, keep=1)
    old = checkpoints.write(snapshot(1, [rows(tmp_path, 0)]))

    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"{module.__name__}.{call}", full)
    with pytest.raises(OSError, match="No space"):
        checkpoints.write(snapshot(9, [rows(tmp_path, 0), rows(tmp_path, 10)]))
    monkeypatch.undo()
    assert names(tmp_path / "checkpoints") == [old.name]
    assert checkpoints.newest().path == old


def test_leftovers_of_a_killed_writer_are_swept_and_never_read(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    old = checkpoints.write(snapshot(1))
    shutil.copytree(old, tmp_path / "checkpoints" / ".step_0000000009_update_000000001.77.tmp")
    assert checkpoints.newest().path == old
    new = checkpoints.write(snapshot(2))
    assert names(tmp_path / "checkpoints") == [old.name, new.name]


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "rows_1_2.safetensors",
                                  "sub/rows_000000000000_000000000010.safetensors"])
def test_no_path_leads_out_of_the_run(tmp_path, name):
    path = Checkpoints(tmp_path, 1).write(snapshot(1))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["rows"] = {name: {"bytes": 1, "sha256": "0"}}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="no name of a file of rows"):
        read_checkpoint(path)


def test_links_are_refused(tmp_path):
    path = Checkpoints(tmp_path, 1).write(snapshot(1))
    outside = tmp_path / "outside.json"
    shutil.move(path / "state.json", outside)
    (path / "state.json").symlink_to(outside)
    with pytest.raises(CheckpointError, match="is a link"):
        read_checkpoint(path).verify()


def test_a_header_that_claims_gigabytes_is_refused_before_anything_is_read(tmp_path):
    path = Checkpoints(tmp_path, 1).write(snapshot(1))
    huge = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (path / "state.safetensors").write_bytes(len(huge).to_bytes(8, "little") + huge)
    with pytest.raises(CheckpointError, match=r"state\.safetensors"):
        read_checkpoint(path).load()


def test_a_file_that_cannot_be_read_is_damage(tmp_path, monkeypatch, capsys):
    checkpoints = Checkpoints(tmp_path, keep=2)
    old, new = checkpoints.write(snapshot(1)), checkpoints.write(snapshot(2))
    real = module.sha256_of

    def failing(path):
        if path.parent == new:
            raise OSError(errno.EIO, "Input/output error")
        return real(path)

    monkeypatch.setattr(module, "sha256_of", failing)
    assert checkpoints.newest().path == old and "Input/output error" in capsys.readouterr().err


def test_a_run_that_goes_back_leaves_its_future_aside(tmp_path):
    """An agent that loads an earlier model, say: what it writes then is the newest."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.write(snapshot(30))
    checkpoints.write(snapshot(20, state={"other": 1}))
    assert checkpoints.newest().load() == {"other": 1, "step": 20}
    other = Checkpoints(tmp_path, keep=1)  # which does not know what the one of this name holds
    other.write(snapshot(20, state={"other": 2}))
    assert other.newest().load() == {"other": 2, "step": 20}


def test_killed_while_an_old_one_was_removed(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.write(snapshot(10))
    monkeypatch.setattr(module.shutil, "rmtree", lambda path, **keys: None)  # as far as it came
    new = checkpoints.write(snapshot(20))
    monkeypatch.undo()
    assert [one.path for one in find_checkpoints(tmp_path)] == [new]
    last = checkpoints.write(snapshot(30))
    assert names(tmp_path / "checkpoints") == [last.name]
