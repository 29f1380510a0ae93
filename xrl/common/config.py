"""Resolve a configuration from its layers.

Later layers win: schema defaults < ``configs/<method>/<env>.yaml`` (``default.yaml`` for families without one)
< ``configs/<method>/<env>/<env_id>.yaml`` < the preset's overlay < the user's file < keywords and ``key=value``.
Each layer is checked before it is merged, so that an error names the source at fault.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import xrl.configs
from xrl.common.config_files import Pairs, parse_assignments, read_yaml, write_yaml
from xrl.common.config_keys import Layer, Schema, canonical_pairs, flatten, keys_of, make_layer, merge
from xrl.common.errors import ConfigError
from xrl.common.registry import load
from xrl.configs.schemas.base import RunConfig
from xrl.methods import METHODS, find_method


@dataclass(frozen=True)
class ResolvedConfig:
    """A validated config, for every dotted key the source of its value, and which sources are the user's."""

    config: RunConfig
    origins: dict[str, str]
    user_labels: frozenset[str]

    def said(self) -> dict[str, Any]:
        """The values that the user gave, in a file, as keywords or on the command line, by dotted key."""
        return {key: value for key, value in flatten(self.config).items() if self.origins[key] in self.user_labels}


def load_config(
    method: str | None = None,
    env: str | None = None,
    env_id: str | None = None,
    config_path: str | Path | None = None,
    overrides: Mapping[str, Any] | Sequence[str] | None = None,
) -> ResolvedConfig:
    """Resolve all layers; ``overrides`` is a mapping (nested or dotted) or a list of ``"a.b=c"``.

    Raises ConfigError, of one line that names the source, the key, the value and the nearest valid key.
    """
    names = [("method", method), ("env_name", env), ("env_id", env_id)]
    last: Pairs = [(key, value) for key, value in names if value is not None]
    if overrides is None or isinstance(overrides, Mapping):
        last += [(str(key), value) for key, value in (overrides or {}).items()]
        last_label = "keyword argument"
    else:
        last += parse_assignments(overrides)
        last_label = "command line"
    sources = [(str(config_path), read_yaml(config_path))] if config_path is not None else []
    return _resolve([*sources, (last_label, last)])


def get_configs(file_dir: str | Path, **overrides: Any) -> dict[str, Any]:
    """The fully resolved config of a YAML file as a plain dict of dicts, lists, numbers and strings.

    The file names at least ``method``, ``env_name`` and ``env_id``; ``overrides`` (nested or dotted) win over it.
    Raises ConfigError.
    """
    return as_dict(load_config(config_path=file_dir, overrides=overrides).config)


def as_config(config: RunConfig | Mapping[str, Any] | Namespace) -> RunConfig:
    """A validated config from a config, a mapping or a Namespace, resolved in full or in part.

    Keys that are missing get the same layers as those missing from a user's file. Raises ConfigError.
    """
    if isinstance(config, RunConfig):
        return config
    if isinstance(config, Namespace):
        config = vars(config)
    if not isinstance(config, Mapping):
        raise ConfigError(f"config: must be a config, a dict or a Namespace, not a {type(config).__name__}")
    return _resolve([("config", [(str(key), value) for key, value in config.items()])]).config


def as_dict(config: RunConfig) -> dict[str, Any]:
    """The config as a plain nested dict, tuples as lists."""
    return cast("dict[str, Any]", _plain(config.model_dump()))


def save_config(config: RunConfig, path: str | Path) -> None:
    """Write the resolved config as YAML that loads equal, through ``config_path`` and `as_config` alike.

    Raises ConfigError if ``env_kwargs`` holds what YAML cannot.
    """
    write_yaml(path, as_dict(config))


def describe(config: RunConfig, origins: Mapping[str, str]) -> str:
    """A table of every key: value, origin, unit and meaning, grouped by section."""
    keys = keys_of(type(config))
    rows: dict[str, list[tuple[str, ...]]] = {}
    for dotted, value in flatten(config).items():
        section, _, name = dotted.rpartition(".")
        info = keys.leaves[dotted]
        extra = cast("dict[str, Any]", info.json_schema_extra or {})
        shown, unit = json.dumps(_plain(value), default=str), str(extra.get("unit", "-"))
        rows.setdefault(section, []).append((name, shown, origins[dotted], unit, info.description or ""))
    widths = [max(len(row[i]) for group in rows.values() for row in group) for i in range(4)]
    lines = []
    for section in sorted(rows, key=bool):  # run keys first; the sort is stable
        if section:
            lines += ["", f"[{section}] {keys.sections[section].description}"]
        for *cells, description in rows[section]:
            lines.append("  ".join([*(c.ljust(w) for c, w in zip(cells, widths, strict=True)), description]).rstrip())
    return "\n".join(lines)


def _resolve(sources: list[tuple[str, Pairs]]) -> ResolvedConfig:
    tops = [(label, canonical_pairs(label, pairs)) for label, pairs in sources]
    method = _find_method(tops)
    schema = cast(Schema, load(METHODS[method].schema))
    user = [make_layer(label, top.items(), schema) for label, top in tops]
    env, env_id = _last(user, "env_name"), _last(user, "env_id")
    shipped = _shipped_layers(method, env, env_id, schema)
    preset = _last([Layer("default", keys_of(schema).defaults), *shipped, *user], "preset")
    overlay = _file_layer(_folder(method) / "presets" / f"{preset}.yaml", schema, f"preset {preset}")
    canonical = Layer(next(layer.label for layer in reversed(user) if "method" in layer.values), {"method": method})
    config, origins = merge(schema, [*shipped, *overlay, *user, canonical])
    return ResolvedConfig(config, origins, frozenset(label for label, _ in sources))


def _find_method(tops: list[tuple[str, dict[str, Any]]]) -> str:
    for label, top in reversed(tops):
        if "method" in top:
            try:
                return find_method(top["method"])
            except ConfigError as error:
                raise ConfigError(f"{label}: {error}") from None
    raise _missing("method", ", ".join(METHODS))


def _last(layers: Sequence[Layer], key: str) -> str:
    for layer in reversed(layers):
        if key in layer.values:
            return str(layer.values[key])
    raise _missing(key, {"env_name": "classic_control", "env_id": "CartPole-v1"}[key])


def _missing(key: str, example: str) -> ConfigError:
    return ConfigError(f"config: {key}: missing; give it in the file, as a keyword or on the command line, "
                       f"e.g. {example}")


def _folder(method: str) -> Path:
    """The method's own folder; joining an absolute path yields that path, so a user's method can bring its own."""
    return Path(xrl.configs.__path__[0]) / METHODS[method].configs


def _shipped_layers(method: str, env: str, env_id: str, schema: Schema) -> list[Layer]:
    folder, family, name = _folder(method), env.replace("/", "-"), env_id.replace("/", "-")
    return [
        *(_file_layer(folder / f"{family}.yaml", schema) or _file_layer(folder / "default.yaml", schema)),
        *_file_layer(folder / family / f"{name}.yaml", schema),
    ]


def _file_layer(path: Path, schema: Schema, label: str | None = None) -> list[Layer]:
    """The layer of a shipped file, or none if there is no such file; absence is the rule, not a mistake."""
    try:
        if not path.is_file():
            return []
    except OSError:  # a name that is too long for any file
        return []
    root = Path(xrl.configs.__path__[0])
    shown = path.relative_to(root) if path.is_relative_to(root) else path
    return [make_layer(label or shown.as_posix(), read_yaml(path), schema)]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
