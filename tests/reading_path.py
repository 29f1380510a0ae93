"""How much one reads to follow a gradient step of a method from the runner down: `python -m tests.reading_path`.

The loop of ``Agent`` (LOOP) leads to the method's ``update``; from there the path goes wherever a name leads that is
used on it: into functions, and into methods of the classes that the method is made of, which are those that its agent,
learner and policy name, directly or through others, in ROOMS. A method that several of these classes have is read in
all of them that the room may know (imports go one way). Of a class on the path its first lines, ``__init__`` and
``forward`` are read in any case; ``__init__`` leads to what it makes, and to its own class, but not to what it calls
elsewhere. Lines of code count, and the comments and blank lines among them; imports do not, nor docstrings, which are
there so that the code below them need not be read. Acting, storing rows, saving, resuming, profiling and explaining a
run are on other paths.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from xrl.methods import METHODS

PACKAGE = Path(__file__).parents[1] / "xrl"
ROOMS = ("learners", "policies", "world_models", "nn", "memory", "ops")
RANK = {"agents": 0, "learners": 1, "policies": 2, "world_models": 3, "nn": 4, "memory": 4, "ops": 5}
CONTAINERS = {*dir(list), *dir(dict), *dir(set)} - {"update"}  # `append` is not that of a replay
LOOP = ("train_until", "step", "updated")
ALWAYS = ("__init__", "forward")
MOST = 1500

Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


@dataclass(frozen=True)
class Place:
    """A definition at the top level of a module."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}:{self.name}"

    @property
    def rank(self) -> int:
        return RANK[self.module.split(".")[1]]

    @property
    def node(self) -> Definition:
        return definitions(self.module)[self.name]

    @property
    def methods(self) -> dict[str, ast.FunctionDef]:
        body = self.node.body if isinstance(self.node, ast.ClassDef) else []
        return {node.name: node for node in body if isinstance(node, ast.FunctionDef)}


@cache
def tree_of(module: str) -> ast.Module:
    path = PACKAGE.parent.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def definitions(module: str) -> dict[str, Definition]:
    """Name -> the function, class or assignment that defines it."""
    found: dict[str, Definition] = {}
    for node in tree_of(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: node for target in targets if isinstance(target, ast.Name)}
    return found


@cache
def imported(module: str) -> dict[str, Place]:
    """Name -> where in this package it comes from."""
    return {alias.asname or alias.name: Place(node.module, alias.name) for node in ast.walk(tree_of(module))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("xrl.") for alias in node.names}


def length(node: ast.stmt) -> int:
    """Lines, its docstring and those of what is inside apart."""
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
    lines = (node.end_lineno or 0) - min([node.lineno, *(each.lineno for each in decorators)]) + 1
    documented = [each for each in ast.walk(node) if isinstance(each, ast.FunctionDef | ast.ClassDef)]
    texts = [each.body[0] for each in documented if ast.get_docstring(each) is not None]
    return lines - sum((text.end_lineno or 0) - text.lineno + 1 for text in texts)


def named(module: str, node: ast.AST) -> Iterator[Place]:
    """The definitions that a node names: those of its own module, and of ROOMS."""
    for name in {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}:
        if name in definitions(module):
            yield Place(module, name)
        elif name in imported(module):
            found = imported(module)[name]
            while found.name in imported(found.module):  # through a package's __init__
                found = imported(found.module)[found.name]
            if found.module.split(".")[1] in ROOMS and found.name in definitions(found.module):
                yield found


def made_of(method: str) -> set[Place]:
    """The classes that a method is made of."""
    entry, classes = METHODS[method], set()
    waiting, seen = [Place(*part.split(":")) for part in (entry.agent, entry.learner, entry.policy)], set()
    while waiting:
        place = waiting.pop()
        if place not in seen:
            seen.add(place)
            waiting += named(place.module, place.node)
            if isinstance(place.node, ast.ClassDef):
                classes.add(place)
    return classes


@dataclass
class Walk:
    """``lines``: where -> how many, of what was read; ``classes``: those that methods are looked for in."""

    classes: set[Place]
    lines: dict[str, int] = field(default_factory=dict)

    def read(self, where: str, module: str, node: ast.stmt) -> None:
        if where in self.lines:
            return
        self.lines[where] = length(node)
        for place in sorted(named(module, node), key=str):
            if place in self.classes:
                self.enter(place)
            elif not isinstance(place.node, ast.ClassDef):
                self.read(str(place), place.module, place.node)
        owner = where.removesuffix(".__init__")
        used = {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)
                and (owner == where or ast.unparse(each.value) == "self")} - CONTAINERS
        for name in sorted(used):
            for place in sorted(self.classes, key=str):
                if name in place.methods and owner in (where, str(place)) and place.rank >= Place(module, "").rank:
                    self.enter(place)
                    self.read(f"{place}.{name}", place.module, place.methods[name])

    def enter(self, place: Place) -> None:
        """A class comes onto the path."""
        if str(place) in self.lines:
            return
        self.lines[str(place)] = length(place.node) - sum(map(length, place.methods.values()))
        for name in ALWAYS:
            if name in place.methods:
                self.read(f"{place}.{name}", place.module, place.methods[name])


def path_of(method: str) -> dict[str, int]:
    """Where -> lines, of everything on the path."""
    base, agent = Place("xrl.agents.base", "Agent"), Place(*METHODS[method].agent.split(":"))
    walk = Walk(made_of(method), {f"{base}.{name}": length(base.methods[name]) for name in LOOP})
    walk.enter(agent)
    walk.read(f"{agent}.update", agent.module, agent.methods["update"])
    return walk.lines


if __name__ == "__main__":
    for name in sys.argv[1:] or METHODS:
        path = path_of(name)
        print(f"{name}: {sum(path.values())} lines")
        for where, count in sorted(path.items(), key=lambda item: -item[1]):
            print(f"  {count:5} {where}")
