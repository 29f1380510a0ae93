"""Learning beside acting, and batches drawn ahead: who sees and does what is defined, not raced."""

from __future__ import annotations

import copy
import time

import pytest
import torch

from tests.agents.examples import Recorder, same, weights
from xrl.agents import background
from xrl.common.errors import NumericalError
from xrl.common.run_folder import LAST_GOOD_MODEL


def fingerprint(module):
    return float(sum(parameter.detach().double().abs().sum() for parameter in module.parameters()))


def watched_agent(workshop, delay=lambda update: 0.0, **changes):
    """An agent that notes, in order, every action's weights and every update's beginning and resulting weights."""
    agent = workshop.agent(start_training=20, train_every=4, pretrain=2, **changes)
    events = []
    acting = agent.background.acting if agent.background else agent.policy
    explore, step = agent.acting_step, agent.learner.update

    def noted_explore(*arguments):
        events.append(("act", agent.agent_steps, fingerprint(acting)))
        return explore(*arguments)

    def noted_update(batch):
        time.sleep(delay(agent.learner.updates))
        metrics = step(batch)
        events.append(("learned", agent.learner.updates, fingerprint(agent.policy)))
        return metrics

    agent.acting_step, agent.learner.update = noted_explore, noted_update
    return agent, events


def test_with_a_lag_every_action_has_the_weights_of_the_update_before_the_one_under_way(workshop):
    agent, events = watched_agent(workshop, policy_lag=1)
    begun = []
    begin = agent.background.begin
    agent.background.begin = lambda batch: (begun.append(agent.agent_steps), begin(batch))
    agent.train_until(60)
    agent.finish()
    after = {number: print_ for kind, number, print_ in events if kind == "learned"}
    actions = [(step, print_) for kind, step, print_ in events if kind == "act"]
    assert len(begun) == agent.updates == len(after) and len(actions) > 30
    for step, print_ in actions:
        started = sum(when <= step for when in begun)
        # The random phase ends with its updates handed over; from then on the last one started is not yet acted with.
        known = 2 if started == 2 else started - 1
        assert print_ == pytest.approx(after[known], rel=1e-12), (step, started)


def test_without_a_lag_the_newest_weights_act(workshop):
    agent, events = watched_agent(workshop)
    agent.train_until(60)
    newest = None
    for kind, _, print_ in events:
        if kind == "act":
            assert print_ == newest
        newest = print_


@pytest.mark.parametrize("changes", [{"policy_lag": 1}, {"policy_lag": 1, "batches_ahead": 1}])
def test_how_long_an_update_takes_changes_nothing(workshop, changes):
    fast, _ = watched_agent(workshop, **changes)
    fast.train_until(60)
    slow, _ = watched_agent(workshop, lambda update: 0.02 if update % 3 else 0.0, **changes)
    slow.train_until(60)
    assert same(weights(fast), weights(slow)) and fast.updates == slow.updates > 5


@pytest.mark.parametrize("changes", [{"policy_lag": 1}, {"batches_ahead": 1}])
def test_it_is_another_run_than_the_published_one(workshop, changes):
    quick = {"start_training": 20, "actor_opt.lr": 0.1}  # so that the actions differ at once
    plain, other = workshop.agent(**quick), workshop.agent(**quick, **changes)
    plain.train_until(60)
    other.train_until(60)
    assert plain.updates == other.updates and not same(weights(plain), weights(other))


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("lag", [0, 1])
def test_which_rows_a_batch_can_see(workshop, ahead, lag):
    """Those up to its own update, or with batches_ahead up to the beginning of the update before."""
    agent = workshop.agent(start_training=20, train_every=4, pretrain=1, batches_ahead=ahead, policy_lag=lag)
    drawn, begun = [], []
    draw, update = agent.draw, agent.learner.update
    agent.draw = lambda: drawn.append(agent.agent_steps) or draw()
    agent.learner.update = lambda batch: begun.append(agent.agent_steps) or update(batch)
    agent.train_until(60)
    due = [20, *range(21, 61, 4)]
    assert drawn == (due if not ahead else [due[0], *due])
    if not lag:
        assert begun == due


@pytest.mark.parametrize("lag", [0, 1])
def test_an_evaluation_between_changes_no_weight(workshop, lag):
    plain, tested = (workshop.agent(start_training=20, policy_lag=lag) for _ in range(2))
    plain.train_until(60)
    for target in range(21, 61):
        tested.train_until(target)
        if target % 7 == 0:
            tested.evaluate(1)
    assert same(weights(plain), weights(tested))


def test_what_a_background_update_raises_reaches_the_loop(workshop):
    agent = workshop.agent(start_training=20, policy_lag=1)
    agent.train_until(30)
    with torch.no_grad():
        agent.policy.critic.out.bias.fill_(torch.nan)
    with pytest.raises(NumericalError, match="critic"):
        agent.train_until(60)


def test_counters_and_saved_state_count_finished_updates(workshop):
    recorder = Recorder()
    agent = workshop.agent([recorder], start_training=20, train_every=4, policy_lag=1)
    agent.train_until(60)
    assert agent.state_dict()["learner"]["updates"] == agent.updates == len(recorder.named("update"))


def test_a_loaded_model_acts_at_once(workshop, tmp_path):
    agent = workshop.agent(start_training=20, policy_lag=1)
    agent.train_until(40)
    path = agent.save_model(str(tmp_path / "model.pth"))
    fresh = workshop.agent(start_training=20, policy_lag=1)
    fresh.load_model(path)
    assert fingerprint(fresh.background.acting) == fingerprint(agent.policy) and fresh.updates == agent.updates


def test_training_goes_on_after_finish(workshop):
    whole, halves = (workshop.agent(start_training=20, policy_lag=1) for _ in range(2))
    whole.train_until(60)
    halves.train_until(40)
    halves.finish()
    halves.train_until(60)
    assert same(weights(whole), weights(halves))


def test_loading_waits_for_the_update_under_way(workshop):
    agent, _ = watched_agent(workshop, lambda update: 0.05, policy_lag=1)
    agent.train_until(40)
    state = copy.deepcopy(agent.state_dict())
    agent.learn()
    agent.load_state_dict(state)
    agent.settle()
    assert fingerprint(agent.policy) == fingerprint(agent.background.acting) and agent.updates == agent.learner.updates
    for name, value in agent.policy.state_dict().items():
        assert torch.equal(value, state["policy"][name])


def test_a_bad_update_under_way_leaves_a_good_model(workshop):
    """The loss of update n is not finite while update n + 1 is being prepared: n is found, and the weights are kept."""
    agent = workshop.agent(start_training=20, policy_lag=1, train_every=4)
    agent.train_until(40)
    agent.settle()
    loss = agent.learner.critic_loss
    agent.learner.critic_loss = lambda dream: (loss(dream)[0] * torch.nan, {"critic/loss": torch.tensor(torch.nan)})
    with pytest.raises(NumericalError, match=r"critic.*saved as"):
        agent.train_until(60)
    assert (agent.folder / LAST_GOOD_MODEL).exists()


def test_an_interrupt_while_waiting_loses_no_update(workshop, monkeypatch):
    agent, _ = watched_agent(workshop, lambda update: 0.05, policy_lag=1)
    agent.train_until(40)
    agent.learn()
    before = agent.updates

    def interrupted(futures):
        raise KeyboardInterrupt

    monkeypatch.setattr(background, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        agent.settle()
    monkeypatch.undo()
    agent.settle()
    assert agent.updates == agent.learner.updates == before
