"""What fuzz.py tries: configurations and checkpoints changed at random, by hypothesis strategies.

A config mutant is the text of a file. A checkpoint mutant is a recipe, applied to a copy of a run: damage leaves the
checksums as they were, as a bad disk does; forgery writes fitting ones, as somebody with bad intentions would.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import yaml
from hypothesis import strategies as st

from xrl.common.checkpoint import CHECKPOINTS, REPLAY
from xrl.common.files import sha256_of

NUMBERS = (0, -1, 1, 2, 7, 2**31, 2**63, -2**63, 10**18, -10**18, 10**400, 0.5, -0.5, 1e-300, 1e300, float("nan"),
           float("inf"), float("-inf"))
WORDS = ("", " ", "abc", "1e-4", "1e999", "nan", "inf", "-", "10min", "0 min", "1e400min", "../..", "/etc/passwd", "a/b",
         "off", "None", "a" * 300, "\x00", "\ud800", "\u202e", "line\nbreak", "=", "${HOME}", "$tensor", "$bytes")


def collect(strategy: st.SearchStrategy[Any], count: int, seed: int) -> list[Any]:
    """``count`` examples, always the same ones for a seed."""
    found: list[Any] = []
    if count == 0:
        return found

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=count, database=None, deadline=None, phases=[hypothesis.Phase.generate],
                         suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(strategy)
    def keep(example: Any) -> None:
        found.append(example)

    keep()
    return found[:count]


def values() -> st.SearchStrategy[Any]:
    leaves = st.one_of(st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(WORDS), st.integers(),
                       st.floats(), st.text(max_size=20), st.integers(1, 40).map(lambda depth: nested(depth)))
    return st.recursive(leaves, lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=3)), max_leaves=5)


def nested(depth: int) -> Any:
    value: Any = 0
    for number in range(depth):
        value = [value] if number % 2 else {"a": value}
    return value


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every entry of nested dicts and lists."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [found for key, value in pairs for found in [(*path, key), *places(value, (*path, key))]]


def change_tree(tree: Any, how: str, pick: int, value: Any) -> None:
    """One change of nested dicts and lists, in place, at the place that ``pick`` falls on."""
    found = places(tree)
    if not found:
        return
    *outer, key = found[pick % len(found)]
    inside = tree
    for step in outer:
        inside = inside[step]
    old = inside[key]
    if how == "delete":
        del inside[key]
    elif how == "misspell" and isinstance(inside, dict):
        text = str(key)
        at = pick % (len(text) + 1)
        inside[text[:at] + ("x" if pick % 2 else "") + text[at + 1:]] = inside.pop(key)
    elif how == "add" and isinstance(inside, dict):
        inside[str(value)[:300]] = value
    elif how == "scale" and isinstance(old, int | float) and not isinstance(old, bool):
        inside[key] = old * (-1, 1000, 0, 0.5, 1e-6)[pick % 5]
    elif how == "wrap":
        inside[key] = [old] if pick % 2 else {"a": old}
    elif how == "copy":
        *_, other = found[(pick * 7919) % len(found)]
        inside[key] = inside[other] if isinstance(inside, dict) and other in inside else str(old)
    else:
        inside[key] = value


TREE_CHANGES = ("replace", "replace", "replace", "delete", "misspell", "add", "scale", "wrap", "copy")


# Configurations ------------------------------------------------------------------------------------------------------


@cache
def snippets(canary: Path) -> tuple[str, ...]:
    """YAML that a careless reader would trip over, or run: each would leave a file at ``canary``."""
    laughs = "\n".join(["", "  l0: &l0 lol", *(f"  l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]"
                                               for n in range(1, 12))])
    return (f"!!python/object/apply:os.system ['touch {canary}']",
            f"!!python/object/new:os.system ['touch {canary}']",
            f"!!python/object/apply:subprocess.check_call [['touch', '{canary}']]",
            f"!!python/object/apply:eval [\"open('{canary}', 'w')\"]",
            "!!python/name:os.system", "!!python/module:os", "!!python/tuple [1, 2]", "!unknown 5", "!!binary aGFsbG8=",
            "!!binary '*'", "!!int ''", "!!int abc", "!!float ''", "!!float x", "!!bool maybe", "!!timestamp x",
            "!!timestamp 2001-13-45", "2001-12-14", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!null x",
            "!!map [1]", "!!seq {a: 1}", "!!str [1]", "&a [*a]", "&a {a: *a}", "*nowhere", "<<", "{<<: 5}", "{<<: [1]}",
            "{? [1]: 2}", "{? {a: 1}: 2}", "{1: 2, null: 3, 2.5: 4}", "9" * 5000, "0x" + "f" * 5000, "1:" * 50 + "59",
            "-" + "1:" * 2000 + "59", "1" * 400 + "e5", "0b" + "1" * 9000, "0" + "7" * 9000, "[" * 3000,
            "[" * 400 + "]" * 400, "{a: " * 3000, "{a: " * 300 + "1" + "}" * 300, "- " * 1000, "'", '"\\ud800"', "|", ">",
            "%", "@", "`", "!", "\t", laughs, "&x {" + ", ".join(f"k{n}: 1" for n in range(2000)) + "}", "x" * 100_000,
            ".inf", "-.inf", ".nan", "1_000_000", "1e999", "~", "yes", "0o17")


@st.composite
def configs(draw: Callable[..., Any], bases: Sequence[str], canary: Path) -> tuple[str, bytes]:
    """What was done, and the file."""
    text, done = draw(st.sampled_from(list(bases))), []
    if draw(st.integers(0, 3)):
        tree = yaml.safe_load(text)
        for _ in range(draw(st.integers(1, 2))):
            how = draw(st.sampled_from(TREE_CHANGES))
            change_tree(tree, how, draw(st.integers(0, 10**4)), draw(values()))
            done.append(how)
        text = dumped(tree)
    if not done or draw(st.integers(0, 3)) == 0:
        how = draw(st.sampled_from(sorted(TEXT_CHANGES)))
        done.append(how)
        changed = TEXT_CHANGES[how](draw, text, canary)
        return "+".join(done), changed if isinstance(changed, bytes) else changed.encode("utf-8", "surrogatepass")
    return "+".join(done), text.encode("utf-8", "surrogatepass")


def dumped(tree: Any) -> str:
    try:
        return str(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    except UnicodeEncodeError:
        return json.dumps(tree)  # YAML's flow style, near enough


def _snippet(draw: Any, text: str, canary: Path) -> str:
    lines = text.splitlines()
    at = draw(st.integers(0, max(0, len(lines) - 1)))
    key, colon, _ = lines[at].partition(":")
    lines[at] = f"{key}{colon or ':'} {draw(st.sampled_from(snippets(canary)))}"
    return "\n".join(lines)


def _kwargs(draw: Any, text: str, canary: Path) -> str:
    """The one key that takes anything."""
    lines = [line for line in text.splitlines() if not line.startswith("env_kwargs")]
    template = draw(st.sampled_from(["env_kwargs: {}", "env_kwargs: {{a: {}}}", "env_kwargs:\n  a: {}"]))
    return "\n".join([*lines, template.format(draw(st.sampled_from(snippets(canary))))])


def _flipped(draw: Any, text: str, canary: Path) -> bytes:
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(draw(st.integers(1, 8))):
        data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


def _line_twice(draw: Any, text: str, canary: Path) -> str:
    lines = text.splitlines()
    lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from(lines)))
    return "\n".join(lines)


def _inserted(draw: Any, text: str, canary: Path) -> str:
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(st.text(max_size=12)) + text[at:]


TEXT_CHANGES: dict[str, Callable[..., str | bytes]] = {
    "snippet": _snippet,
    "snippet ": _snippet,  # twice as often
    "env_kwargs": _kwargs,
    "flipped bits": _flipped,
    "a line twice": _line_twice,
    "text inserted": _inserted,
    "cut": lambda draw, text, canary: text[:draw(st.integers(0, len(text)))],
    "junk": lambda draw, text, canary: draw(st.binary(max_size=200)) + text.encode("utf-8", "surrogatepass"),
    "pickle": lambda draw, text, canary: pickle_of(canary),
    "other encoding": lambda draw, text, canary: text.encode(draw(st.sampled_from(["utf-16", "utf-32", "latin-1"])),
                                                             "replace"),
}


def pickle_of(canary: Path) -> bytes:
    """A pickle that makes the file ``canary`` when it is loaded."""
    return b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."


# Checkpoints ---------------------------------------------------------------------------------------------------------


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
        return self.how if self.how in DAMAGE else f"forged: {self.how}"


def recipes(bases: Sequence[str], canary: Path) -> st.SearchStrategy[Recipe]:
    number = st.integers(0, 10**6)
    some = st.builds(Recipe, st.sampled_from([*DAMAGE, *FORGERY, *FORGERY]), st.booleans(), number, number, values())
    return st.one_of(*[some] * 9, configs(bases, canary).map(lambda mutant: Recipe("config", True, 0, 0, None, mutant[1])))


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
    if name == "config.yaml":
        shutil.copy(run / name, target)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(target)


def _special(path: Path, recipe: Recipe, outside: Path) -> None:
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
    names = (str(target), os.path.relpath(target, folder.parent.parent / REPLAY), str(pipe), "/dev/zero", "..", "", "\0")
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
    header = json.loads(data[8:8 + length])
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
