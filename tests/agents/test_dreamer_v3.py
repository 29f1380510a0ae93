"""DreamerV3's agent: acts from the first step, counts rows, goes on from stored states and writes them back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.agents.examples import Recorder, watched_environments
from xrl.agents.crash import replay_crash
from xrl.agents.dreamer_v3 import DreamerV3Agent
from xrl.common.config import as_config
from xrl.common.errors import ConfigError, NumericalError
from xrl.environment import make_envs


@pytest.fixture
def make(tmp_path):
    made: list[DreamerV3Agent] = []

    def agent(callbacks: Any = (), **keys: Any) -> DreamerV3Agent:
        config = as_config({"method": "DreamerV3", "env_name": "watched", "env_id": "any-v0", "preset": "debug",
                            "device": "cpu", "logger": "none", "model_dir": str(tmp_path), "start_training": 1, **keys})
        made.append(DreamerV3Agent(config, make_envs(config), callbacks))
        return made[-1]

    with watched_environments():
        yield agent
        for one in made:
            one.finish()
            one.envs.close()


@pytest.mark.parametrize("parallels", [1, 3])
def test_updates_come_at_their_ratio_to_rows_resets_included(make, parallels):
    recorder = Recorder()
    agent = make([recorder], parallels=parallels, train_ratio=4, env_kwargs={"length": 5})  # an update per 3 rows
    agent.train_until(90)
    resets = agent.rows - agent.agent_steps
    assert resets >= 90 // 5 and agent.rows == agent.replay.end * parallels
    # As many windows of 1 + 6 rows as a batch has rows, 2 x 6; the first update then, one more for every 3 rows.
    begun = next(rows for rows in range(parallels, 999, parallels) if (rows // parallels - 6) * parallels >= 12)
    assert agent.updates == 1 + (agent.rows - begun + parallels - 1) // 3
    assert recorder.named("update")[0][1] < 40


def test_the_untrained_policy_acts(make, monkeypatch):
    agent, acted = make(), []
    act = agent.acting_step
    agent.acting_step = lambda *arguments: acted.append(1) or act(*arguments)
    agent.train(5)
    assert len(acted) == 5


def test_nothing_is_learned_before_start_training(make):
    agent = make(start_training=60)
    agent.train(59)
    assert agent.updates == 0
    agent.train(3)
    assert agent.updates > 0


def states_of(agent, numbers, env=0):
    return agent.latents.get(np.asarray(numbers), np.full(len(numbers), env))


def test_states_are_stored_while_acting(make):
    agent, seen = make(start_training=1000), []
    act = agent.acting_step

    def watching(*arguments):
        action, state = act(*arguments)
        seen.append(state)
        return action, state

    agent.acting_step = watching
    agent.train(20)
    deter, stoch = states_of(agent, np.arange(len(seen)))
    assert np.allclose(deter, np.concatenate([state.deter.numpy() for state in seen]), atol=1e-3)
    one_hot = np.concatenate([state.stoch.numpy() for state in seen]).reshape(-1, 4, 4)
    assert np.array_equal(stoch, one_hot.argmax(-1)) and deter.any()


def test_an_update_goes_on_from_the_row_before_and_refreshes_what_it_trained(make, monkeypatch):
    agent = make(parallels=2, train_ratio=1, env_kwargs={"length": 5, "spread": 2})
    agent.train(40)
    replay, given = agent.replay, []
    update = agent.learner.update
    monkeypatch.setattr(agent.learner, "update", lambda rows, start: given.append((rows, start)) or update(rows, start))
    agent.settle()
    agent.learn()
    (rows, start), (envs, first) = given[0], agent.trained
    stored = replay.windows(envs, first)  # 1 + 6 rows
    assert len(rows.reward) == 6 and np.array_equal(rows.action, stored.action[1:])
    assert np.array_equal(rows.is_first, stored.is_first[1:]) and not rows.is_first[0].all()  # no reset is forced
    for got, kept in zip(start, agent.latents.get(first, envs), strict=True):
        assert np.array_equal(got, kept)
    before = agent.latents.get(first, envs)
    agent.settle()
    deter, classes = agent.learner.posterior
    for window, (env, number) in enumerate(zip(envs, first, strict=True)):
        if (envs == env).sum() > 1:
            continue  # windows that overlap: the later one wins
        found = states_of(agent, number + np.arange(1, 7), env)
        assert np.allclose(found[0], deter[:, window].numpy(), atol=1e-3)
        assert np.array_equal(found[1], classes[:, window].numpy())
        assert np.array_equal(states_of(agent, [number], env)[0], before[0][[window]])  # the first row is not


def test_without_context_sequences_start_afresh(make, monkeypatch):
    agent, given = make(**{"replay.context": 0}), []
    update = agent.learner.update
    monkeypatch.setattr(agent.learner, "update", lambda rows: given.append(rows) or update(rows))
    agent.train(40)
    assert agent.latents is None and given and all(rows.is_first[0].all() and len(rows.reward) == 6 for rows in given)


@pytest.mark.parametrize("online", [True, False])
def test_new_sequences_are_trained_on_first(make, monkeypatch, online):
    agent, windows = make(train_ratio=12, **{"replay.online": online}), []
    sample = agent.learner.update
    monkeypatch.setattr(agent.learner, "update", lambda *arguments: windows.append(0) or sample(*arguments))
    taken = []
    take = agent.online.take
    monkeypatch.setattr(agent.online, "take", lambda *arguments: taken.append(take(*arguments)) or taken[-1])
    agent.train(100)
    firsts = [int(first) for _, found in taken for first in found]
    assert firsts == ([*range(1, agent.replay.end - 7, 7)] if online else [])


@pytest.mark.parametrize(("mode", "alike"), [("sample", False), ("mode", True)])
def test_evaluations_sample_unless_told(make, mode, alike):
    agent = make(eval_mode=mode)
    agent.train(3)
    torch.nn.init.zeros_(agent.policy.actor.out.weight)  # so that chance decides, or the first action
    actions = [agent.act(agent.row, agent.initial_state(1), torch.Generator().manual_seed(seed), explore=False)[0]
               for seed in range(20)]
    assert (len({action.argmax() for action in actions}) == 1) == alike


def test_rows_can_lie_in_memory(make):
    agent = make(**{"replay.storage": "memory"})
    agent.train(40)
    assert agent.updates > 2 and not list(agent.folder.glob("replay/rows_*"))


def test_latent_states_count_as_memory(make, monkeypatch):
    monkeypatch.setattr("xrl.agents.replayed.check_fits", lambda nbytes, size: (_ for _ in ()).throw(
        ConfigError(f"{nbytes} bytes")))
    with pytest.raises(ConfigError, match=f"{2000 * (2 * 8 + 4)} bytes"):
        make().train(1)


def test_a_crash_runs_again_to_the_last_bit(make):
    agent = make(train_ratio=4)
    agent.train(30)
    draw = agent.replay.windows

    def poisoned(*arguments):
        rows = draw(*arguments)
        rows.reward[3, 1] = np.nan
        return rows

    agent.replay.windows = poisoned
    with pytest.raises(NumericalError, match=r"model/reward_loss.*first bad parameter: \w+.*\(opt\); the batch itself "
                                             r"is not finite in reward; all weights were left as they were; run it"):
        agent.train(30)
    (folder,) = agent.folder.glob("crash_*")
    report = replay_crash(folder)
    assert report.reproduced and report.identical
