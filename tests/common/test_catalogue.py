"""What `xrl methods` says, beside folders written by hand and the folders that ship."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import xrl.configs
from xrl.__main__ import main
from xrl.common.catalogue import offers
from xrl.methods import METHODS

CONFIGS = Path(next(iter(xrl.configs.__path__)))


@pytest.fixture
def mine(tmp_path):
    """A user's method, with files of its own."""
    entry = replace(METHODS["DreamerV2"], configs=str(tmp_path), observations=("vector",), actions=("continuous",))
    METHODS["Mine"] = entry
    yield tmp_path
    del METHODS["Mine"]


def write(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("seed: 1\n")


def listed(capsys) -> dict[str, str]:
    assert main(["methods"]) == 0
    blocks = capsys.readouterr().out.strip().split("\n\n")
    return {block.partition("\n")[0]: block.partition("\n")[2] for block in blocks}


def test_a_method_of_a_user_is_described_from_its_entry_and_its_folder(mine, capsys):
    write(mine, "default.yaml", "atari.yaml", "atari/ALE-Pong-v5.yaml", "toy/Catch-v0.yaml", "toy/Other-v0.yaml",
          "presets/debug.yaml", "presets/paper.yaml", "notes/deeper/than/that.yaml")
    assert listed(capsys)["Mine"] == """\
  observations  vector
  actions       continuous
  files         atari: all, ALE-Pong-v5
                toy: Catch-v0, Other-v0
                any other environment (default.yaml)
  presets       official, debug, paper"""


def test_a_method_without_files_lives_from_its_defaults(mine, capsys):
    assert listed(capsys)["Mine"].splitlines()[2:] == [
        "  files         none: its schema has the defaults", "  presets       official"]


def test_every_shipped_method_and_file_is_listed(capsys):
    shown = listed(capsys)
    assert list(shown) == list(METHODS)
    for method, entry in METHODS.items():
        for kind in (*entry.observations, *entry.actions):
            assert kind in shown[method]
        for path in (CONFIGS / entry.configs).rglob("*.yaml"):
            assert path.stem in shown[method]


def test_what_is_offered_can_be_run():
    """The names of families are those of REGISTRY_ENV."""
    from xrl.environment import REGISTRY_ENV

    for offer in offers():
        assert {*offer.files, *offer.whole} - {"default"} <= REGISTRY_ENV.keys()


def test_a_module_that_registers_a_method_is_imported_first(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_catalogue_method.py").write_text(
        "from xrl.methods import METHODS\nMETHODS['FromModule'] = METHODS['DreamerV2']\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert main(["methods", "--import", "my_catalogue_method"]) == 0
    finally:
        METHODS.pop("FromModule", None)
    assert "\nFromModule\n" in capsys.readouterr().out


def test_it_takes_no_words(capsys):
    assert main(["methods", "DreamerV2"]) == 2
    assert capsys.readouterr().err == "xrl: error: command line: methods: takes no PATH and got 1\n"
