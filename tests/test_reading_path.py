"""A gradient step of every method can be followed within MOST lines; how they are counted: see reading_path.py."""

import pytest

from tests.reading_path import MOST, Walk, made_of, path_of
from xrl.methods import METHODS


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_step_can_be_followed(method):
    path = path_of(method)
    longest = sorted(path.items(), key=lambda item: -item[1])[:10]
    assert sum(path.values()) < MOST, longest
    # The walk did not end early: whatever is called by a name that it cannot follow, update and step are there.
    learner = METHODS[method].learner
    assert {f"{learner}.update", f"{learner}.step", f"{METHODS[method].agent}.update"} <= path.keys()


def test_the_path_of_dreamer_v2_is_what_its_update_runs_through():
    """Written down from reading: every equation is on it, and nothing that acts, stores or resumes."""
    path = path_of("DreamerV2").keys()
    learner = "xrl.learners.dreamer_v2:DreamerV2Learner"
    losses = ("model_step", "model_loss", "imagine", "actor_loss", "critic_loss")
    assert {f"{learner}.{name}" for name in losses} <= path
    assert {"xrl.ops.returns:lambda_return", "xrl.ops.kl:balanced_kl", "xrl.world_models.imagination:imagine",
            "xrl.world_models.rssm:RSSM.img_step", "xrl.nn.recurrent:LayerNormGRUCell.forward",
            "xrl.memory.sequence_replay:SequenceReplay.sample", "xrl.memory.segments:Segments.gather"} <= path
    for elsewhere in ("insert", "save", "load", "run_state", "state_dict", "rerun", "look", "observe_row"):
        assert not [where for where in path if where.endswith(f".{elsewhere}")]


def test_only_what_is_used_is_read():
    walk = Walk(made_of("DreamerV2"))
    (rssm,) = [place for place in walk.classes if place.name == "RSSM"]
    walk.enter(rssm)
    assert {"xrl.world_models.rssm:RSSM", "xrl.world_models.rssm:RSSM.__init__"} <= walk.lines.keys()
    assert "xrl.world_models.rssm:RSSM.observe" not in walk.lines
