"""A schema as flat dotted keys: their defaults, what a pair of a layer means, and what is wrong with it."""

from __future__ import annotations

import re
import reprlib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from xrl.common.config_files import shown
from xrl.common.errors import ConfigError
from xrl.common.registry import nearest
from xrl.configs.schemas.base import RunConfig
from xrl.configs.xuance import NOT_NEEDED, RENAMED, VALUES

Schema = type[RunConfig]


@dataclass(frozen=True)
class Keys:
    """The dotted keys of a schema: ``leaves`` hold values, ``sections`` hold leaves and sections."""

    leaves: dict[str, FieldInfo]
    sections: dict[str, FieldInfo]
    defaults: dict[str, Any]

    def leaf_of(self, dotted: str) -> str | None:
        """The leaf that ``dotted`` is, or (``env_kwargs.x``) is an entry of."""
        if dotted in self.leaves:
            return dotted
        head, dot, _ = dotted.partition(".")
        return head if dot and head == "env_kwargs" else None

    def nearest(self, dotted: str) -> str | None:
        """The key that was probably meant: by spelling, or a key inside a section whose last part this is."""
        names = [*self.leaves, *self.sections]
        inside = (name for name in names if name.rpartition(".")[2] == dotted.rpartition(".")[2])
        return nearest(dotted, names) or next(inside, None)


@cache
def keys_of(schema: Schema) -> Keys:
    """Walk the schema once; defaults come from the section *instances*, which may differ from their class's."""
    keys = Keys({}, {}, {})

    def walk(prefix: str, section: type[BaseModel], instance: BaseModel | None) -> None:
        for name, info in section.model_fields.items():
            dotted = prefix + name
            default = info.default if instance is None else dict(instance)[name]
            if isinstance(default, BaseModel):
                keys.sections[dotted] = info
                walk(f"{dotted}.", type(default), default)
            else:
                keys.leaves[dotted] = info
                if not info.is_required():
                    keys.defaults[dotted] = default

    walk("", schema, None)
    return keys


@dataclass(frozen=True)
class Layer:
    """Flat dotted keys and values from one source; ``label`` names the source in errors and origins."""

    label: str
    values: dict[str, Any] = field(default_factory=dict)


