"""Which methods there are: what each takes and which files it ships. Reads names and folders, loads nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import xrl.configs
from xrl.methods import METHODS

ANY = "any other environment"


@dataclass(frozen=True)
class Offer:
    """What a method offers. ``files``: environment family -> the environments that have a file of their own;
    ``whole``: families with a file for all of their environments. ``presets``: official is what the files say."""

    method: str
    observations: tuple[str, ...]
    actions: tuple[str, ...]
    files: dict[str, tuple[str, ...]]
    whole: tuple[str, ...]
    presets: tuple[str, ...]

    def __str__(self) -> str:
        lines = [self.method, f"  observations  {', '.join(self.observations)}",
                 f"  actions       {', '.join(self.actions)}"]
        places = [_place(family, self.files.get(family, ()), family in self.whole)
                  for family in sorted({*self.files, *self.whole}, key=lambda family: (family == "default", family))]
        lines += [f"  {'files' if index == 0 else '':14}{place}" for index, place in enumerate(places)]
        if not places:
            lines.append("  files         none: its schema has the defaults")
        return "\n".join([*lines, f"  presets       {', '.join(('official', *self.presets))}"])


def _place(family: str, env_ids: tuple[str, ...], whole: bool) -> str:
    if family == "default":
        return f"{ANY} (default.yaml)"
    return f"{family}: {', '.join([*(['all'] if whole else []), *env_ids])}"


def offers() -> list[Offer]:
    """What every method of METHODS offers, those that were registered by a user too."""
    return [_offer(method) for method in METHODS]


def _offer(method: str) -> Offer:
    entry = METHODS[method]
    folder = Path(xrl.configs.__path__[0]) / entry.configs
    names = sorted(path.relative_to(folder).with_suffix("") for path in folder.rglob("*.yaml"))
    files: dict[str, tuple[str, ...]] = {}
    for name in names:
        if len(name.parts) == 2 and name.parts[0] != "presets":
            files[name.parts[0]] = (*files.get(name.parts[0], ()), name.parts[1])
    return Offer(method, entry.observations, entry.actions, files,
                 tuple(name.name for name in names if len(name.parts) == 1),
                 tuple(name.name for name in names if name.parts[:-1] == ("presets",)))


def describe_methods() -> str:
    """What `xrl methods` prints."""
    return "\n\n".join(map(str, offers()))
