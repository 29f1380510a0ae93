"""The doors between the rooms, and habits that a machine can check, read from the syntax trees of xrl/."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "xrl"
FILES = sorted(PACKAGE.rglob("*.py"))

# Imports go rightwards only; rooms of one group do not know each other, the ground floor excepted.
GROUPS = [
    {"__init__", "__main__"},
    {"player"},
    {"runners"},
    {"agents"},
    {"learners"},
    {"policies"},
    {"world_models"},
    {"nn", "memory", "environment", "report"},
    {"ops", "common", "configs", "methods"},
]
GROUND = len(GROUPS) - 1
RANK = {room: rank for rank, group in enumerate(GROUPS) for room in group}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, dotted name) of every import; a relative one begins with a dot."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found += [(node.lineno, f"{module}.{alias.name}" if module == "xrl" else module) for alias in node.names]
    return found


def wrong_doors(room: str, tree: ast.AST) -> list[str]:
    wrong = []
    for line, name in imports(tree):
        parts = name.split(".")
        if parts[0] == "":
            wrong.append(f"line {line}: relative import {name!r}")
        elif parts[0] == "xrl":
            target = parts[1] if len(parts) > 1 and parts[1] in RANK else "__init__"
            sideways = RANK[target] == RANK[room] < GROUND and target != room and RANK[room] > 0
            if RANK[target] < RANK[room] or sideways:
                wrong.append(f"line {line}: {room} must not import {name!r}")
        elif parts[0] == "torch" and room == "environment":
            wrong.append(f"line {line}: environments know nothing of torch")
    return wrong


def host_transfers(tree: ast.AST) -> list[str]:
    """Calls of ``.item()``, which make the host wait for the device."""
    return [f"line {node.lineno}: .item()" for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "item"
            and not node.args]


def guessed_keys(tree: ast.AST) -> list[str]:
    """getattr, hasattr or setattr on something called config or cfg: keys are declared in a schema, never guessed."""
    return [f"line {node.lineno}: {ast.unparse(node)}" for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            and node.func.id in ("getattr", "hasattr", "setattr") and node.args
            and any(word in ast.unparse(node.args[0]).lower() for word in ("config", "cfg"))]


def long_functions(tree: ast.AST) -> list[str]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [f"line {node.lineno}: {node.name} has {length} lines" for node in functions
            if (length := (node.end_lineno or 0) - node.lineno + 1) > 60]


@pytest.fixture(params=FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def source(request) -> tuple[str, ast.AST, str]:
    text = request.param.read_text(encoding="utf-8")
    return room_of(request.param), ast.parse(text), text


def test_every_room_has_its_place():
    assert {room_of(path) for path in FILES} <= set(RANK)


def test_imports_go_one_way(source):
    room, tree, _ = source
    assert wrong_doors(room, tree) == []


def test_metrics_stay_on_the_device(source):
    room, tree, _ = source
    if room in ("learners", "policies", "world_models", "ops"):
        assert host_transfers(tree) == []


def test_config_keys_are_never_guessed(source):
    _, tree, _ = source
    assert guessed_keys(tree) == []


def test_functions_and_files_stay_short(source):
    _, tree, text = source
    assert long_functions(tree) == []
    assert text.count("\n") < 400


@pytest.mark.parametrize(("room", "code", "count"), [
    ("nn", "import xrl.memory.sequence_replay", 1),  # sideways
    ("nn", "from xrl.policies import x", 1),  # leftwards
    ("nn", "from xrl import learners", 1),
    ("nn", "import xrl", 1),  # the top
    ("nn", "from . import layers", 1),
    ("nn", "from .layers import x", 1),
    ("nn", "from xrl.nn.layers import x\nfrom xrl.ops import kl\nimport torch", 0),
    ("common", "from xrl.configs.schemas import base\nfrom xrl.methods import METHODS", 0),
    ("common", "def f():\n    from xrl.nn import layers", 1),  # however deep
    ("configs", "import xrl.runners.runner", 1),
    ("learners", "from xrl.policies.dreamer_v2 import x", 0),
    ("policies", "from xrl.learners.dreamer_v2 import x", 1),
    ("environment", "import torch.nn", 1),
    ("environment", "from torch import nn", 1),
    ("__main__", "import xrl\nfrom xrl.runners import runner", 0),
])
def test_the_checker_sees_wrong_doors(room, code, count):
    assert len(wrong_doors(room, ast.parse(code))) == count


def test_the_checkers_see_bad_habits():
    tree = ast.parse("x.item()\nx.items()\ngetattr(self.config, 'a', 1)\nhasattr(cfg, 'a')\ngetattr(env, 'a')\n"
                     "def f():\n" + "    pass\n" * 60)
    assert len(host_transfers(tree)) == 1
    assert len(guessed_keys(tree)) == 2
    assert len(long_functions(tree)) == 1
