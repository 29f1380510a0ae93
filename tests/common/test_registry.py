"""Entries as strings, and the nearest name."""

import collections

import pytest

from xrl.common.errors import ConfigError
from xrl.common.registry import load, nearest, suggestion
from xrl.methods import METHODS, MethodEntry, MethodRegistry, find_method


def test_load_imports_on_demand():
    assert load("collections:OrderedDict") is collections.OrderedDict


@pytest.mark.parametrize("path", ["collections", "collections:", ":OrderedDict"])
def test_load_refuses_what_names_no_attribute(path):
    with pytest.raises(ValueError, match=r"must look like 'package\.module:attribute'"):
        load(path)


def test_nearest_ignores_case_and_gives_the_candidate_as_written():
    assert nearest("cartpole-V1", ["Pendulum-v1", "CartPole-v1"]) == "CartPole-v1"
    assert nearest("xyz", ["Pendulum-v1"]) is None


def test_suggestion_is_a_sentence_or_nothing():
    assert suggestion("Catch", ["Catch-v0"]) == " Did you mean 'Catch-v0'?"
    assert suggestion("xyz", ["Catch-v0"]) == ""


def test_methods_are_found_whatever_their_case_and_listed_as_written():
    assert find_method("DREAMERV2") == "DreamerV2"
    assert "DreamerV2" in list(METHODS) and "dreamerv2" not in list(METHODS)
    assert METHODS["dreamerv2"] is METHODS["DreamerV2"]


def test_registering_again_in_another_case_replaces():
    old, new = (MethodEntry(agent, "l", "p", "s", "c") for agent in ("a:A", "b:B"))
    methods = MethodRegistry({"Mine": old})
    methods["MINE"] = new
    assert (len(methods), list(methods), methods["mine"]) == (1, ["MINE"], new)
    del methods["Mine"]
    assert "mine" not in methods


def test_unknown_method_lists_the_known():
    with pytest.raises(ConfigError, match=rf"unknown method 'Nothing'\. Known methods: {', '.join(METHODS)}"):
        find_method("Nothing")
