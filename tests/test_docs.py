"""The documentation is true: its Python runs, its command lines resolve, its tables and links match the code.

Every ``python`` block of every page runs, the text unchanged: the blocks of a page in order, in one namespace, in
an empty folder. One more configuration layer, on top of everything, makes networks and runs small. A block whose
first line is a comment with a file name is that file; a Python file is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import xrl
from tests.methods import debug, quick, tasks
from xrl.__main__ import _COMMANDS, _check_usage, _import_user_module, _parser
from xrl.agents.timing import _key
from xrl.common import config as config_module
from xrl.common.config import load_config
from xrl.common.config_keys import Layer, Schema, keys_of, merge
from xrl.common.logger import COUNTERS
from xrl.common.registry import load
from xrl.configs.xuance import RENAMED
from xrl.environment import REGISTRY_ENV
from xrl.methods import METHODS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
FILE_NAME = re.compile(r"# ([\w-]+\.(?:py|yaml))\b")
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`((?:xrl|tests|docs)/[\w./-]+\.(?:py|yaml|md))(?::([\w.]+))?`")

SHIPPED = tuple(METHODS)  # pages register methods of their own
SMALL = {"running_steps": 60, "start_training": 30, "eval_interval": 30, "test_episode": 2, "train_every": 15,
         "buffer_size": 1000, "environment.time_limit": 25, "logger": "none", "device": "cpu"}


def small_layer(schema: Schema) -> Layer:
    """The debug preset of the shipped method that has this schema, or the nearest one above it, and SMALL."""
    known = keys_of(schema).leaves
    shipped = [method for method in SHIPPED if issubclass(schema, load(METHODS[method].schema))]
    nearest = max(shipped, key=lambda method: len(load(METHODS[method].schema).__mro__), default=SHIPPED[0])
    return Layer("small", {key: value for key, value in {**debug(nearest), **SMALL}.items() if key in known})


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


@pytest.fixture
def small(monkeypatch, tmp_path):
    """An empty folder to run in, a last layer that makes everything small, and registries put back afterwards."""
    def merge_small(schema, layers):
        return merge(schema, [*layers, small_layer(schema)])

    monkeypatch.setattr(config_module, "merge", merge_small)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    families, methods, modules, threads = dict(REGISTRY_ENV), dict(METHODS.items()), set(sys.modules), (
        torch.get_num_threads())
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)
    REGISTRY_ENV.clear()
    REGISTRY_ENV.update(families)
    METHODS.clear()
    METHODS.update(methods)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_python_runs_and_command_lines_resolve(page, small, monkeypatch):
    python, commands = blocks(page, "python"), blocks(page, "console")
    for text in [*python, *blocks(page, "yaml")]:
        if named := FILE_NAME.match(text):
            (small / named[1]).write_text(text, encoding="utf-8")
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for number, text in enumerate(python, 1):
        if named := FILE_NAME.match(text):
            importlib.import_module(Path(named[1]).stem)
        else:
            exec(compile(text, f"{page_id(page)}, Python block {number}", "exec"), module.__dict__)
    for line in "".join(commands).splitlines():
        if line.startswith(("xrl ", "python -m xrl ")):
            command, *arguments = shlex.split(line.removeprefix("python -m "), comments=True)[1:]
            said = _parser().parse_intermixed_args([command, *arguments])
            _check_usage(said, _COMMANDS[command])
            if command in ("train", "test", "benchmark", "profile", "config") and said.resume is None:
                _import_user_module(said.module)
                load_config(said.method, said.env, said.env_id, said.config, said.words)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_blocks_are_of_a_known_kind(page):
    languages = re.findall(r"^```(\w*)$", page.read_text(encoding="utf-8"), re.M)[::2]
    assert set(languages) <= {"python", "yaml", "console", "text"}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_and_names_of_code_exist(page):
    text = page.read_text(encoding="utf-8")
    prose = FENCE.sub("", text)
    for target in LINK.findall(prose):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page_id(page)} links to {target}"
    for path, name in CODE.findall(text):
        assert (ROOT / path).is_file(), f"{page_id(page)} names {path}"
        for part in name.split(".") if name else []:
            defined = rf"^\s*(?:def {part}\b|class {part}\b|{part}\b.*=)"
            assert re.search(defined, (ROOT / path).read_text(encoding="utf-8"), re.M), f"{path} has no {name}"


def keys_explained(page: Path) -> set[str]:
    """The keys in the first cells of its tables, several in one where they belong together."""
    cells = re.findall(r"^\|((?: ?`[\w/]+`,?)+) \|", page.read_text(encoding="utf-8"), re.M) if page.exists() else []
    return {key for cell in cells for key in re.findall(r"`([\w/]+)`", cell)}


def test_every_logged_key_is_explained_and_nothing_else(tmp_path):
    """Of every method; its own keys may stand on its own page."""
    shared, seen = keys_explained(ROOT / "docs/metrics.md"), set()
    for method, env, env_id in tasks():
        folder = xrl.get_runner(method, env, env_id, model_dir=str(tmp_path), **quick(method)).benchmark()
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert all(record.keys() >= set(COUNTERS) for record in records)
        logged = set().union(*records)
        own = keys_explained(ROOT / f"docs/methods/{METHODS[method].configs}.md")
        parts = {f"time/update/{_key(name)}" for name in load(METHODS[method].learner).profile_parts}
        assert logged <= shared | own | parts, f"{method} logs what neither docs/metrics.md nor its own page explains"
        seen |= logged
    rare = {"env/failures", "time/callbacks", "time/waiting", "time/launches", "time/gpu_idle"}
    too_short = {f"health/{name}_{k}" for name in ("open_loop", "reward_error") for k in (15, 50)}  # the episodes are
    assert shared - rare - seen <= too_short


def test_table_of_keys_is_up_to_date():
    spec = importlib.util.spec_from_file_location("render_configs", ROOT / "docs/render_configs.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    pages = script.tables()
    assert script.PAGE in pages
    for page, tables in pages.items():
        text = page.read_text(encoding="utf-8")
        assert text == script.updated(text, tables), f"{page}: run: python docs/render_configs.py"


def test_names_of_xuance_are_those_that_load():
    page = (ROOT / "docs/configs.md").read_text(encoding="utf-8")
    rows = {(theirs, ours) for line in page.splitlines() if (cells := [c.strip(" `") for c in line.split("|")])
            and len(cells) == 5 for theirs, ours in [(cells[2], cells[3])] if theirs in RENAMED}
    assert rows == set(RENAMED.items())
