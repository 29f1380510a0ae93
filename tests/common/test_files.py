"""Model files: whole or not there, JSON metadata, and every kind of damage told apart."""

from __future__ import annotations

import json
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from xrl.common import files
from xrl.common.errors import CheckpointError, ModelFileError
from xrl.common.files import load_tensors, map_arrays, read_metadata, save_tensors, write_arrays, write_atomic


def test_a_file_comes_back(tmp_path):
    path = tmp_path / "deep" / "model.pth"
    tensors = {"a/b": torch.arange(6.0).reshape(2, 3), "bytes": torch.tensor([1, 2], dtype=torch.uint8),
               "scalar": torch.tensor(3.5), "none": torch.zeros(0)}
    save_tensors(path, tensors, {"method": "X", "numbers": {"n": 3}})
    back, metadata = load_tensors(path)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert metadata == read_metadata(path) == {"format": files.FORMAT, "method": "X", "numbers": {"n": 3}}


def test_views_that_share_memory_are_saved_each(tmp_path):
    """As the weights of one optimiser do; transposed ones too."""
    flat = torch.arange(6.0)
    save_tensors(tmp_path / "m", {"left": flat[:4], "right": flat[2:], "turned": flat.view(2, 3).T}, {})
    back, _ = load_tensors(tmp_path / "m")
    assert back["left"].tolist() == [0, 1, 2, 3] and back["right"].tolist() == [2, 3, 4, 5]
    assert back["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_writing_replaces_in_one_step(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, failing, error):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(*arguments):
        if failing == "replace":
            assert arguments[0].read_bytes() == b"new"  # whole before it takes the place
        raise error

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(type(error)):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_data_reach_the_disk_before_the_name_does(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (order.append("flush"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("rename"), replace(*paths)))
    write_atomic(tmp_path / "file", b"data")
    assert order == ["flush", "rename", "flush"], "the data, its name, and the folder that holds the name"


class Bomb:
    def __init__(self, marker) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("read", [load_tensors, read_metadata])
@pytest.mark.parametrize(("kind", "message"), [
    ("missing", "no such model file"), ("folder", "no such model file"), ("empty", "damaged or cut short"),
    ("half", "damaged or cut short"), ("text", "damaged or cut short"), ("plain safetensors", "not one that xrl wrote"),
    ("other format", f"model format 99, this xrl reads format {files.FORMAT}; load it with the xrl version"),
    ("pickle", "pickle, which could run code"), ("old pickle", "damaged"), ("torch", "pickle, which could run code"),
])
def test_what_cannot_be_read_is_named(tmp_path, read, kind, message):
    path, marker = tmp_path / "m.pth", tmp_path / "exploded"
    if kind == "folder":
        path.mkdir()
    elif kind == "half":
        save_tensors(path, {"a": torch.zeros(1000)}, {})
        path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    elif kind == "plain safetensors":
        save_file({"a": torch.zeros(2)}, path)
    elif kind == "other format":
        save_file({"a": torch.zeros(2)}, path, {"xrl": json.dumps({"format": 99})})
    elif kind == "torch":
        torch.save(Bomb(marker), path)
    elif kind != "missing":
        path.write_bytes({"empty": b"", "text": b"not a model at all", "pickle": pickle.dumps(Bomb(marker)),
                          "old pickle": pickle.dumps(Bomb(marker), protocol=0)}[kind])
    with pytest.raises(ModelFileError, match=f"^{path}: .*{message}"):
        read(path)
    assert not marker.exists()


def test_a_header_of_rows_is_not_believed(tmp_path):
    layout = {"a": ((3,), np.dtype(np.float32))}
    write_arrays(tmp_path / "rows", {"a": np.arange(3, dtype=np.float32)})
    assert map_arrays(tmp_path / "rows", layout)["a"].tolist() == [0, 1, 2]
    good = (tmp_path / "rows").read_bytes()
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8:8 + length])
    for change in ({"data_offsets": [0, float("inf")]}, {"data_offsets": [-12, 0]}, {"data_offsets": [4, 16]},
                   {"data_offsets": [0, 2**70]}, {"shape": [4]}, {"dtype": "I64"}, {"data_offsets": 3}):
        text = json.dumps(header | {"a": header["a"] | change}).encode()
        (tmp_path / "bad").write_bytes(len(text).to_bytes(8, "little") + text + good[8 + length:])
        with pytest.raises(CheckpointError, match="not the file that the checkpoint counts on"):
            map_arrays(tmp_path / "bad", layout)
    for length in (0, 2**40, 2**64 - 1):
        (tmp_path / "bad").write_bytes(length.to_bytes(8, "little") + good[8:])
        with pytest.raises(CheckpointError):
            map_arrays(tmp_path / "bad", layout)
