"""What only a GPU can show: captured and eager updates are the same updates. Skipped where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.agents.examples import records, tiny
from tests.builders import BOTH, CONTINUOUS, DISCRETE, VECTOR, random_row, tiny_config
from xrl.agents.dreamer_v2 import DreamerV2Agent
from xrl.common.accelerate import Captured, Feed
from xrl.common.config import as_config
from xrl.common.errors import NumericalError
from xrl.common.health import Flags
from xrl.environment import make_envs
from xrl.learners.dreamer_v2 import DreamerV2Learner
from xrl.policies.dreamer_v2 import DreamerV2Policy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def trained(updates=8, obs=VECTOR, action=DISCRETE, **changes):
    """A learner after some updates on the GPU, and the metrics of the last one."""
    torch.manual_seed(0)
    config = tiny_config(changes)
    policy = DreamerV2Policy(obs, action, config).to("cuda")
    learner = DreamerV2Learner(policy, config, torch.Generator("cuda").manual_seed(1))
    for seed in range(updates):
        metrics = learner.update(random_row(obs=obs, action=action, seed=seed))
    learner.check()
    return learner, {name: value.item() for name, value in metrics.items()}


@pytest.mark.parametrize(("obs", "action"), [(VECTOR, DISCRETE), (BOTH, DISCRETE), (VECTOR, CONTINUOUS)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captured_equals_eager(obs, action, precision):
    fast, fast_metrics = trained(obs=obs, action=action, precision=precision, cuda_graph="auto")
    plain, plain_metrics = trained(obs=obs, action=action, precision=precision, cuda_graph="off")
    assert isinstance(fast._step, Captured) and fast._step._graph is not None
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    assert fast_metrics == pytest.approx(plain_metrics, rel=tolerance, abs=1e-4)
    for ours, theirs in zip(fast.policy.parameters(), plain.policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=1e-4)


def test_the_first_captured_step_of_adam_meets_the_uncorrected_square_root():
    """Oracle T43 in a replayed graph: three equal steps of 1e-3 with lr 2e-4, eps 1e-5."""
    from xrl.common.optimizer import Adam

    parameter = torch.nn.Parameter(torch.zeros(1, device="cuda"))
    adam = Adam([("w", parameter)], lr=2e-4, eps=1e-5, clip=100.0, weight_decay=0.0)
    fast = Captured(lambda gradient: adam.step([gradient]), torch.Generator("cuda"))
    for _ in range(Captured.WARM_UP + 2):
        fast(torch.zeros(1, device="cuda"))
    adam.steps.zero_()
    for _ in range(3):
        fast(torch.full((1,), 1e-3, device="cuda"))
    assert -parameter.item() == pytest.approx(4.845026e-4, rel=1e-5)


def test_random_numbers_go_on_in_a_replayed_graph():
    generator = torch.Generator("cuda").manual_seed(3)
    fast = Captured(lambda x: x + torch.rand(4, device="cuda", generator=generator), generator)
    draws = [tuple(fast(torch.zeros(4, device="cuda")).tolist()) for _ in range(10)]
    assert len(set(draws)) == 10


def test_the_feed_never_mixes_batches():
    feed = Feed(torch.device("cuda"))
    sums = []
    for n in range(20):
        batch = feed({"image": np.full((50, 16, 64, 64, 1), n, np.uint8)})
        sums.append(batch["image"].double().mean())
    assert [value.item() for value in sums] == list(range(20))


def bad_row(obs=VECTOR, action=DISCRETE):
    row = random_row(obs=obs, action=action, seed=99)
    row.reward[2, 1] = np.nan
    return row


@pytest.mark.parametrize("graph", ["auto", "off"])
def test_a_bad_update_is_found_late_changes_nothing_and_runs_again(graph):
    changes = {"cuda_graph": graph, "world_model.reward_transform": "identity"}
    learner, _ = trained(**changes)
    before = {name: value.clone() for name, value in learner.policy.state_dict().items()}
    learner.update(bad_row())
    with pytest.raises(NumericalError, match=r"^update 9: model/reward_loss"):
        for seed in range(10):
            learner.update(random_row(seed=seed))
    assert learner.updates <= 9 + Flags.LIMIT
    assert all(torch.equal(value, before[name]) for name, value in learner.policy.state_dict().items())
    found = learner.postmortem
    assert found.stage == "model" and found.data == ("reward",)
    fresh, _ = trained(updates=1, **{**changes, "cuda_graph": "off"})
    fresh.policy.load_state_dict(learner.policy.state_dict())
    fresh.load_state_dict(learner.state_dict())
    again = fresh.rerun(found.update, found.stage, {name: value.cpu() for name, value in found.tensors.items()})
    assert again.stage == "model" and again.parameter == found.parameter
    for name in ("model/vector_loss", "model/kl", "actor/loss", "critic/loss"):
        assert again.metrics[name] == pytest.approx(found.metrics[name], rel=1e-4, abs=1e-4, nan_ok=True)


def test_a_bad_behaviour_step_starts_again_where_it_started():
    learner, _ = trained()
    with torch.no_grad():
        learner.critic.mlp[0].weight[0, 0] = torch.inf
    learner.update(random_row(seed=20))
    learner.update(random_row(seed=21))
    with pytest.raises(NumericalError, match=r"^update 9: critic/loss"):
        learner.check()
    found = learner.postmortem
    fresh, _ = trained(updates=1, cuda_graph="off")
    fresh.policy.load_state_dict(learner.policy.state_dict())
    fresh.load_state_dict(learner.state_dict())
    again = fresh.rerun(found.update, found.stage, {name: value.cpu() for name, value in found.tensors.items()})
    assert found.stage == again.stage == "behaviour"
    assert again.metrics["actor/loss"] == pytest.approx(found.metrics["actor/loss"], rel=1e-4, abs=1e-4)


def test_compiled_equals_eager():
    _, fast_metrics = trained(compile="on")
    _, plain_metrics = trained(cuda_graph="off")
    assert fast_metrics == pytest.approx(plain_metrics, rel=1e-3, abs=1e-4)


def test_a_run_says_how_idle_the_gpu_was_and_how_much_it_was_told_to_start(tmp_path):
    """One graph an update; its kernels one by one without. And the health of a model that lives on the GPU."""
    launches = {}
    for graph in ("auto", "off"):
        config = as_config(tiny(tmp_path / graph, "toy", "Catch-v0", device="cuda", cuda_graph=graph, log_interval=20))
        with make_envs(config) as envs:
            agent = DreamerV2Agent(config, envs)
            agent.train(60)
            agent.test(2)
            agent.finish()
        found = records(agent.folder / "metrics.jsonl")
        assert all(0 <= record["time/gpu_idle"] <= 1 for record in found if "time/gpu_idle" in record)
        assert any("health/kl" in record for record in found)
        launches[graph] = next(record["time/launches"] for record in reversed(found) if "time/launches" in record)
    assert 1 <= launches["auto"] < 100 < launches["off"]
