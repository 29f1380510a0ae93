"""METHODS: the only place where a method is named. Strings only, so that reading it loads nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass

from xrl.common.errors import ConfigError
from xrl.common.registry import suggestion


@dataclass(frozen=True)
class MethodEntry:
    """Where the parts of a method live, each as ``"package.module:Class"``.

    ``configs`` is the folder of its YAML files: a name inside ``xrl/configs`` or an absolute path. ``observations`` and
    ``actions``: the kinds (``xrl.common.row.ObsSpec`` and ``ActionSpec``) that the method takes; agents refuse others.
    """

    agent: str
    learner: str
    policy: str
    schema: str
    configs: str
    observations: tuple[str, ...] = ("image", "vector")
    actions: tuple[str, ...] = ("discrete", "continuous")


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


def _shipped(name: str, file: str, *actions: str) -> MethodEntry:
    """A method of our own: its parts have the same file name in every room."""
    return MethodEntry(f"xrl.agents.{file}:{name}Agent", f"xrl.learners.{file}:{name}Learner",
                       f"xrl.policies.{file}:{name}Policy", f"xrl.configs.schemas.{file}:{name}Config", file,
                       actions=actions)


METHODS = MethodRegistry({
    "DreamerV1": _shipped("DreamerV1", "dreamer_v1", "discrete", "multi_discrete", "continuous"),
    "DreamerV2": _shipped("DreamerV2", "dreamer_v2", "discrete", "multi_discrete", "continuous"),
    "DreamerV3": _shipped("DreamerV3", "dreamer_v3", "discrete", "multi_discrete", "continuous"),
    "PPO": _shipped("PPO", "ppo", "discrete", "multi_discrete", "continuous"),
    "DQN": _shipped("DQN", "dqn", "discrete"),
    "SAC": _shipped("SAC", "sac", "continuous"),
})


def find_method(name: str) -> str:
    """The canonical name of a method, whatever the case of ``name``.

    Raises ConfigError naming the nearest method if there is no such method.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise ConfigError(f"method: unknown method {repr(name)[:80]}.{suggestion(str(name)[:80], METHODS)} "
                          f"Known methods: {', '.join(METHODS)}")
    return METHODS.canonical(name)


def check_spaces(method: str, obs_kinds: Iterable[str], action_kind: str) -> None:
    """Refuse an environment that ``method`` cannot learn from.

    Raises ConfigError naming what the environment has and the methods that take it.
    """
    wanted = {*obs_kinds}

    def takes(entry: MethodEntry) -> bool:
        return wanted <= {*entry.observations} and action_kind in entry.actions

    entry = METHODS[method]
    if takes(entry):
        return
    if action_kind not in entry.actions:
        problem = f"takes {_listed(entry.actions)} actions, and this environment has {action_kind} ones"
    else:
        problem = (f"takes {_listed(entry.observations)} observations, "
                   f"and this environment has {_listed(sorted(wanted))} ones")
    others = [name for name in METHODS if takes(METHODS[name])]
    raise ConfigError(f"method: {METHODS.canonical(method)} {problem}; "
                      + (f"methods that can: {', '.join(others)}" if others else "no method here can"))


def _listed(words: Sequence[str]) -> str:
    return " and ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} and {words[-1]}"
