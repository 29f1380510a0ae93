"""How much one reads to follow a gradient step of a method from the runner down: `python -m tests.reading_path`.

A real update is traced, in each of the tasks that the method takes; the longest path counts. On it are the loop of
``Agent`` (LOOP), every function of the method's agent and of ROOMS that the update runs through, and what one has to
know to read those: the first lines and ``__init__`` of their classes, and the classes and constants that they name.
Lines of code count, and the comments and blank lines among them; imports do not, nor docstrings, which are there so
that the code below them need not be read. Acting, storing rows, saving, timing and explaining a run are on other paths.
"""

from __future__ import annotations

import ast
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

from tests.agents.examples import watched_environments
from tests.methods import learn, quick, tasks
from xrl.agents.base import Agent
from xrl.common.config import load_config
from xrl.common.registry import load
from xrl.environment import make_envs
from xrl.methods import METHODS

ROOT = Path(__file__).parents[1]
ROOMS = ("learners", "policies", "world_models", "nn", "memory", "ops", "common")
ELSEWHERE = ("xrl.common.callback", "xrl.common.stopwatch")
LOOP = ("train_until", "step", "updated")
MOST = 1500


def path_of(method: str) -> dict[str, int]:
    """Where -> lines, of the longest of the method's paths."""
    paths = [_path(*task) for task in tasks() if task[0] == method]
    return max(paths, key=lambda path: sum(path.values()))


def _path(method: str, env: str, env_id: str) -> dict[str, int]:
    with watched_environments(), tempfile.TemporaryDirectory() as folder:
        config = load_config(method, env, env_id, overrides=quick(method, model_dir=folder, inspect=False)).config
        with make_envs(config) as envs:
            agent = load(METHODS[method].agent)(config, envs)
            codes = trace_update(agent)
            agent.finish()
    kinds = [kind for kind in type(agent).__mro__ if kind is not Agent and kind.__module__.startswith("xrl.")]
    own = {kind.__module__ for kind in kinds}
    lines = {f"{Agent.__module__}:Agent.{name}": length(node) for name, node in methods_of(class_named(
        Agent.__module__, "Agent")).items() if name in LOOP}
    for kind in kinds:
        _add_head(kind.__module__, class_named(kind.__module__, kind.__name__), lines)
    for module, start in sorted((module_of(code), code.co_firstlineno) for code in codes if module_of(code)):
        if module in own or (module.split(".")[1] in ROOMS and module not in ELSEWHERE):
            _read(module, start, lines)
    return lines


def trace_update(agent: Agent[Any]) -> set[CodeType]:
    """What runs in the agent's second update, from ``Agent.update`` on."""
    learn(agent, 1)
    update: Callable[[int], None] = agent.update
    traced: set[CodeType] = set()

    def tracing(new_steps: int) -> None:
        codes: set[CodeType] = set()
        before = agent.updates
        sys.setprofile(lambda frame, event, _: codes.add(frame.f_code) if event == "call" else None)
        try:
            update(new_steps)
        finally:
            sys.setprofile(None)
        if agent.updates > before and not traced:
            traced.update(codes)

    agent.update = tracing  # type: ignore[method-assign]
    learn(agent, 1)
    return traced


def module_of(code: CodeType) -> str:
    path = Path(code.co_filename)
    return ".".join(path.relative_to(ROOT).with_suffix("").parts) if path.is_relative_to(ROOT / "xrl") else ""


@cache
def tree_of(module: str) -> ast.Module:
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])


def length(node: ast.stmt) -> int:
    """Lines, its docstring and those of what is inside apart."""
    documented = [each for each in ast.walk(node) if isinstance(each, ast.FunctionDef | ast.ClassDef)]
    texts = [each.body[0] for each in documented if ast.get_docstring(each) is not None]
    return (node.end_lineno or 0) - first_line(node) + 1 - sum((text.end_lineno or 0) - text.lineno + 1
                                                               for text in texts)


def methods_of(node: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    return {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}


def class_named(module: str, name: str) -> ast.ClassDef:
    return next(node for node in tree_of(module).body if isinstance(node, ast.ClassDef) and node.name == name)


def _read(module: str, start: int, lines: dict[str, int]) -> None:
    """Add the function at ``start``, and what is needed to read it. One inside another is read with that one."""
    for outer in tree_of(module).body:
        if not first_line(outer) <= start <= (outer.end_lineno or 0):
            continue
        if isinstance(outer, ast.FunctionDef):
            _add(f"{module}:{outer.name}", module, outer, lines)
        elif isinstance(outer, ast.ClassDef):
            _add_head(module, outer, lines)
            for name, method in methods_of(outer).items():
                if name == "__init__" or first_line(method) <= start <= (method.end_lineno or 0):
                    _add(f"{module}:{outer.name}.{name}", module, method, lines)


def _add(where: str, module: str, node: ast.stmt, lines: dict[str, int]) -> None:
    if where not in lines:
        lines[where] = length(node)
        for place, definition in named(module, node):
            if isinstance(definition, ast.ClassDef):
                _add_head(place, definition, lines)
            else:
                lines.setdefault(f"{place}:{ast.unparse(definition).split()[0]}", length(definition))


def _add_head(module: str, node: ast.ClassDef, lines: dict[str, int]) -> None:
    lines.setdefault(f"{module}:{node.name}", length(node) - sum(map(length, methods_of(node).values())))


def named(module: str, node: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Classes and constants that a node names: of its own module, and of ROOMS."""
    imported = {alias.asname or alias.name: (each.module or "", alias.name) for each in ast.walk(tree_of(module))
                if isinstance(each, ast.ImportFrom) for alias in each.names}
    for name in sorted({each.id for each in ast.walk(node) if isinstance(each, ast.Name)}):
        place, original = imported.get(name, (module, name))
        if place == module or (place.startswith("xrl.") and place.split(".")[1] in ROOMS and place not in ELSEWHERE):
            for each in tree_of(place).body:
                targets = each.targets if isinstance(each, ast.Assign) else [getattr(each, "target", None)]
                if (isinstance(each, ast.ClassDef) and each.name == original) or any(
                        isinstance(target, ast.Name) and target.id == original for target in targets):
                    yield place, each


if __name__ == "__main__":
    for name in sys.argv[1:] or METHODS:
        path = path_of(name)
        print(f"{name}: {sum(path.values())} lines")
        for where, count in sorted(path.items(), key=lambda item: -item[1]):
            print(f"  {count:5} {where}")
