"""Reading and writing YAML, and ``key=value``: text to pairs, with errors of one line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from xrl.common.errors import ConfigError
from xrl.common.files import write_atomic
from xrl.common.registry import suggestion

Pairs = list[tuple[str, Any]]

# PyYAML follows YAML 1.1, where 1e-4 and 5e7 are strings; these are the floats of YAML 1.2 that it misses.
_EXPONENT = re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9]*)?[eE][-+]?[0-9]+$")


_MOST_ENTRIES = 10_000  # keys and values
_DEEPEST = 50  # levels
_MOST_BITS = 2_000  # more than any float has


class _Loader(yaml.SafeLoader):
    """A SafeLoader to which 1e-4 is a number and a key that is given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} is given twice", key_node.start_mark)
            seen.add(key_node.value if isinstance(key_node, yaml.ScalarNode) else id(key_node))
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """A SafeDumper that quotes the strings its loader would read as numbers."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def shown(text: str, longest: int = 200) -> str:
    """``text`` as it may stand in an error of one line."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= longest else f"{text[:longest - 3]}..."


def read_yaml(path: str | Path) -> Pairs:
    """The pairs of a YAML file's mapping.

    Raises ConfigError if the file is missing (naming the nearest file beside it), unreadable, empty, no mapping
    or not YAML, or if a key occurs twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        where = "" if path.parent.is_dir() else f" (there is no folder {str(path.parent)!r})"
        raise ConfigError(f"{path}: no such config file{where}.{suggestion(path.name, beside)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a text file: {shown(str(error))}") from error
    content = _parse(text, str(path))
    if content is None:
        raise ConfigError(f"{path}: the file is empty; write at least one 'key: value'")
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: must hold 'key: value' lines, not a {type(content).__name__}")
    return [(str(key), value) for key, value in content.items()]


def write_yaml(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a mapping that `read_yaml` reads back equal. Raises ConfigError if a value has no YAML form."""
    try:
        text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    except yaml.representer.RepresenterError as error:
        raise ConfigError(f"{path}: cannot be written: {error.args[-1]!r} has no YAML form; "
                          "give numbers, strings, lists and mappings only") from error
    write_atomic(Path(path), text.encode())


def parse_assignments(assignments: Iterable[str]) -> Pairs:
    """``["a.b=1e-3", ...]`` to pairs; values are YAML, so ``true``, ``null`` and ``[1, 2]`` mean what they say.

    Raises ConfigError if one is not ``key=value`` or its value is not YAML.
    """
    pairs = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"command line: {assignment!r} must look like key=value")
        pairs.append((key.strip(), _parse(text, f"command line: {key.strip()}")))
    return pairs


def _parse(text: str, label: str) -> Any:
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise ConfigError(f"{label}: {where}{shown(error.problem or error.context or '')}") from error
    # What PyYAML raises for `!!bool maybe`, `!!int ''`, `!!timestamp x` is no YAMLError.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise ConfigError(f"{label}: not YAML: {shown(' '.join(str(error).split()))}") from error
    _check_size(content, label)
    return content


def _check_size(content: Any, label: str) -> None:
    """Aliases let a few lines stand for more than any memory holds, or for something that contains itself; and Python
    writes out no integer of more than 4300 digits."""
    waiting, seen = [(content, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if depth > _DEEPEST:
            raise ConfigError(f"{label}: is nested deeper than {_DEEPEST} levels; make it flatter")
        if seen > _MOST_ENTRIES:
            raise ConfigError(f"{label}: stands for more than {_MOST_ENTRIES} entries, those behind an alias (*) "
                              f"counted each time; write fewer")
        if isinstance(value, int) and value.bit_length() > _MOST_BITS:
            raise ConfigError(f"{label}: holds an integer of {value.bit_length()} bits; write a smaller number")
        if isinstance(value, Mapping):
            waiting.extend((entry, depth + 1) for entry in [*value, *value.values()])
        elif isinstance(value, list | tuple | set):
            waiting.extend((entry, depth + 1) for entry in value)
