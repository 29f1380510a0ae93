"""PPO as a whole: time limits, rollouts, what does not divide, stacked frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.agents.chain import GAMMA, LENGTH, Chain, forget_the_difference, values
from tests.agents.examples import Recorder, same, tiny, watched_environments, weights
from xrl.agents.ppo import PPOAgent
from xrl.common.config import as_config, load_config
from xrl.common.errors import ConfigError
from xrl.common.state import pack, unpack
from xrl.environment import REGISTRY_ENV, make_envs


@pytest.fixture
def make(tmp_path):
    made = []

    def make_agent(callbacks=(), env="watched", **keys) -> PPOAgent:
        config = as_config({**tiny(tmp_path / "models", env), "method": "PPO", "start_training": 1, **keys})
        made.append(PPOAgent(config, make_envs(config), callbacks))
        return made[-1]

    with watched_environments():
        REGISTRY_ENV["chain"] = Chain
        yield make_agent
        for agent in made:
            agent.finish()
            agent.envs.close()


def learned(make, ends, mistaken=False):
    agent = make(env="chain", env_kwargs={"ends": ends}, gamma=GAMMA, parallels=4, buffer_size=80, batch_size=80,
                 epochs=10, anneal=False, entropy=0.0, **{
                     "optimizer.lr": 2e-2, "network.shared": False, "network.layers": 1, "network.units": 16})
    if mistaken:
        forget_the_difference(agent)
    agent.train(400)
    with torch.no_grad():
        return agent.policy.value({"vector": torch.eye(LENGTH)}).numpy()


@pytest.mark.parametrize("ends", ["truncated", "terminated"])
def test_the_critic_learns_the_values_worked_by_hand(make, ends):
    np.testing.assert_allclose(learned(make, ends), values(ends), rtol=0.04)


def test_a_time_limit_taken_for_an_end_would_be_noticed(make):
    found = learned(make, "truncated", mistaken=True)
    np.testing.assert_allclose(found, values("terminated"), rtol=0.04)
    assert (np.abs(found / values("truncated") - 1) > 0.3).all()


def test_an_update_is_a_rollout_and_none_comes_before_start_training(make):
    recorder = Recorder()
    agent = make([recorder], parallels=2, buffer_size=16, start_training=20)
    agent.train(30)
    rollouts = [steps for _, steps, _, _ in recorder.named("update")]
    assert len(rollouts) == agent.updates
    # 8 steps of each of 2 environments, of which one is the reset after the 7 of an episode: 14 agent steps.
    assert rollouts == [28, 42, 56]


def test_weights_that_are_loaded_learn_from_nothing_that_others_did(make):
    agent = make(parallels=2, buffer_size=16)
    agent.train(6)
    agent.load_state_dict(agent.state_dict())
    agent.train(7)
    assert agent.updates == 0, "6 + 7 steps, and no rollout of 8 since the weights came"
    agent.train(1)
    assert agent.updates == 1


@pytest.mark.parametrize(("keys", "message"), [
    ({"buffer_size": 100, "batch_size": 48}, r"batch_size: a rollout of buffer_size = 100 steps .* minibatches of 48; "
                                             r"use batch_size=25, or .* multiple of batch_size and of parallels = 4"),
    ({"buffer_size": 102, "batch_size": 51}, r"buffer_size: 102 .* parallels = 4 .* use buffer_size=104, say"),
    ({"buffer_size": 3, "batch_size": 3}, r"buffer_size: 3 .* parallels = 4 .* use buffer_size=4"),
    ({"buffer_size": 8, "batch_size": 16}, r"minibatches of 16; use batch_size=8"),
])
def test_what_does_not_divide_is_refused_with_what_would(keys, message):
    with pytest.raises(ConfigError, match=message):
        load_config("PPO", "classic_control", "CartPole-v1", overrides={"parallels": 4, **keys})


def test_learning_sees_the_frames_that_acting_saw(make):
    agent = make(parallels=2, buffer_size=16, frame_stack=3)
    learned, acted = [], []

    def update(rollout):
        learned.append(agent.learner.estimate(agent.learner.to_device(rollout)).obs["vector"])
        return {"update/loss": torch.zeros(())}

    def watch(_, inputs):
        if inputs[0]["vector"].dim() == 2:  # of acting, not of a rollout
            acted.append(inputs[0]["vector"].clone())

    agent.learner.update = update
    agent.policy.trunks[0].register_forward_pre_hook(watch)
    agent.train(21)
    assert len(learned) == 2 and learned[0].shape == (16, 6)
    assert torch.equal(torch.cat(learned), torch.cat(acted[:16]))


def test_a_run_with_stacked_frames_goes_on_as_it_was(make):
    keys = {"env": "toy", "env_id": "Catch-v0", "frame_stack": 3, "parallels": 2, "buffer_size": 16}
    one, other = make(**keys), make(**keys, seed=7)
    one.train(21)
    other.folder = one.folder
    other.load_run_state(unpack(*pack(one.run_state())))
    one.train(20)
    other.train(20)
    assert one.updates == other.updates > 2 and same(weights(one), weights(other))
