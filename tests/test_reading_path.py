"""A gradient step of every method can be followed within MOST lines; how they are counted: see reading_path.py."""

import ast

import pytest

from tests.reading_path import MOST, length, path_of
from xrl.methods import METHODS


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_step_can_be_followed(method):
    path = path_of(method)
    longest = sorted(path.items(), key=lambda item: -item[1])[:10]
    assert sum(path.values()) < MOST, longest
    learner = METHODS[method].learner
    assert {learner, f"{learner}.update", METHODS[method].agent} <= path.keys()
    assert len(path) > 20, "an update is more than this: it ended early, or was traced in vain"


def test_the_path_of_dreamer_v2_is_what_its_update_runs_through():
    """Written down from reading: every equation is on it, and nothing that acts, stores or resumes."""
    path = path_of("DreamerV2").keys()
    learner = "xrl.learners.dreamer_v2:DreamerV2Learner"
    losses = ("model_step", "model_loss", "imagine", "actor_loss", "critic_loss")
    assert {f"{learner}.{name}" for name in losses} <= path
    assert {"xrl.ops.returns:lambda_return", "xrl.ops.kl:balanced_kl", "xrl.world_models.imagination:imagine",
            "xrl.world_models.rssm:RSSM.img_step", "xrl.nn.recurrent:LayerNormGRUCell.forward",
            "xrl.memory.sequence_replay:SequenceReplay.sample", "xrl.memory.segments:Segments.gather"} <= path
    for elsewhere in ("insert", "save", "load", "run_state", "state_dict", "rerun", "look", "act"):
        assert not [where for where in path if where.endswith(f".{elsewhere}")]


def test_lines_are_those_of_the_code():
    source = '''@decorated
def f(x):
    """Says
    much."""
    # and a comment
    def inner():
        """More."""

    return x
'''
    assert length(ast.parse(source).body[0]) == 6
