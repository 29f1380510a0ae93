from __future__ import annotations

import sys

import pytest

import xrl.environment
from xrl.common.errors import ConfigError
from xrl.environment import REGISTRY_ENV, check_env, make_envs
from xrl.environment.registry import Family, find_entry

from .examples import Probe, config


def test_every_shipped_family_loads():
    assert set(REGISTRY_ENV) == {"classic_control", "atari", "toy", "gymnasium", "box2d", "dmc", "minigrid"}
    assert all(isinstance(find_entry(name), Family) for name in REGISTRY_ENV)


@pytest.mark.parametrize(("family", "env_id", "module", "package"), [
    ("box2d", "CarRacing-v3", "Box2D", r"gymnasium\[box2d\]"), ("dmc", "walker_walk", "dm_control", "dm_control"),
    ("minigrid", "MiniGrid-Empty-5x5-v0", "minigrid", "minigrid")])
def test_an_extra_that_is_not_installed_names_the_command(monkeypatch, family, env_id, module, package):
    for name in [name for name in sys.modules if name.partition(".")[0] == module] + [f"xrl.environment.{family}"]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, module, None)  # what an import of a hidden module meets
    with pytest.raises(ConfigError, match=rf'^env_name: {family} needs {package}, which is not installed; pip install '
                                          rf'"xrl\[{family}\]" \(from a checkout: pip install -e "\.\[{family}\]"\)$'):
        make_envs(config(family, env_id))
    (finding,) = check_env(config(family, env_id))
    assert finding.status == "failed" and "not installed" in finding.found and finding.fix.startswith("pip install")


def test_a_family_of_the_users_own_needs_no_extra(monkeypatch, registered):
    monkeypatch.setitem(sys.modules, "Box2D", None)
    registered["box2d"] = Probe
    make_envs(config("box2d", "mine-v0")).close()


def test_an_unknown_family_names_the_nearest():
    with pytest.raises(ConfigError, match=r"env_name: 'clasic_control'.*Did you mean 'classic_control'.*REGISTRY_ENV"):
        make_envs(config("clasic_control", "CartPole-v1"))


@pytest.mark.parametrize(("family", "env_id", "nearest"), [
    ("classic_control", "CartPol-v1", "CartPole-v1"), ("classic_control", "CartPole", "CartPole-v"),
    ("atari", "ALE/Pogn-v5", "ALE/Pong-v5"), ("atari", "Pong-v5", "ALE/Pong-v5"),
    ("toy", "Cach-v0", "Catch-v0"), ("gymnasium", "FrozenLak-v1", "FrozenLake-v1"),
    ("gymnasium", "CartPole-v7", "CartPole-v1")])
def test_an_unknown_id_names_the_nearest(family, env_id, nearest):
    with pytest.raises(ConfigError, match=f"env_id: '{env_id}'.*Did you mean '{nearest}"):
        make_envs(config(family, env_id))


def test_classic_control_is_only_classic_control():
    with pytest.raises(ConfigError, match="env_id: 'FrozenLake-v1' is unknown in classic_control"):
        make_envs(config("classic_control", "FrozenLake-v1"))


def test_unknown_attributes_of_the_package_are_errors():
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = xrl.environment.no_such_thing
