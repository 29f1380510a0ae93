"""The behaviour losses solve a bandit in a world model made by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.builders import CONTINUOUS, DISCRETE, VECTOR, tiny_learner
from xrl.world_models.rssm import State


class Bandit:
    """A frozen world whose state is the last action and whose reward is that action's first entry."""

    def __init__(self, latent):
        self.latent, self.discount, self.rssm = latent, None, self

    def img_step(self, state, action, noise):
        deter = torch.nn.functional.pad(action, (0, 8 - action.shape[-1]))
        return State(deter, torch.zeros_like(state.stoch))

    def join(self, stoch, rest):
        return torch.cat([stoch, rest], -1)

    def reward(self, feat):
        return feat[..., 16]  # feat = 16 stochastic entries, then the deterministic ones


@pytest.mark.parametrize(("action", "grad"), [
    (DISCRETE, "reinforce"), (DISCRETE, "dynamics"), (CONTINUOUS, "dynamics"), (CONTINUOUS, "reinforce")])
def test_bandit_is_solved(action, grad):
    changes = {"actor.grad": grad, "gamma": 0.9, "horizon": 3, "actor.entropy": 1e-3, "actor_opt.lr": 1e-2,
               "critic_opt.lr": 1e-2}
    learner = tiny_learner(changes, VECTOR, action)
    learner.model = Bandit(SimpleNamespace(size=16, noise=learner.model.latent.noise))
    start, is_terminal = State(torch.zeros(64, 8), torch.zeros(64, 16)), torch.zeros(64, dtype=torch.bool)
    law = learner.actor(start.feat[:1])
    before = law.mode()[0, 0].item()
    for update in range(150):
        dream = learner.imagine(start, is_terminal)
        actor_loss, critic_loss = learner.actor_loss(dream)[0], learner.critic_loss(dream)[0]
        learner.actor_opt.minimize(actor_loss)
        learner.critic_opt.minimize(critic_loss)
        if update % 5 == 0:
            learner.policy.slow_critic.load_state_dict(learner.critic.state_dict())
    law = learner.actor(start.feat[:1])
    if action is DISCRETE:
        assert law.logits.softmax(-1)[0, 0] > 0.95
    else:
        assert before < 0.3 and law.mode()[0, 0] > 0.8
