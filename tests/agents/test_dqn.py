"""DQN as a whole: time limits, chance, cadence, prioritised replay, the spaces it does not take."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import xrl
from tests.agents.chain import GAMMA, LENGTH, Chain, forget_the_difference, values
from tests.agents.examples import Recorder, same, tiny, watched_environments, weights
from xrl.agents.dqn import DQNAgent
from xrl.common.config import as_config
from xrl.common.errors import ConfigError
from xrl.common.state import pack, unpack
from xrl.environment import REGISTRY_ENV, make_envs


@pytest.fixture
def make(tmp_path):
    made = []

    def make_agent(callbacks=(), env="watched", **keys) -> DQNAgent:
        plain = {"parallels": 1, "n_step": 1, "double": False}
        config = as_config({**tiny(tmp_path / "models", env), "method": "DQN", **plain, **keys})
        made.append(DQNAgent(config, make_envs(config), callbacks))
        return made[-1]

    with watched_environments():
        REGISTRY_ENV["chain"] = Chain
        yield make_agent
        for agent in made:
            agent.finish()
            agent.envs.close()


def learned(make, ends, mistaken=False, **keys):
    agent = make(env="chain", env_kwargs={"ends": ends}, gamma=GAMMA, parallels=4, start_training=40, batch_size=32,
                 train_every=1, target_every=10, **{"optimizer.lr": 1e-2, "network.units": 32, "network.layers": 1,
                                                    "exploration.end": 1.0, **keys})
    if mistaken:
        forget_the_difference(agent)
    agent.train(140)
    with torch.no_grad():
        return agent.policy.q({"vector": torch.eye(LENGTH)}).numpy()


@pytest.mark.parametrize(("ends", "keys"), [
    ("truncated", {}), ("terminated", {}), ("truncated", {"n_step": 3}), ("terminated", {"n_step": 3}),
    ("truncated", {"double": True, "dueling": True, "network.layers": 2, "replay.prioritized": True})], ids=str)
def test_action_values_are_those_worked_by_hand(make, ends, keys):
    found = learned(make, ends, **keys)
    np.testing.assert_allclose(found, np.tile(values(ends)[:, None], 2), rtol=0.08)


@pytest.mark.parametrize("keys", [{}, {"n_step": 3}], ids=str)
def test_a_time_limit_taken_for_an_end_would_be_noticed(make, keys):
    found = learned(make, "truncated", mistaken=True, **keys)
    assert (np.abs(found / values("truncated")[:, None] - 1) > 0.3).all()


def test_updates_begin_after_the_random_actions_and_keep_their_cadence(make):
    recorder = Recorder()
    agent = make([recorder], parallels=2, start_training=20, train_every=4)
    agent.train(16)
    assert [steps for _, steps, _, _ in recorder.named("update")] == [20, 24, 28, 32]
    fast = make(parallels=2, start_training=20, train_every=1)
    fast.train(12)
    assert fast.updates == 5, "at 20, 21, .. 24: several at once, as two environments step at once"


def test_a_loaded_model_acts_at_once_and_learns_when_as_much_is_stored_again(make):
    one, other = make(start_training=20, train_every=4), make(start_training=20, train_every=4)
    one.train(30)
    other.load_state_dict(one.state_dict())
    updates = other.updates
    other.train(19)
    assert other.updates == updates > 0
    other.train(1)
    assert other.updates == updates + 1


def test_chance_shrinks_from_the_end_of_the_random_actions_on(make):
    agent = make(start_training=20, **{"exploration.steps": 40, "exploration.start": 0.9, "exploration.end": 0.1})
    seen = {}
    for steps in (10, 20, 20, 40):
        agent.train(steps)
        seen[agent.agent_steps] = agent.policy.epsilon.item()  # of the action that led here
    assert seen == pytest.approx({10: 0.9, 30: 0.9 - 0.02 * 9, 50: 0.9 - 0.02 * 29, 90: 0.1})


def test_errors_become_priorities(make):
    agent = make(**{"replay.prioritized": True, "start_training": 20, "train_every": 4, "parallels": 2})
    agent.train(20)
    priorities = agent.replay.stored.save(agent.folder / "replay")["priorities"]["values"]
    assert len(np.unique(priorities)) > 5, "not all as new"
    uniform = make(start_training=20, train_every=4, parallels=2)
    uniform.train(20)
    assert uniform.replay.stored.save(uniform.folder / "replay")["priorities"] is None


@pytest.mark.parametrize("keys", [
    {"frame_stack": 3, "n_step": 2}, {"replay.prioritized": True}, {"replay.storage": "memory"}], ids=str)
def test_a_run_goes_on_as_it_was(make, keys):
    keys = {"env": "toy", "env_id": "Catch-v0", "parallels": 2, "train_every": 4, **keys}
    one, other = make(**keys), make(**keys, seed=7)
    one.train(31)
    other.folder = one.folder
    other.load_run_state(unpack(*pack(one.run_state())))
    one.train(20)
    other.train(20)
    assert one.updates == other.updates > 5 and same(weights(one), weights(other))


def test_a_box_is_refused_with_those_who_take_it(tmp_path):
    runner = xrl.get_runner("DQN", "classic_control", "Pendulum-v1", preset="debug", model_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=r"method: DQN takes discrete actions, and this environment has continuous "
                                          r"ones; methods that can: .*PPO, .*SAC"):
        runner.run()
    assert not list(tmp_path.iterdir())


def test_a_replay_that_does_not_fit_is_refused(make, monkeypatch):
    monkeypatch.setattr("xrl.memory.memory_check.available_memory", lambda: 1000)
    with pytest.raises(ConfigError, match=r"buffer_size: 2000 needs .* use buffer_size="):
        make(**{"replay.storage": "memory"}).train(1)
