"""Where a result comes from: versions and machine as the system itself tells them, the commit of this package alone."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from xrl.common import provenance as module
from xrl.common.provenance import commit, cpu, provenance, version_of


def git(folder, *words):
    return subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e", *words], cwd=folder, check=True,
                          capture_output=True, text=True).stdout.strip()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in a git repository of its own, which stands for xrl; its first commit is made."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    place = tmp_path / "repository" / "xrl"
    (place / "common").mkdir(parents=True)
    (place / "__init__.py").write_text("")
    (place / "common" / "provenance.py").write_text("")
    (tmp_path / "repository" / "notes.txt").write_text("")
    git(tmp_path / "repository", "init", "-q")
    git(tmp_path / "repository", "add", "xrl")
    git(tmp_path / "repository", "commit", "-q", "-m", "first")
    monkeypatch.setattr(module, "__file__", str(place / "common" / "provenance.py"))
    return place


def test_versions_and_machine():
    found = json.loads(json.dumps(provenance()))  # it goes into a file
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["versions"]["numpy"] == np.__version__
    assert set(found["versions"]) == {"python", "xrl", "torch", "numpy", "gymnasium", "ale-py"}
    assert found["machine"]["cores"] == os.cpu_count() and platform.machine() in found["machine"]["system"]
    assert found["machine"]["cpu"] == cpu()


def test_a_package_that_is_not_installed():
    assert version_of("no-such-package-anywhere") == "not installed"


def test_the_commit_and_whether_the_package_differs_from_it(package):
    head = git(package, "rev-parse", "--short", "HEAD")
    assert commit() == head
    (package.parent / "elsewhere.txt").write_text("beside the package")
    assert commit() == head
    (package / "__init__.py").write_text("changed = True\n")
    assert commit() == f"{head}+changes"
    git(package, "checkout", "-q", ".")
    (package / "new.py").write_text("")
    assert commit() == f"{head}+changes"


def test_a_package_that_is_merely_installed_inside_of_some_repository_has_no_commit(package, monkeypatch):
    installed = package.parent / ".venv" / "xrl"
    shutil.copytree(package, installed)
    monkeypatch.setattr(module, "__file__", str(installed / "common" / "provenance.py"))
    assert commit() is None


def test_outside_of_a_repository_and_without_git_there_is_no_commit(package, tmp_path, monkeypatch):
    (tmp_path / "plain" / "common").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
        patch.setattr(module, "__file__", str(tmp_path / "plain" / "common" / "provenance.py"))
        assert commit() is None
    assert commit() is not None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None


def test_the_processor_is_the_first_that_the_system_lists(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda path: "cpu : 0\nmodel name\t: Some CPU: fast\nmodel name : other")
    assert cpu() == "Some CPU: fast"

    def absent(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", absent)
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert cpu() == platform.machine()
