"""What a user sees: names at the top, a light import, and a wheel that holds its YAML files."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import xrl
from xrl.common.errors import ConfigError
from xrl.environment.registry import EXTRAS

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "ale_py", "wandb", "gymnasium", "cv2", "tensorboard", "matplotlib")


def run(code: str, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=cwd,
                          env=environment or None)
    return done.stdout.strip()


@pytest.mark.parametrize("code", [
    "import xrl",
    "import xrl; xrl.METHODS['dreamerv2']",
    "import xrl; xrl.get_configs",
    "from xrl.common import get_configs",
    "import xrl.common.config; xrl.common.config.load_config('dreamerv2', 'toy', 'Catch-v0')",
    "from xrl.__main__ import main; import io, contextlib\n"
    "with contextlib.redirect_stdout(io.StringIO()): main(['methods'])",
])
def test_nothing_heavy_loads_before_it_is_used(code):
    loaded = run(f"{code}\nimport sys; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert loaded == "[]"


def test_families_with_an_extra_load_only_when_they_are_asked_for():
    code = ("from xrl import make_envs\n"
            "make_envs({'method': 'DreamerV2', 'env_name': 'classic_control', 'env_id': 'CartPole-v1'}).close()\n"
            "import sys; print([m for m in ('dm_control', 'mujoco', 'Box2D', 'minigrid') if m in sys.modules])")
    assert run(code) == "[]"


def test_every_extra_of_a_family_is_declared(installed):
    (info,) = installed.glob("*.dist-info")
    provided = {line.partition(": ")[2] for line in (info / "METADATA").read_text().splitlines()
                if line.startswith("Provides-Extra: ")}
    assert set(EXTRAS) < provided


def test_import_takes_less_than_half_a_second():
    code = "import time; start = time.perf_counter(); import xrl; print(time.perf_counter() - start)"
    assert min(float(run(code)) for _ in range(3)) < 0.5


def test_names_at_the_top():
    assert {"METHODS", "REGISTRY_ENV", "get_configs", "get_runner", "make_envs"} <= set(dir(xrl))
    from xrl.common import get_configs

    assert xrl.get_configs is get_configs
    assert "DreamerV2" in xrl.METHODS
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = xrl.nothing


@pytest.mark.parametrize("keyword", ["method", "algo"])
def test_get_runner_hands_everything_to_the_runners(monkeypatch, keyword):
    seen = {}
    monkeypatch.setattr(xrl, "load", lambda path: lambda **keywords: seen.update(keywords, path=path))
    xrl.get_runner(**{keyword: "DreamerV2"}, env="toy", env_id="Catch-v0", is_test=True, callbacks=["mine"], seed=3)
    assert seen == {"path": "xrl.runners.runner:get_runner", "method": "DreamerV2", "env": "toy", "env_id": "Catch-v0",
                    "config_path": None, "is_test": True, "callbacks": ["mine"], "seed": 3}


def test_method_and_algo_together_are_refused():
    with pytest.raises(ConfigError, match="give one, not both 'DreamerV2' and 'PPO'"):
        xrl.get_runner(method="DreamerV2", algo="PPO")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The contents of a wheel built from a copy of the sources, so that the checkout stays clean."""
    work = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "xrl", work / "xrl", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "LICENSE"):
        shutil.copy(ROOT / name, work)
    subprocess.run([sys.executable, "setup.py", "-q", "bdist_wheel"], cwd=work, check=True, capture_output=True)
    (wheel,) = (work / "dist").glob("xrl-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(work / "installed")
    return work / "installed"


def test_wheel_holds_every_module_and_yaml_and_nothing_else(installed):
    def contents(folder: Path) -> set[str]:
        return {path.relative_to(folder).as_posix() for path in (folder / "xrl").rglob("*")
                if path.is_file() and path.suffix in (".py", ".yaml")}

    assert contents(installed) == contents(ROOT)
    assert "xrl/configs/dreamer_v2/classic_control/CartPole-v1.yaml" in contents(installed)
    assert {path.name.split("-")[0] for path in installed.iterdir()} == {"xrl"}  # no tests beside it


def test_installed_wheel_finds_its_yaml_files(installed, tmp_path):
    code = ("import xrl.common.config as c; print(c.__file__);"
            "print(c.load_config('DreamerV2', 'atari', 'ALE/Pong-v5').origins['train_every'])")
    where, origin = run(code, cwd=tmp_path, PYTHONPATH=str(installed)).splitlines()
    assert Path(where).is_relative_to(installed)
    assert origin == "dreamer_v2/atari.yaml"


def test_wheel_declares_the_command_and_the_version(installed):
    (info,) = installed.glob("*.dist-info")
    assert "xrl = xrl.__main__:main" in (info / "entry_points.txt").read_text()
    assert f"\nVersion: {xrl.__version__}\n" in (info / "METADATA").read_text()


def test_pins_lie_in_the_ranges_that_setup_declares(installed):
    """Every package that setup.py asks for is pinned, at a version it accepts."""
    from packaging.requirements import Requirement

    (info,) = installed.glob("*.dist-info")
    wanted = [Requirement(line.partition(": ")[2]) for line in (info / "METADATA").read_text().splitlines()
              if line.startswith("Requires-Dist: ")]
    pins = {}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pins[pin.name.lower()] = next(iter(pin.specifier)).version
    assert len(wanted) > 10
    assert [str(need) for need in wanted if need.name.lower() not in pins] == []
    assert [str(need) for need in wanted if pins[need.name.lower()] not in need.specifier] == []
