"""Renders the tables of all keys from the schemas, those of every method in docs/configs.md, and a method's own on its
page in docs/methods, if that has a place for them: ``python docs/render_configs.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from xrl.common.config_keys import keys_of
from xrl.common.registry import load
from xrl.configs.schemas.base import RunConfig
from xrl.methods import METHODS

PAGE = Path(__file__).with_name("configs.md")
BEGIN, END = "<!-- keys: begin -->\n", "<!-- keys: end -->"


def render(schema: type[RunConfig], title: str, level: int, without: type[RunConfig] | None = None) -> str:
    """Markdown: one table of the flat keys under ``title``, then one per section, in the schema's order. Keys of the
    schema ``without`` are left out where they are the same: default, unit and meaning."""
    keys = keys_of(schema)
    known = {} if without is None else _cells(without)
    groups: dict[str, list[str]] = {"": []}
    for dotted, cells in _cells(schema).items():
        if known.get(dotted) != cells:
            groups.setdefault(dotted.rpartition(".")[0], []).append(f"| {' | '.join(cells)} |")
    parts = [f"{'#' * level} {title}", ""]
    for section, rows in groups.items():
        if section:
            parts += [f"{'#' * (level + 1)} `{section}`: {keys.sections[section].description}", ""]
        if rows:
            parts += ["| key | default | unit | meaning |", "|---|---|---|---|", *rows, ""]
    return "\n".join(parts)


def _cells(schema: type[RunConfig]) -> dict[str, list[Any]]:
    """Of every key: what its row shows."""
    keys = keys_of(schema)
    return {dotted: [f"`{dotted}`", "required" if info.is_required() else f"`{json.dumps(keys.defaults[dotted])}`",
                     info.json_schema_extra["unit"], info.description.replace("|", "\\|")]
            for dotted, info in keys.leaves.items()}


def tables() -> dict[Path, list[str]]:
    """Page -> the tables that stand between BEGIN and END there."""
    own = {method: PAGE.parent / "methods" / f"{METHODS[method].configs}.md" for method in METHODS}
    own = {method: page for method, page in own.items() if page.exists() and BEGIN in page.read_text(encoding="utf-8")}
    shared = [render(load(METHODS[method].schema), method, 3, RunConfig) for method in METHODS if method not in own]
    return {PAGE: [render(RunConfig, "Keys of every method", 3), *shared],
            **{page: [render(load(METHODS[method].schema), "Keys", 2, RunConfig)] for method, page in own.items()}}


def updated(page: str, tables: list[str]) -> str:
    """``page`` with what stands between BEGIN and END rendered anew."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n" + "\n".join(tables) + f"\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    for path, rendered in tables().items():
        path.write_text(updated(path.read_text(encoding="utf-8"), rendered), encoding="utf-8")
