"""SAC as a whole: time limits, cadence, resuming."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.agents.chain import GAMMA, LENGTH, Chain, forget_the_difference, values
from tests.agents.examples import Recorder, same, tiny, watched_environments, weights
from xrl.agents.sac import SACAgent
from xrl.common.config import as_config
from xrl.common.state import pack, unpack
from xrl.environment import REGISTRY_ENV, make_envs


@pytest.fixture
def make(tmp_path):
    made = []

    def make_agent(callbacks=(), env="watched", **keys) -> SACAgent:
        kinds = {"env_kwargs": {"continuous": True, **keys.pop("env_kwargs", {})}} if env != "classic_control" else {}
        config = as_config({**tiny(tmp_path / "models", env), "method": "SAC", **kinds, **keys})
        made.append(SACAgent(config, make_envs(config), callbacks))
        return made[-1]

    with watched_environments():
        REGISTRY_ENV["chain"] = Chain
        yield make_agent
        for agent in made:
            agent.finish()
            agent.envs.close()


def learned(make, ends, mistaken=False):
    """With next to no temperature the soft value is the value."""
    agent = make(env="chain", env_kwargs={"ends": ends}, gamma=GAMMA, parallels=4, start_training=40, batch_size=32,
                 train_every=1, target_rate=0.1, **{
                     "critic_opt.lr": 1e-2, "network.units": 32, "network.layers": 1, "temperature.automatic": False,
                     "temperature.start": 1e-6})
    if mistaken:
        forget_the_difference(agent)
    agent.train(120)
    with torch.no_grad():
        return agent.policy.critics({"vector": torch.eye(LENGTH)}, torch.zeros(LENGTH, 1)).numpy()


@pytest.mark.parametrize("ends", ["truncated", "terminated"])
def test_both_critics_learn_the_values_worked_by_hand(make, ends):
    np.testing.assert_allclose(learned(make, ends), [values(ends)] * 2, rtol=0.08)


def test_a_time_limit_taken_for_an_end_would_be_noticed(make):
    found = learned(make, "truncated", mistaken=True)
    assert (np.abs(found / values("truncated") - 1) > 0.3).all()


def test_updates_begin_after_the_random_actions_and_keep_their_cadence(make):
    recorder = Recorder()
    agent = make([recorder], start_training=20, train_every=3)
    agent.train(30)
    assert [steps for _, steps, _, _ in recorder.named("update")] == [20, 23, 26, 29]


@pytest.mark.parametrize("keys", [{"frame_stack": 3}, {"replay.storage": "memory"}], ids=str)
def test_a_run_goes_on_as_it_was(make, keys):
    keys = {"env": "classic_control", "env_id": "Pendulum-v1", "parallels": 2, "train_every": 4, **keys}
    one, other = make(**keys), make(**keys, seed=7)
    one.train(31)
    other.folder = one.folder
    other.load_run_state(unpack(*pack(one.run_state())))
    one.train(20)
    other.train(20)
    assert one.updates == other.updates > 5 and same(weights(one), weights(other))
