"""METHODS: the only place where a method is named. Strings only, so that reading it loads nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass

from xrl.common.errors import ConfigError
from xrl.common.registry import suggestion


@dataclass(frozen=True)
class MethodEntry:
    """Where the parts of a method live, each as ``"package.module:Class"``.

    ``configs`` is the folder of its YAML files: a name inside ``xrl/configs`` or an absolute path.
    """

    agent: str
    learner: str
    policy: str
    schema: str
    configs: str


class MethodRegistry(MutableMapping[str, MethodEntry]):
    """Method name -> entry, found whatever its case; iteration yields the names as they were registered."""

    def __init__(self, entries: dict[str, MethodEntry]) -> None:
        self._entries: dict[str, tuple[str, MethodEntry]] = {}
        self.update(entries)

    def __getitem__(self, name: str) -> MethodEntry:
        return self._entries[name.lower()][1]

    def __setitem__(self, name: str, entry: MethodEntry) -> None:
        self._entries[name.lower()] = (name, entry)

    def __delitem__(self, name: str) -> None:
        del self._entries[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def canonical(self, name: str) -> str:
        """``name`` as it was registered. Raises KeyError if it was not."""
        return self._entries[name.lower()][0]


METHODS = MethodRegistry({
    "DreamerV2": MethodEntry(
        agent="xrl.agents.dreamer_v2:DreamerV2Agent",
        learner="xrl.learners.dreamer_v2:DreamerV2Learner",
        policy="xrl.policies.dreamer_v2:DreamerV2Policy",
        schema="xrl.configs.schemas.dreamer_v2:DreamerV2Config",
        configs="dreamer_v2",
    ),
})


def find_method(name: str) -> str:
    """The canonical name of a method, whatever the case of ``name``.

    Raises ConfigError naming the nearest method if there is no such method.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise ConfigError(f"method: unknown method {repr(name)[:80]}.{suggestion(str(name)[:80], METHODS)} "
                          f"Known methods: {', '.join(METHODS)}")
    return METHODS.canonical(name)
