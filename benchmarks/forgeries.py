"""What fuzz.py does to runs: a recipe, applied to a copy of one.

Damage leaves the checksums as they were, as a bad disk does; forgery writes fitting ones, as somebody with bad
intentions would.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from mutants import TREE_CHANGES, change_tree, configs, pickle_of, places, values

from xrl.common.checkpoint import CHECKPOINTS, REPLAY
from xrl.common.files import sha256_of


@dataclass(frozen=True)
class Recipe:
    """``how`` to change a file, or the JSON in it; ``both``: in every checkpoint, else only in the newest."""

    how: str
    both: bool
    pick: int
    other: int
    value: Any = None
    config: bytes = b""

    @property
    def kind(self) -> str:
        return self.how if self.how in DAMAGE or self.how == "config" else f"forged: {self.how.strip()}"


@st.composite
def recipes(draw: Callable[..., Any], bases: Sequence[str], canary: Path) -> Recipe:
    how, number = draw(st.sampled_from([*DAMAGE, *FORGERY, *FORGERY, "config", "config"])), st.integers(0, 10**6)
    if how == "config":
        return Recipe(how, True, 0, 0, None, draw(configs(bases, canary))[1])
    return Recipe(how, draw(st.booleans()), draw(number), draw(number), draw(values()))


def apply(recipe: Recipe, run: Path, outside: Path) -> None:
    """Change the run at ``run``; ``outside`` holds things that nobody may read or change."""
    if recipe.how == "config":
        (run / "config.yaml").write_bytes(recipe.config)
    elif recipe.how in DAMAGE:
        for folder in reversed(checkpoint_folders(run)[0 if recipe.both else -1:]):
            files = [*sorted(folder.iterdir()), *sorted((run / REPLAY).iterdir())]
            DAMAGE[recipe.how](files[recipe.pick % len(files)], recipe, outside)
    else:
        for folder in checkpoint_folders(run)[0 if recipe.both else -1:]:
            FORGERY[recipe.how](folder, recipe, outside)
            seal(folder)


def checkpoint_folders(run: Path) -> list[Path]:
    return sorted((run / CHECKPOINTS).iterdir())


def seal(folder: Path) -> None:
    """Write the sizes and checksums of what is there into the manifest, wherever it still has a place for them."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        places = [(folder, manifest["files"]), (folder.parent.parent / REPLAY, manifest["rows"])]
        for place, files in places:
            for name, file in files.items():
                if (place / name).is_file() and isinstance(file, dict) and not file.get("forged"):
                    file["bytes"], file["sha256"] = (place / name).stat().st_size, sha256_of(place / name)
        path.write_text(json.dumps(manifest))
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        return  # it was the manifest that was forged


def _flip(path: Path, recipe: Recipe, outside: Path) -> None:
    data = bytearray(path.read_bytes())
    data[recipe.other % len(data)] ^= 1 << recipe.pick % 8
    path.write_bytes(data)


def _swap(path: Path, recipe: Recipe, outside: Path) -> None:
    others = [other for other in sorted(path.parent.parent.rglob("*")) if other.is_file() and other != path]
    other = others[recipe.other % len(others)]
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def _link(path: Path, recipe: Recipe, outside: Path) -> None:
    moved = outside / f"moved_{path.parent.name}_{path.name}"
    if not path.is_symlink():
        shutil.move(path, moved)
        path.symlink_to(moved)


def run_of(path: Path) -> Path:
    return next(parent for parent in path.parents if (parent / "config.yaml").exists())


def _folder_link(path: Path, recipe: Recipe, outside: Path) -> None:
    folder = run_of(path) / REPLAY if recipe.other % 2 else path.parent
    if not folder.is_symlink():
        shutil.move(folder, outside / folder.name)
        folder.symlink_to(outside / folder.name)


