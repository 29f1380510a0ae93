"""The update as a GPU runs it, as far as it goes without one: on the meta device, which has shapes but no data."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from tests.builders import BOTH, CONTINUOUS, DISCRETE, VECTOR, tiny_config
from xrl.learners import dreamer_v2 as learner_module
from xrl.learners.dreamer_v2 import Batch, DreamerV2Learner
from xrl.policies import dreamer_v2 as policy_module
from xrl.policies.dreamer_v2 import DreamerV2Policy
from xrl.world_models import latents


class Generator:
    """No device but a real one has a generator; the learner only hands it on, and notes its state."""

    device = torch.device("meta")

    def get_state(self):
        return torch.zeros(16, dtype=torch.uint8)


@pytest.fixture
def meta(monkeypatch):
    def uniform(*shape, generator):
        return torch.rand(*shape, device=generator.device)

    for module in (learner_module, policy_module, latents):
        monkeypatch.setattr(module, "uniform", uniform)
    monkeypatch.setattr(learner_module, "autocast", lambda precision, device: nullcontext())


@pytest.mark.parametrize(("obs", "action", "changes"), [
    (VECTOR, DISCRETE, {}), (BOTH, DISCRETE, {"imagination.starts": 5}),
    (BOTH, CONTINUOUS, {"world_model.norm": "layer"}), (VECTOR, CONTINUOUS, {"actor.grad": "mix"}),
    (VECTOR, DISCRETE, {"world_model.predict_discount": False, "actor.baseline": "fast"})])
def test_an_update_stays_on_the_device_and_never_asks_for_a_value(meta, obs, action, changes):
    """A tensor without data has no value to give: whatever would make the host wait raises here, as do mixed devices
    and shapes that depend on values. The gather of one-hots is for CPUs, so this is the path of a GPU."""
    config = tiny_config(changes)
    with torch.device("meta"):
        policy = DreamerV2Policy(obs, action, config)
    learner = DreamerV2Learner(policy, config, Generator())
    lead = (config.seq_len, config.batch_size)
    entries = {name: torch.zeros(*lead, *spec.shape, dtype=torch.uint8 if spec.kind == "image" else torch.float32,
                                 device="meta") for name, spec in obs.items()}
    flags = torch.zeros(lead, dtype=torch.bool, device="meta")
    actions, rewards = torch.zeros(*lead, action.size, device="meta"), torch.zeros(lead, device="meta")
    batch = Batch(entries, actions, rewards, flags, flags)
    metrics = learner.update(batch)
    assert metrics and all(metric.device.type == "meta" and metric.shape == () for metric in metrics.values())
    state = policy.initial(2)
    row = {name: entry[0, :2] for name, entry in entries.items()}
    chosen, state = policy.act(state, row, batch.action[0, :2], flags[0, :2], Generator(), explore=True)
    assert chosen.device.type == state.deter.device.type == "meta" and chosen.shape == (2, action.size)