def canonical_pairs(label: str, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The top level of a layer with XuanCe's names for ``method``, ``env_name`` and their values made ours."""
    top: dict[str, Any] = {}
    for key, value in pairs:
        ours = RENAMED.get(key, key) if "." not in RENAMED.get(key, key) else key
        if ours in top:
            raise _error(label, key, value, f"{ours!r} is given twice")
        top[ours] = _our_value(ours, value)
    return top


def make_layer(label: str, pairs: Iterable[tuple[str, Any]], schema: Schema) -> Layer:
    """Flatten one source, translate XuanCe's keys and check every key and value.

    Raises ConfigError naming the label, the key, the value and the nearest valid key. Warns once (UserWarning) of
    all keys that XuanCe needs and xrl does not.
    """
    layer, ignored = Layer(label), []
    keys = keys_of(schema)

    def put(prefix: str, items: Iterable[tuple[str, Any]]) -> None:
        for key, value in items:
            given = f"{prefix}{key}"
            dotted = given if given in keys.leaves else RENAMED.get(given, given)
            if dotted in layer.values:
                raise _error(label, given, value, f"{dotted!r} is given twice")
            if keys.leaf_of(dotted):
                layer.values[dotted] = value
            elif given in NOT_NEEDED:
                ignored.append(given)
            elif given in keys.sections or given in _xuance_sections():
                put(f"{given}.", _entries(label, given, value, keys))
            else:
                near = keys.nearest(given)
                raise _error(label, given, value, "unknown key", f" Did you mean {near!r}?" if near else "")

    put("", canonical_pairs(label, pairs).items())
    _check(layer, schema)
    _warn_of(label, ignored, keys)
    return layer


def merge(schema: Schema, layers: Iterable[Layer]) -> tuple[RunConfig, dict[str, str]]:
    """Defaults overlaid by the layers in order: the config, and the label that each key's value came from.

    Raises ConfigError if the values do not fit each other, naming the last layer with a part in it.
    """
    layers = list(layers)
    keys = keys_of(schema)
    values: dict[str, Any] = dict(keys.defaults)
    origins = {key: "default" for key in keys.leaves}
    for layer in layers:
        for dotted, value in layer.values.items():
            leaf = keys.leaf_of(dotted) or dotted
            values[leaf] = value if leaf == dotted else {**values[leaf], dotted[len(leaf) + 1:]: value}
            origins[leaf] = layer.label
    try:
        return schema.model_validate(_nest(values)), origins
    except ValidationError as error:
        problem = _problem(error.errors()[0]["msg"])
        named = set(re.findall(r"\w[\w.]*\w", problem))
        label = next((layer.label for layer in reversed(layers) if named & layer.values.keys()), "config")
        raise ConfigError(f"{label}: {problem}") from None


def flatten(config: RunConfig) -> dict[str, Any]:
    """Dotted key -> value of every leaf, in the schema's order."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, section: BaseModel) -> None:
        for name, value in section:
            if isinstance(value, BaseModel):
                walk(f"{prefix}{name}.", value)
            else:
                flat[prefix + name] = value

    walk("", config)
    return flat


def _check(layer: Layer, schema: Schema) -> None:
    """Validate a layer alone, on top of the defaults; whether layers fit each other is for `merge` to see."""
    keys = keys_of(schema)
    required = {key: "-" for key, info in keys.leaves.items() if info.is_required()}
    plain = {key: value for key, value in layer.values.items() if key in keys.leaves}
    try:
        schema.model_validate(_nest({**required, **keys.defaults, **plain}))
    except ValidationError as error:
        for problem in error.errors():
            parts = [str(part) for part in problem["loc"]]
            dotted = next((key for n in range(1, len(parts) + 1) if (key := ".".join(parts[:n])) in plain), None)
            if dotted is not None:
                raise _error(layer.label, dotted, plain[dotted], _problem(problem["msg"])) from None


def _entries(label: str, dotted: str, value: Any, keys: Keys) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(key), entry) for key, entry in value.items()]
    inside = [key[len(dotted) + 1:] for key in keys.leaves if key.startswith(f"{dotted}.")]
    raise _error(label, dotted, value, f"must be a section, with keys such as {', '.join(inside[:4])}")


def _our_value(key: str, value: Any) -> Any:
    return VALUES.get(key, {}).get(value, value) if isinstance(value, str) else value


@cache
def _xuance_sections() -> frozenset[str]:
    dotted = [key for key in (*RENAMED, *NOT_NEEDED) if "." in key]
    return frozenset(key[:dot.start()] for key in dotted for dot in re.finditer(r"\.", key))


def _warn_of(label: str, ignored: list[str], keys: Keys) -> None:
    if ignored:
        names = [f"{key} (see {NOT_NEEDED[key]})" if NOT_NEEDED[key] in keys.leaves else key for key in ignored]
        warnings.warn(f"{label}: keys of XuanCe that are not needed here and have no effect: {', '.join(names)}",
                      UserWarning, stacklevel=2)


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for dotted, value in flat.items():
        *sections, name = dotted.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return nested


def _problem(message: str) -> str:
    """pydantic's wording, shortened to what follows ``key:``."""
    message = message.removeprefix("Value error, ")
    return re.sub(r"^Input should be", "must be", message)


def _error(label: str, key: str, value: Any, problem: str, hint: str = "") -> ConfigError:
    return ConfigError(f"{label}: {shown(key, 100)}: {shown(problem)} (value {_bounded(value)}).{hint}")


def _bounded(value: Any) -> str:
    """At most 80 characters of a value, found without writing out all of it: aliases make a few lines of YAML as large
    as one likes."""
    short = reprlib.Repr()
    short.maxlevel, short.maxother, short.maxstring, short.maxlong = 4, 80, 80, 80
    short.maxlist = short.maxtuple = short.maxdict = short.maxset = 12
    try:
        return shown(short.repr(value), 80)
    except ValueError:  # Python writes out no integer of more than 4300 digits
        return f"a huge {type(value).__name__}"
