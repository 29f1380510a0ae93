from __future__ import annotations

import pytest

import xrl.environment
from xrl.common.errors import ConfigError
from xrl.environment import REGISTRY_ENV, make_envs
from xrl.environment.registry import Family, find_entry

from .examples import config


def test_every_shipped_family_loads():
    assert set(REGISTRY_ENV) == {"classic_control", "atari", "toy", "gymnasium"}
    assert all(isinstance(find_entry(name), Family) for name in REGISTRY_ENV)


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
