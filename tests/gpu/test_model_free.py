"""PPO, DQN and SAC on a GPU: captured and eager updates are the same, and whole runs go through. Else skipped."""

from __future__ import annotations

import pytest
import torch

from tests.agents.examples import tiny
from tests.builders import BOTH
from tests.learners import test_dqn as dqn
from tests.learners import test_ppo as ppo
from tests.learners import test_sac as sac
from xrl.common.accelerate import Captured
from xrl.common.config import as_config
from xrl.common.registry import load
from xrl.environment import make_envs
from xrl.methods import METHODS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def learner_on_gpu(module, **changes):
    """A learner of the method that ``module`` tests, rebuilt around its policy on the GPU."""
    made = module.learner_of(obs=BOTH, **changes)
    return type(made)(made.policy.to("cuda"), made.config, torch.Generator("cuda").manual_seed(1))


def batch_of(module, learner, seed):
    return (module.rollout_of(obs=BOTH, seed=seed) if module is ppo
            else module.draw_of(learner, obs=BOTH, seed=seed))


@pytest.mark.parametrize("module", [ppo, dqn, sac], ids=["PPO", "DQN", "SAC"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captured_equals_eager(module, precision):
    learners = [learner_on_gpu(module, cuda_graph=graph, precision=precision) for graph in ("auto", "off")]
    for seed in range(8):
        ours, theirs = ({name: value.item() for name, value in learner.update(batch_of(module, learner, seed)).items()}
                        for learner in learners)
    assert isinstance(learners[0]._step, Captured) and learners[0]._step._graph is not None
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    assert ours == pytest.approx(theirs, rel=tolerance, abs=tolerance)
    for one, other in zip(*(learner.policy.parameters() for learner in learners), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_the_learning_rate_of_a_captured_step_falls():
    learner = learner_on_gpu(ppo, optimizer__lr=0.1)
    for seed in range(3):
        learner.update(batch_of(ppo, learner, seed))
    learner.anneal(1.0)
    before = [parameter.clone() for parameter in learner.policy.parameters()]
    learner.update(batch_of(ppo, learner, 3))
    assert all(map(torch.equal, before, learner.policy.parameters()))


@pytest.mark.parametrize(("method", "env_id"), [("PPO", "CartPole-v1"), ("PPO", "Pendulum-v1"), ("DQN", "CartPole-v1"),
                                                ("SAC", "Pendulum-v1")])
@pytest.mark.parametrize("frames", [1, 3])
def test_a_run_on_a_gpu(method, env_id, frames, tmp_path):
    keys = tiny(tmp_path, "classic_control", env_id, method=method, device="cuda", frame_stack=frames)
    config = as_config(keys)
    with make_envs(config) as envs:
        agent = load(METHODS[method].agent)(config, envs)
        agent.train(100)
        assert agent.updates > 4 and agent.device.type == "cuda" and len(agent.test(2)) == 2
        agent.finish()
    assert all(parameter.isfinite().all() for parameter in agent.policy.parameters())
