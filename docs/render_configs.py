"""Renders the table of all keys in docs/configs.md from the schema: ``python docs/render_configs.py``."""

from __future__ import annotations

import json
from pathlib import Path

from xrl.common.config_keys import keys_of
from xrl.configs.schemas.base import RunConfig
from xrl.configs.schemas.dreamer_v2 import DreamerV2Config

PAGE = Path(__file__).with_name("configs.md")
BEGIN, END = "<!-- keys: begin -->\n", "<!-- keys: end -->"


def render(schema: type[RunConfig]) -> str:
    """Markdown: one table of the run keys, then one per section, in the schema's order."""
    keys = keys_of(schema)
    groups: dict[str, list[str]] = {"": []}
    for dotted, info in keys.leaves.items():
        default = "required" if info.is_required() else f"`{json.dumps(keys.defaults[dotted])}`"
        cells = [f"`{dotted}`", default, info.json_schema_extra["unit"], info.description.replace("|", "\\|")]
        groups.setdefault(dotted.rpartition(".")[0], []).append(f"| {' | '.join(cells)} |")
    parts = []
    for section, rows in groups.items():
        title = f"`{section}`: {keys.sections[section].description}" if section else "Run keys"
        parts += [f"### {title}", "", "| key | default | unit | meaning |", "|---|---|---|---|", *rows, ""]
    return "\n".join(parts)


def updated(page: str) -> str:
    """``page`` with what stands between BEGIN and END rendered anew."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{render(DreamerV2Config)}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
