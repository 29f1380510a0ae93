"""DreamerV3 on a GPU: captured and eager updates are the same updates, and it acts from a graph."""

from __future__ import annotations

import pytest
import torch

from tests.agents.examples import tiny, watched_environments
from tests.builders import BOTH, CONTINUOUS, DISCRETE, VECTOR, random_row
from tests.dreamer_v3 import tiny_config
from xrl.agents.dreamer_v3 import DreamerV3Agent
from xrl.common.accelerate import Captured
from xrl.common.config import as_config
from xrl.environment import make_envs
from xrl.learners.dreamer_v3 import DreamerV3Learner
from xrl.policies.dreamer_v3 import DreamerV3Policy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def trained(obs, action, **changes):
    """A learner after some updates on the GPU, and the metrics of the last one."""
    torch.manual_seed(0)
    config = tiny_config(changes)
    policy = DreamerV3Policy(obs, action, config).to("cuda")
    learner = DreamerV3Learner(policy, config, torch.Generator("cuda").manual_seed(1))
    for seed in range(8):
        metrics = learner.update(random_row(obs=obs, action=action, seed=seed))
    learner.check()
    return learner, {name: value.item() for name, value in metrics.items()}


@pytest.mark.parametrize(("obs", "action"), [(VECTOR, DISCRETE), (BOTH, CONTINUOUS)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captured_equals_eager(obs, action, precision):
    fast, fast_metrics = trained(obs, action, precision=precision, cuda_graph="auto")
    _, plain_metrics = trained(obs, action, precision=precision, cuda_graph="off")
    assert isinstance(fast._step, Captured) and fast._step._graph is not None
    tolerance = 1e-3 if precision == "fp32" else 2e-2
    assert fast_metrics == pytest.approx(plain_metrics, rel=tolerance, abs=1e-3)


@pytest.mark.parametrize("continuous", [False, True])
def test_a_run_acts_and_learns_from_graphs(continuous, tmp_path):
    with watched_environments():
        config = as_config(tiny(tmp_path, **{"method": "DreamerV3", "device": "cuda",
                                             "env_kwargs": {"continuous": continuous}}))
        agent = DreamerV3Agent(config, make_envs(config))
        agent.train(120)
        assert agent.updates > 4 and isinstance(agent.acting_step, Captured) and agent.acting_step._graph is not None
        agent.finish()
        agent.envs.close()