def _log_link(path: Path, recipe: Recipe, outside: Path) -> None:
    run = run_of(path)
    name = ("metrics.jsonl", ".lock", "final_train_model.pth", "config.yaml")[recipe.other % 4]
    target = outside / "precious"
    if (run / name).is_symlink():
        return
    if name == "config.yaml":
        shutil.copy(run / name, target)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(target)


def _special(path: Path, recipe: Recipe, outside: Path) -> None:
    if not path.is_file():
        return
    path.unlink()
    if recipe.other % 2:
        os.mkfifo(path)  # reading it would wait for ever
    else:
        path.mkdir()


def _grow(path: Path, recipe: Recipe, outside: Path) -> None:
    os.truncate(path, path.stat().st_size + (1, 4096, 2**28, 2**40)[recipe.other % 4])  # with a hole: takes no disk


DAMAGE: dict[str, Callable[[Path, Recipe, Path], None]] = {
    "a bit flipped": _flip,
    "cut": lambda path, recipe, outside: os.truncate(path, recipe.other % path.stat().st_size),
    "appended": lambda path, recipe, outside: path.write_bytes(path.read_bytes() + b"\0" * (1 + recipe.other % 99)),
    "grown": _grow,
    "empty": lambda path, recipe, outside: path.write_bytes(b""),
    "missing": lambda path, recipe, outside: path.unlink(),
    "swapped": _swap,
    "a pickle": lambda path, recipe, outside: path.write_bytes(pickle_of(outside / "canary")),
    "a link": _link,
    "a folder that is a link": _folder_link,
    "a log that is a link": _log_link,
    "a pipe or a folder": _special,
    "a checkpoint missing": lambda path, recipe, outside: shutil.rmtree(checkpoint_folders(run_of(path))[-1]),
}


def _tree(name: str) -> Callable[[Path, Recipe, Path], None]:
    def change(folder: Path, recipe: Recipe, outside: Path) -> None:
        tree = json.loads((folder / name).read_bytes())
        change_tree(tree, TREE_CHANGES[recipe.other % len(TREE_CHANGES)], recipe.pick, recipe.value)
        write_json(folder / name, tree)
    return change


def write_json(path: Path, tree: Any) -> None:
    path.write_text(json.dumps(tree))


def _names(folder: Path, recipe: Recipe, outside: Path) -> None:
    """The state says that its rows lie elsewhere: in a file that fits, in a pipe, in a folder."""
    tree, target = json.loads((folder / "state.json").read_bytes()), outside / "rows.safetensors"
    files = tree["replay"]["files"]
    file = files[recipe.pick % len(files)]
    shutil.copy(folder.parent.parent / REPLAY / file["name"], target)
    pipe = outside / "pipe"
    if not pipe.exists():
        os.mkfifo(pipe)
    names = (str(target), os.path.relpath(target, folder.parent.parent / REPLAY), str(pipe), "/dev/zero", "..", "",
             "\0")
    file["name"] = names[recipe.other % len(names)]
    write_json(folder / "state.json", tree)


def _manifest_names(folder: Path, recipe: Recipe, outside: Path) -> None:
    manifest, target = json.loads((folder / "manifest.json").read_bytes()), outside / "precious"
    part = manifest[("rows", "files")[recipe.pick % 2]]
    part[(str(target), "../../../outside/precious", "..", "rows_1.safetensors/../x")[recipe.other % 4]] = {
        "bytes": 8, "sha256": "0" * 64}
    write_json(folder / "manifest.json", manifest)


def _deep(folder: Path, recipe: Recipe, outside: Path) -> None:
    name = ("state.json", "manifest.json")[recipe.pick % 2]
    tree = json.loads((folder / name).read_bytes())
    depth = (50, 500, 900, 5000, 100_000)[recipe.other % 5]
    key = sorted(tree)[recipe.pick % len(tree)]
    tree[key] = "HERE"
    (folder / name).write_text(json.dumps(tree).replace('"HERE"', "[" * depth + "]" * depth))


