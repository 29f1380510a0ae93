"""What fuzz.py tries: configurations changed at random, by hypothesis strategies. Runs are in forgeries.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import yaml
from hypothesis import strategies as st

NUMBERS = (0, -1, 1, 2, 7, 2**31, 2**63, -2**63, 10**18, -10**18, 10**400, 0.5, -0.5, 1e-300, 1e300, float("nan"),
           float("inf"), float("-inf"))
WORDS = ("", " ", "abc", "1e-4", "1e999", "nan", "inf", "-", "10min", "0 min", "1e400min", "../..", "/etc/passwd",
         "a/b", "off", "None", "a" * 300, "\x00", "\ud800", "\u202e", "line\nbreak", "=", "${HOME}", "$tensor",
         "$bytes")


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


@cache  # a strategy takes long to make
def values() -> st.SearchStrategy[Any]:
    leaves = st.one_of(st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(WORDS), st.integers(),
                       st.floats(), st.text(max_size=20), st.integers(1, 40).map(lambda depth: nested(depth)))
    return st.one_of(leaves, leaves, st.lists(leaves, max_size=4),
                     st.dictionaries(st.text(max_size=8), leaves, max_size=3))


def nested(depth: int) -> Any:
    value: Any = 0
    for number in range(depth):
        value = [value] if number % 2 else {"a": value}
    return value


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every entry of nested dicts and lists; of a long list (a generator's state) the first three."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(
        tree[:3] if len(tree) > 20 else tree) if isinstance(tree, list) else ()
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
            "[" * 400 + "]" * 400, "{a: " * 3000, "{a: " * 300 + "1" + "}" * 300, "- " * 1000, "'", '"\\ud800"', "|",
            ">", "%", "@", "`", "!", "\t", laughs, "&x {" + ", ".join(f"k{n}: 1" for n in range(2000)) + "}",
            "x" * 100_000,
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
