"""DreamerV2's agent: when it acts, stores and learns; that a seed is a run; that evaluation touches nothing."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from scipy import stats

from tests.agents.examples import Recorder, same, stored_rows, untimed, weights
from xrl.common.callback import Callback
from xrl.common.errors import ConfigError
from xrl.common.row import ActionSpec, Row
from xrl.common.seeding import EVALUATION_SEED
from xrl.world_models.rssm import State


def updates_due(first: int, every: int, final: int) -> list[int]:
    """The agent steps at which an update falls due: the grid of the official code, first on it at once."""
    return list(range(first, final + 1, every))


@pytest.mark.parametrize("pretrain", [0, 3])
@pytest.mark.parametrize(("parallels", "every"), [(1, 4), (1, 1), (3, 4), (3, 1), (3, 2)])
def test_one_update_per_train_every_agent_steps(workshop, parallels, every, pretrain):
    """However many environments step at once; the episodes' resets count nowhere."""
    recorder = Recorder()
    agent = workshop.agent([recorder], parallels=parallels, train_every=every, pretrain=pretrain, start_training=20,
                           env_kwargs={"length": 5, "spread": 3})
    agent.train_until(60)
    steps = [event[1] for event in recorder.named("step")]
    began = next(step for step in steps if step >= 20)
    done = [event[1] for event in recorder.named("update")]
    assert done[:pretrain] == [began] * pretrain
    due = updates_due(began + 1, every, agent.agent_steps)
    # Each update happens at the first moment at which its agent step has been made.
    assert done[pretrain:] == [next(step for step in steps if step >= when) for when in due]
    assert agent.updates == pretrain + len(due)


def test_nothing_is_learned_before_start_training(workshop):
    agent = workshop.agent(start_training=30)
    before = weights(agent)
    agent.train(29)
    assert agent.updates == 0 and same(before, weights(agent)) and not agent.policy_acts
    agent.train(1)
    assert agent.updates == 1 and agent.policy_acts


def test_the_first_actions_are_uniform_over_discrete_actions(workshop, watched):
    workshop.agent(start_training=10_000).train(600)
    ones = int(np.sum(watched.made[0].actions))
    assert stats.binomtest(ones, 600).pvalue > 1e-3


def test_the_first_actions_are_uniform_over_the_bounds(workshop, watched):
    workshop.agent(start_training=10_000, env_kwargs={"continuous": True}).train(600)
    actions = np.array(watched.made[0].actions)
    assert actions.shape == (600, 2)
    for column in actions.T:
        assert stats.kstest(column, stats.uniform(-2, 4).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(actions.T)[0, 1]) < 0.15


def test_random_actions_end_with_fresh_episodes_for_the_policy(workshop, watched):
    """The cut episode is finished by the next row's is_first, in every environment; it is no episode of the log."""
    recorder = Recorder()
    agent = workshop.agent([recorder], parallels=2, start_training=20, env_kwargs={"length": 16})
    agent.train_until(30)
    stored = stored_rows(agent.replay)
    assert stored["is_first"].tolist() == [[row in (0, 11)] * 2 for row in range(17)]  # 2 x 10 steps, then 2 x 5
    assert not stored["is_last"].any()
    assert [made.resets for made in watched.made[:2]] == [2, 2]
    assert recorder.named("episode_end") == []
    agent.train_until(62)
    assert [event[3].length for event in recorder.named("episode_end")] == [16, 16]


def test_the_replay_holds_what_happened(workshop, watched):
    agent = workshop.agent(start_training=20, env_kwargs={"length": 9})
    agent.train(50)
    stored = stored_rows(agent.replay)
    (made,) = watched.made
    arrivals = ~stored["is_first"][:, 0]
    assert stored["action"][arrivals, 0].argmax(-1).tolist() == [int(action) for action in made.actions]
    frames = np.rint(10 * stored["obs.vector"][:, 0, 0]).astype(int)
    expected = frames + 0.5 * (stored["action"][:, 0].argmax(-1) == 0)
    assert stored["reward"][arrivals, 0].tolist() == expected[arrivals].tolist()
    assert stored["reward"][~arrivals, 0].tolist() == [0.0] * int((~arrivals).sum())
    assert ((frames == 9) == stored["is_last"][:, 0]).all() and (stored["is_last"] == stored["is_terminal"]).all()


# Acting ------------------------------------------------------------------------------------------------------------


def row_for(agent, is_first) -> Row:
    rng = np.random.default_rng(3)
    count, size = len(is_first), agent.envs.action_spec.size
    return Row({"vector": rng.normal(size=(count, 2)).astype(np.float32)},
               rng.uniform(-1, 1, (count, size)).astype(np.float32), np.zeros(count, np.float32),
               np.array(is_first), np.zeros(count, bool), np.zeros(count, bool))