def _marks(folder: Path, recipe: Recipe, outside: Path) -> None:
    """A mark that points to another array, to none, or is another mark."""
    tree = json.loads((folder / "state.json").read_bytes())
    marks = [path for path in places(tree) if str(path[-1]).startswith("$")]
    *outer, mark = marks[recipe.pick % len(marks)]
    inside = tree
    for step in outer:
        inside = inside[step]
    old = inside.pop(mark)
    other = marks[recipe.other % len(marks)]
    choice = recipe.other % 4
    inside[("$tensor", "$array", "$bytes", mark)[choice]] = (
        old if choice < 3 else "nowhere" if other == (*outer, mark) else "/".join(map(str, other[:-1])))
    write_json(folder / "state.json", tree)


def _header(folder: Path, recipe: Recipe, outside: Path) -> None:
    """Change the header of a safetensors file: shapes, types, offsets, names, its own length."""
    rows = sorted((folder.parent.parent / REPLAY).glob("rows_*"))
    path = (folder / "state.safetensors", rows[recipe.other % len(rows)])[recipe.pick % 2]
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    try:
        header = json.loads(data[8:8 + length])
    except ValueError:  # both checkpoints count on this file, and it has had its turn
        return
    if recipe.other % 10 == 0:
        lengths = (0, 1, length - 1, length + 8, 2**40, 2**64 - 1)
        path.write_bytes(struct.pack("<Q", lengths[recipe.pick % 6]) + data[8:])
        return
    change_tree(header, TREE_CHANGES[recipe.other % len(TREE_CHANGES)], recipe.pick, recipe.value)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length:])


def _array(folder: Path, recipe: Recipe, outside: Path) -> None:
    """One array of the state with other values, another shape or type, or gone; the file is a good one."""
    import numpy as np
    from safetensors.numpy import load_file, save_file
    arrays = load_file(folder / "state.safetensors")
    name = sorted(arrays)[recipe.pick % len(arrays)]
    old = arrays.pop(name)
    number = old.size and recipe.other % old.size
    flat = old.reshape(-1).copy()
    flat[number:number + 1] = (np.nan, np.inf, -1, 1e30)[recipe.other % 4] if old.dtype.kind == "f" else (
        (255, 0)[recipe.other % 2] if old.dtype.kind in "ub" else (-1, 2**62, -2**62, 0)[recipe.other % 4])
    new = (flat.reshape(old.shape), flat, old.astype(np.float64), old.reshape(-1)[:-1], np.stack([old, old]), None,
           np.zeros(0, old.dtype), old.astype(np.int64), np.random.default_rng(recipe.other).integers(
               256, size=old.nbytes).astype(np.uint8).view(old.dtype).reshape(old.shape) if old.size else old)[
        recipe.other % 9]
    if new is not None:
        arrays[name] = np.ascontiguousarray(new)
    save_file(arrays, folder / "state.safetensors")


def _row_bits(folder: Path, recipe: Recipe, outside: Path) -> None:
    rows = sorted((folder.parent.parent / REPLAY).glob("rows_*"))
    path = rows[recipe.pick % len(rows)]
    data = bytearray(path.read_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    for number in range(1 + recipe.other % 64):
        data[8 + length + (recipe.other + 7919 * number) % (len(data) - 8 - length)] ^= 1 << number % 8
    path.write_bytes(data)


FORGERY: dict[str, Callable[[Path, Recipe, Path], None]] = {
    "JSON of the state": _tree("state.json"),
    "JSON of the state ": _tree("state.json"),  # more often
    "JSON of the state  ": _tree("state.json"),
    "manifest": _tree("manifest.json"),
    "names of rows": _names,
    "names in the manifest": _manifest_names,
    "nested deep": _deep,
    "marks": _marks,
    "safetensors header": _header,
    "an array": _array,
    "bits of the rows": _row_bits,
}
