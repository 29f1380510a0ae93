"""What a method takes: kinds of observations and actions, and the refusal of others."""

import numpy as np
import pytest
import torch

from xrl.common.errors import ConfigError
from xrl.common.row import ActionSpec
from xrl.methods import METHODS, MethodEntry, check_spaces
from xrl.nn.distributions import MultiOneHot, OneHot


@pytest.fixture
def narrow(monkeypatch):
    entry = MethodEntry("a:A", "l:L", "p:P", "s:S", "c", observations=("vector",), actions=("discrete",))
    monkeypatch.setitem(METHODS, "Narrow", entry)
    yield
    del METHODS["Narrow"]


def test_what_a_method_takes_passes(narrow):
    check_spaces("narrow", ["vector", "vector"], "discrete")
    check_spaces("DreamerV2", ["image", "vector"], "multi_discrete")


@pytest.mark.parametrize(("kinds", "action", "message"), [
    (["vector"], "continuous", "method: Narrow takes discrete actions, and this environment has continuous ones; "
                               "methods that can: .*DreamerV2"),
    (["vector", "image"], "discrete", "Narrow takes vector observations, and this environment has image and vector"),
    (["vector"], "tentacle", "no method here can"),
])
def test_others_are_refused_with_the_methods_that_can(narrow, kinds, action, message):
    with pytest.raises(ConfigError, match=message):
        check_spaces("Narrow", kinds, action)


def test_random_actions_are_of_their_kind():
    rng = np.random.default_rng(0)
    one = ActionSpec("discrete", 3).random(rng, 1000)
    assert one.dtype == np.float32 and (one.sum(1) == 1).all() and (one.mean(0) > 0.25).all()
    several = ActionSpec("multi_discrete", 5, (2, 3)).random(rng, 1000)
    assert (several[:, :2].sum(1) == 1).all() and (several[:, 2:].sum(1) == 1).all()
    box = ActionSpec("continuous", 2).random(rng, 1000)
    assert box.shape == (1000, 2) and (np.abs(box) <= 1).all() and (box.min(0) < -0.9).all()


def test_several_categoricals_are_those_of_torch():
    logits = torch.randn(4, 5)
    law = MultiOneHot((OneHot(logits[:, :2]), OneHot(logits[:, 2:])))
    theirs = [torch.distributions.OneHotCategorical(logits=part) for part in logits.split([2, 3], -1)]
    action = law.sample(torch.rand(4, 2))
    assert torch.allclose(law.entropy(), sum(other.entropy() for other in theirs))
    expected = sum(other.log_prob(part) for other, part in zip(theirs, action.split([2, 3], -1), strict=True))
    assert torch.allclose(law.log_prob(action), expected)
    modes = [part.argmax(-1).tolist() for part in law.mode().split([2, 3], -1)]
    assert modes == [part.argmax(-1).tolist() for part in logits.split([2, 3], -1)]