def some_state(agent, count) -> State:
    zeros = agent.initial_state(count)
    generator = torch.Generator().manual_seed(9)
    return State(*(torch.randn(part.shape, generator=generator) for part in (zeros.deter, zeros.stoch)))


def act(agent, row, state, seed=0, explore=True):
    return agent.act(row, state, torch.Generator().manual_seed(seed), explore=explore)


@pytest.mark.parametrize("continuous", [False, True])
def test_a_reset_in_one_environment_is_no_business_of_the_other(workshop, continuous):
    agent = workshop.agent(parallels=2, env_kwargs={"continuous": continuous})
    state = some_state(agent, 2)
    action, after = act(agent, row_for(agent, [False, True]), state)
    running_action, running = act(agent, row_for(agent, [False, False]), state)
    fresh_action, fresh = act(agent, row_for(agent, [True, True]), agent.initial_state(2))
    for part in ("deter", "stoch"):
        mixed = getattr(after, part)
        assert torch.equal(mixed[0], getattr(running, part)[0])
        assert torch.equal(mixed[1], getattr(fresh, part)[1])
    assert not torch.equal(running.deter[1], fresh.deter[1])
    assert np.array_equal(action, [running_action[0], fresh_action[1]])


@pytest.mark.parametrize("continuous", [False, True])
def test_training_samples_and_evaluation_takes_the_mode(workshop, continuous):
    agent = workshop.agent(parallels=2, env_kwargs={"continuous": continuous})
    row, state = row_for(agent, [False, False]), some_state(agent, 2)
    sampled = []
    for seed in range(30):
        action, after = act(agent, row, state, seed, explore=False)
        hidden = agent.policy.actor.mlp(after.feat)
        if continuous:
            expected = agent.policy.actor.loc(hidden).tanh()
        else:
            expected = torch.nn.functional.one_hot(agent.policy.actor.out(hidden).argmax(-1), 2).float()
        assert np.array_equal(action, expected.detach().numpy())
        sampled.append(act(agent, row, state, seed)[0])
    assert len({array.tobytes() for array in sampled}) > 1
    shape = (2, agent.envs.action_spec.size)
    assert {array.shape for array in sampled} == {shape} and {array.dtype for array in sampled} == {np.dtype("f4")}


def test_the_latent_state_goes_from_step_to_step(workshop):
    """Each action depends on what was seen before, unless an episode has begun."""
    agent = workshop.agent()
    row = row_for(agent, [False])
    _, first = act(agent, row, agent.initial_state(1))
    _, second = act(agent, row, first)
    assert not torch.equal(first.deter, second.deter)
    agent.train(40)
    held = agent.state.deter.clone()
    agent.train(1)
    assert not torch.equal(held, agent.state.deter)


# One seed, one run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parallels", [1, 2])
def test_the_same_seed_is_the_same_run(workshop, parallels):
    runs = [workshop.agent(parallels=parallels, seed=seed, log_interval=10) for seed in (3, 3, 4)]
    for agent in runs:
        random.seed()  # whatever the process did in between
        np.random.seed(None)
        torch.seed()
        agent.train(60)
    first, again, other = runs
    assert first.updates > 3 and same(weights(first), weights(again))
    logs = [untimed(agent.folder / "metrics.jsonl") for agent in runs]
    assert logs[0] == logs[1] and len(logs[0]) > 6
    assert not same(weights(first), weights(other)) and logs[0] != logs[2]


def test_another_env_seed_is_another_run_of_the_same_networks(workshop):
    first, other = workshop.agent(env_seed=1), workshop.agent(env_seed=2)
    assert same(weights(first), weights(other))
    first.train(40)
    other.train(40)
    assert not same(weights(first), weights(other))


class Evaluates(Callback):
    """Evaluates after every 10th agent step."""

    def on_step(self, agent):
        if agent.agent_steps % 10 == 0:
            agent.test(3)


def test_a_run_with_evaluations_is_the_run_without(workshop):
    plain, evaluating = workshop.agent(), workshop.agent([Evaluates()])
    plain.train(60)
    evaluating.train(60)
    assert same(weights(plain), weights(evaluating))
    assert plain.row.obs["vector"].tolist() == evaluating.row.obs["vector"].tolist()


def generators(agent):
    return [repr(state) for state in (
        agent.rng.bit_generator.state, agent.generator.get_state().tolist(),
        agent.learner.generator.get_state().tolist(), random.getstate(), np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist())]


def test_an_evaluation_touches_nothing(workshop, watched):
    agent = workshop.agent(parallels=2)
    agent.train(30)
    training = watched.made[:2]

    def everything():
        replay = {key: value.tobytes() for key, value in stored_rows(agent.replay).items()}
        envs = [(made.steps, made.resets, made.np_random.bit_generator.state["state"]) for made in training]
        latent = (agent.state.deter.tolist(), agent.state.stoch.tolist())
        return replay, envs, latent, generators(agent), agent.counters, agent.scores.tolist(), agent.lengths.tolist()

    before, held = everything(), weights(agent)
    agent.evaluate(5)
    assert everything() == before and same(held, weights(agent))
    played = watched.made[2:]
    assert [made.seeds[0] for made in played if made.steps] == [1 + EVALUATION_SEED + i for i in range(5)]
    assert all(made.closed for made in played)


def test_evaluations_of_one_model_agree_whenever_they_are_made(workshop):
    agent = workshop.agent()
    agent.train(40)
    first = agent.evaluate(4)
    torch.rand(3)
    assert agent.evaluate(4) == first


# A loaded model goes on --------------------------------------------------------------------------------------------


def test_a_loaded_model_acts_at_once_and_learns_when_its_replay_has_filled(workshop, monkeypatch):
    agent = workshop.agent(start_training=20)
    agent.train(50)
    path = agent.save_model("m.pth")
    recorder = Recorder()
    later = workshop.agent([recorder], start_training=20, pretrain=5)
    later.load_model(path)
    monkeypatch.setattr(ActionSpec, "random", lambda *_: pytest.fail("a trained policy must not act by chance"))
    assert later.counters == agent.counters
    later.train(40)
    assert later.agent_steps == 90
    done = [event[1] for event in recorder.named("update")]
    assert done == updates_due(71, 10, 90)  # no pretrain: 20 steps fill the new replay, then the usual grid


# Replay ------------------------------------------------------------------------------------------------------------


def test_short_episodes_are_sampled_and_said_so_when_none_has_ended(workshop, capsys):
    agent = workshop.agent(start_training=20, env_kwargs={"length": 100}, **{"replay.sampling": "episodes"})
    agent.train(40)
    assert agent.updates > 0
    assert capsys.readouterr().err.count("no episode of replay.min_length has ended yet") == 1


def test_finished_episodes_need_no_notice(workshop, capsys):
    agent = workshop.agent(start_training=20, env_kwargs={"length": 9}, **{"replay.sampling": "episodes"})
    agent.train(40)
    assert agent.updates > 0 and "no episode" not in capsys.readouterr().err


def test_learning_waits_for_a_sequence(workshop, capsys):
    """start_training is reached before any episode holds seq_len rows, and the first one that does is then cut."""
    recorder = Recorder()
    agent = workshop.agent([recorder], start_training=2, seq_len=8, env_kwargs={"length": 30},
                           **{"replay.sampling": "episodes"})
    agent.train(30)
    first, second, *_ = [event[1] for event in recorder.named("update")]
    assert first == 7 and second >= 14  # 7 steps and the reset are 8 rows
    err = capsys.readouterr().err
    assert err.count("no updates yet: ") == 1 and err.count("no update: ") == 1


def test_the_size_of_the_replay_is_said_before_it_is_filled(workshop, capsys):
    workshop.agent(buffer_size=1_000_000).train(1)
    # 2 floats of observation, 2 of action, 1 of reward and 3 flags are 23 bytes a row.
    assert f"replay: 1,000,000 agent steps, up to {23e6 / 2**30:.3g} GiB" in capsys.readouterr().err


def test_a_replay_that_cannot_fit_is_refused_before_the_first_step(workshop, watched):
    agent = workshop.agent(buffer_size=10**14)
    with pytest.raises(ConfigError, match=r"buffer_size: 100000000000000 needs .* GiB .* use buffer_size="):
        agent.train(1)
    assert agent.agent_steps == 0 and watched.made[0].steps == 0


def test_learning_goes_on_after_a_model_is_loaded_into_a_trained_agent(workshop, watched):
    """Back in time or forward: the replay is refilled for start_training steps, then updates keep their cadence."""
    agent = workshop.agent()
    agent.train(60)
    path = agent.save_model("early.pth")
    agent.train(100)
    agent.load_model(path)
    updates = agent.updates
    agent.train(agent.config.start_training)
    assert agent.updates == updates
    agent.train(10 * agent.config.train_every)
    assert agent.updates == updates + 10


def test_a_player_can_step_and_look_inside_the_dream(workshop):
    """From the state that acting has come to: what the policy itself dreams and sees, whatever happened before."""
    agent = workshop.agent(parallels=2)
    agent.train(30)
    action = np.eye(2, dtype=np.float32)
    before = [value.clone() for value in agent.state]
    first, second = (agent.dream(agent.state, action, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    expected = agent.policy.dream(agent.state, torch.from_numpy(action), torch.Generator().manual_seed(3))
    assert all(torch.equal(one, other) for one, other in zip(first, expected, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(agent.state, before, strict=True))
    look, direct = agent.look(first), agent.policy.look(first)
    assert look.value.shape == (2,) and np.array_equal(look.value, direct.value)
    assert np.array_equal(look.obs["vector"], direct.obs["vector"])
