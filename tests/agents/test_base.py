"""The loop every method shares: counting, callbacks, interruption, numerical errors, saving by name."""

from __future__ import annotations

import math
import re
import signal
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.agents.examples import Recorder, Watched, WatchedRaw, records, same, tiny, weights
from xrl.agents.base import Agent, select_device
from xrl.agents.dreamer_v2 import DreamerV2Agent
from xrl.common import get_configs
from xrl.common.callback import Callback, Episode
from xrl.common.config import as_config, load_config
from xrl.common.errors import ConfigError, EnvironmentFault, NumericalError
from xrl.common.files import load_tensors
from xrl.common.run_folder import INTERRUPTED_MODEL, LAST_GOOD_MODEL
from xrl.environment import REGISTRY_ENV, make_envs


@pytest.mark.parametrize("environment", [Watched, WatchedRaw])
def test_an_agent_on_its_own_with_a_custom_environment(tmp_path, monkeypatch, watched, environment):
    """What the README promises, word for word, for an environment of either kind."""
    monkeypatch.chdir(tmp_path)
    Path("dreamerv2_myenv.yaml").write_text(yaml.safe_dump({
        "method": "DreamerV2", "env_name": "MyNewEnv", "env_id": "my-env-v0", "env_seed": 1, "seed": 1, "parallels": 2,
        "running_steps": 60, "preset": "debug", "device": "cpu", "env_kwargs": {"length": 6}}))
    configs_dict = get_configs(file_dir="dreamerv2_myenv.yaml")
    configs = Namespace(**configs_dict)
    REGISTRY_ENV[configs.env_name] = environment
    envs = make_envs(configs)
    agent = DreamerV2Agent(config=configs, envs=envs)
    agent.train(configs.running_steps // configs.parallels)
    agent.save_model("final_train_model.pth")
    agent.finish()
    assert agent.agent_steps == 60 and agent.updates > 0
    (folder,) = Path("models/DreamerV2/my-env-v0").iterdir()
    assert {path.name for path in folder.iterdir() if not path.name.startswith("events")} == {
        "config.yaml", "metrics.jsonl", "final_train_model.pth"}
    # The environments stay with whoever opened them.
    training = [made for made in watched.made if made.steps]
    assert [made.closed for made in training] == [0, 0]
    assert [made.seeds[0] for made in training] == [1, 2]
    envs.close()
    assert [made.closed for made in training] == [1, 1]


def test_train_again_goes_on_where_it_stopped(workshop):
    """Two calls are one, weight for weight, although the first ends within an episode."""
    whole, parts = workshop.agent(), workshop.agent()
    whole.train(60)
    for steps in (25, 1, 34):
        parts.train(steps)
    assert parts.counters == whole.counters == {"agent_steps": 60, "frames": 60, "updates": whole.updates}
    assert whole.updates > 2
    assert same(weights(whole), weights(parts))


@pytest.mark.parametrize("parallels", [1, 3])
def test_the_end_of_training(workshop, watched, parallels):
    """n x parallels agent steps, passed by parallels - 1 at most: resets at different times shift the sum."""
    agent = workshop.agent(parallels=parallels, env_kwargs={"length": 4, "spread": 3})
    target = 0
    for steps in (7, 1, 13):
        target = agent.agent_steps + steps * parallels
        agent.train(steps)
        assert target <= agent.agent_steps < target + parallels
    # What the environments themselves counted: steps, without resets.
    assert agent.agent_steps == sum(made.steps for made in watched.made)
    assert agent.replay.agent_steps == agent.agent_steps
    assert len(agent.replay) > agent.agent_steps  # reset rows are stored all the same


def test_frames_are_agent_steps_times_action_repeat(workshop, watched):
    agent = workshop.agent(env_kwargs={"length": 12}, **{"environment.action_repeat": 3})
    agent.train(20)
    assert agent.counters["agent_steps"] == 20 and agent.counters["frames"] == 60
    assert watched.made[0].steps == 60


def test_episodes_have_raw_returns_and_lengths(workshop, watched):
    recorder = Recorder()
    agent = workshop.agent([recorder], parallels=2, env_kwargs={"length": 4, "spread": 2}, start_training=1000)
    agent.train(40)
    found = [event[3] for event in recorder.named("episode_end")]
    for index, made in enumerate(watched.made):
        mine = [episode for episode in found if episode.env == index]
        episodes = made.steps // made.length
        zeros = (np.array(made.actions[:episodes * made.length]) == 0).reshape(episodes, made.length).sum(1)
        base = sum(range(1, made.length + 1))
        assert mine == [Episode(base + 0.5 * count, made.length, index) for count in zeros]
        assert len(mine) >= 6


def test_callbacks_in_order(workshop):
    recorder = Recorder()
    agent = workshop.agent([recorder], env_kwargs={"length": 30}, start_training=10, train_every=5, pretrain=2)
    agent.train(30)
    agent.test(1)
    agent.finish()
    order = [event[:3] for event in recorder.events]
    steps = [("step", n) for n in range(1, 31)]
    assert order[0] == ("train_begin", 0, 0) and recorder.events[0][3] == 30
    assert [event[:2] for event in order if event[0] == "step"] == steps
    # Two first updates at step 10, then one at 11 (the grid's first), 16, 21, 26; each before its step's on_step.
    updates = [event[1:] for event in order if event[0] == "update"]
    assert updates == [(10, 1), (10, 2), (11, 3), (16, 4), (21, 5), (26, 6)]
    assert order.index(("update", 16, 4)) == order.index(("step", 16, 4)) - 1
    assert [event[0] for event in order[-3:]] == ["train_end", "evaluation", "finish"]


@pytest.mark.parametrize("event", ["on_train_begin", "on_step", "on_episode_end", "on_update", "on_evaluation",
                                   "on_train_end"])
def test_a_callback_that_raises_is_heard(workshop, event):
    class Broken(Callback):
        pass

    def raise_it(*arguments):
        raise LookupError("mine")

    setattr(Broken, event, raise_it)
    agent, handler = workshop.agent([Broken()]), signal.getsignal(signal.SIGINT)
    with pytest.raises(LookupError, match="mine"):
        agent.train(40)
        agent.test(1)
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_test_without_a_runner(workshop):
    recorder = Recorder()
    agent = workshop.agent([recorder], test_episode=4)
    assert len(agent.test(3)) == 3
    assert len(agent.test()) == 4
    assert [len(event[3].scores) for event in recorder.named("evaluation")] == [3, 4]
    base = sum(range(1, 8))
    assert all(base <= score <= base + 3.5 for score in agent.test(2))


def test_the_first_interrupt_waits_for_the_step_and_saves(workshop, watched, capsys):
    recorder = Recorder()
    agent = workshop.agent([recorder])

    def interrupt(env, result):
        if env.steps == 45:
            signal.raise_signal(signal.SIGINT)
        return result

    watched.trouble, watched.trouble_at = interrupt, 45
    with pytest.raises(KeyboardInterrupt):
        agent.train(100)
    assert agent.agent_steps == 45 and recorder.events[-3][:2] == ("step", 45)
    assert [event[0] for event in recorder.events[-2:]] == ["pause", "train_end"]
    assert f"saved {agent.folder / INTERRUPTED_MODEL}" in capsys.readouterr().err
    fresh = workshop.agent()
    fresh.load_model(agent.folder / INTERRUPTED_MODEL)
    assert fresh.counters == agent.counters and same(weights(fresh), weights(agent))
    agent.train(5)  # nothing is left pending
    assert agent.agent_steps == 50


def test_an_interrupt_in_an_evaluation_ends_the_evaluation(workshop, watched):
    class Evaluate(Callback):
        def on_step(self, agent):
            if agent.agent_steps == 30:
                agent.test(500)

    agent = workshop.agent([Evaluate()])

    def interrupt(env, result):
        if watched.made.index(env) == 1 and env.steps == 3:
            signal.raise_signal(signal.SIGINT)
        return result

    watched.trouble = interrupt
    with pytest.raises(KeyboardInterrupt):
        agent.train(100)
    assert agent.agent_steps == 30 and (agent.folder / INTERRUPTED_MODEL).is_file()
    assert {made.closed for made in watched.made[1:]} == {1} and watched.made[1].steps == 3


def test_an_evaluation_of_no_episodes_is_refused(workshop, watched):
    with pytest.raises(ConfigError, match="episodes: 0"):
        workshop.agent().test(0)


def test_a_second_interrupt_is_immediate(workshop, watched):
    passed = []

    def interrupt(env, result):
        signal.raise_signal(signal.SIGINT)
        passed.append("first")
        signal.raise_signal(signal.SIGINT)
        passed.append("second")
        return result

    watched.trouble, watched.trouble_at = interrupt, 30
    agent = workshop.agent()
    with pytest.raises(KeyboardInterrupt):
        agent.train(100)
    assert passed == ["first"] and agent.agent_steps == 29
    assert not (agent.folder / INTERRUPTED_MODEL).exists()  # in the middle of whatever: nothing worth saving


def huge_rewards(env, result):
    return (result[0], 3e38, *result[2:])


def test_a_loss_that_is_not_finite_stops_the_run(workshop, watched):
    """The replay holds a reward whose square overflows; the weights from before it are saved."""
    agent = workshop.agent(log_interval=1000)  # metrics of good updates still wait to be written
    agent.train(40)
    updates, before = agent.updates, weights(agent)
    watched.trouble = huge_rewards
    with pytest.raises(NumericalError) as caught:
        agent.train(200)
    message = str(caught.value)
    assert "model/reward_loss" in message and "model/loss" in message and "discount_loss" not in message
    culprit = message.partition("first bad parameter: ")[2].split()[0]
    assert culprit in dict(agent.policy.named_parameters()) and "(model_opt)" in message
    assert agent.updates > updates > 0 and not same(before, weights(agent))
    path = agent.folder / LAST_GOOD_MODEL
    assert message.endswith(f"saved as {path}")
    tensors, _ = load_tensors(path)
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values() if tensor.is_floating_point())
    fresh = workshop.agent()
    fresh.load_model(path)
    assert same(weights(fresh), weights(agent))


@pytest.mark.parametrize(("name", "loss"), [
    ("world_model.encoder", "model/loss"), ("critic", "critic/loss"), ("actor", "actor/loss")])
def test_a_poisoned_weight_is_named_and_never_saved_as_good(workshop, name, loss):
    agent = workshop.agent()
    agent.train(40)
    poisoned = next(key for key, _ in agent.policy.named_parameters() if key.startswith(name))
    with torch.no_grad():
        weight = agent.policy.get_parameter(poisoned)
        weight[(-1,) * weight.dim()] = math.nan
    with pytest.raises(NumericalError) as caught:
        agent.train(40)
    assert loss in str(caught.value) and f"first bad parameter: {poisoned} " in str(caught.value)
    assert not list(agent.folder.glob("*.pth"))
    assert "saved" in str(caught.value)


@pytest.mark.parametrize(("trouble", "message"), [
    (lambda env, result: (np.array([0, np.nan], np.float32), *result[1:]), "step returned.*nan"),
    (lambda env, result: (np.zeros(3, np.float32), *result[1:]), r"step returned.*\(3,\)"),
    (lambda env, result: 1 / 0, "step raised ZeroDivisionError"),
])
def test_a_failing_environment_is_restarted_and_named_until_it_is_too_much(workshop, watched, capsys, trouble, message):
    """At the end of a step: everything is whole then, so that a run's checkpointer can save it."""
    recorder = Recorder()
    watched.trouble, watched.trouble_at = trouble, 30
    agent = workshop.agent([recorder], env_id="broken-v0", parallels=2, max_env_failures=2)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(EnvironmentFault, match=rf"4 failures .*max_env_failures: 2.*(?s:.)*{message}"):
        agent.train(100)
    told = capsys.readouterr().err
    assert re.search(rf"environment 0 failed and was restarted \(\d of at most 2\).*\n.*{message}", told)
    assert [len(recorder.named(event)) for event in ("failure", "pause", "train_end")] == [4, 1, 1]
    assert agent.row.is_first.all() and signal.getsignal(signal.SIGINT) is handler


def test_a_bare_name_is_a_file_of_the_run_and_a_path_a_path(workshop, tmp_path):
    agent, fresh = workshop.agent(seed=5), workshop.agent(seed=6)
    assert agent.save_model("my.pth") == agent.folder / "my.pth"
    assert agent.save_model(str(tmp_path / "deep" / "er.bin")) == tmp_path / "deep" / "er.bin"
    assert agent.load_model("my.pth") == agent.folder / "my.pth"
    assert fresh.load_model(tmp_path / "deep" / "er.bin") == tmp_path / "deep" / "er.bin"
    assert same(weights(fresh), weights(agent))
    assert workshop.agent().load_model(agent.folder) == agent.folder / "my.pth"


def test_the_run_folder_holds_the_config_and_is_made_once(workshop):
    agent = workshop.agent(seed=7)
    assert not workshop.model_dir.exists()  # an agent that is only looked at leaves nothing behind
    folder = agent.folder
    assert folder == agent.folder and folder.parent == workshop.model_dir / "DreamerV2" / "any-v0"
    assert folder.name.startswith("seed_7_")
    assert load_config(config_path=folder / "config.yaml").config == agent.config


def test_config_as_schema_dict_or_namespace(tmp_path, watched):
    plain = tiny(tmp_path, parallels=2)
    for config in (plain, Namespace(**plain), as_config(plain)):
        with make_envs(config) as envs:
            assert DreamerV2Agent(config, envs).config == as_config(plain)


@pytest.mark.parametrize(("name", "kind"), [("auto", None), ("cpu", "cpu")])
def test_select_device(name, kind):
    assert select_device(name).type == (kind or ("cuda" if torch.cuda.is_available() else "cpu"))


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cuda:x"])
def test_no_such_device(name):
    with pytest.raises(ConfigError, match=f"device: '{name}'.*use"):
        select_device(name)


def test_an_interrupt_does_not_outlive_its_training(workshop, watched):
    def twice(env, result):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return result

    agent = workshop.agent()
    watched.trouble, watched.trouble_at = twice, 10
    with pytest.raises(KeyboardInterrupt):
        agent.train(40)
    watched.trouble = None
    assert len(agent.test(2)) == 2


def test_a_run_too_short_to_learn_says_so(workshop, watched, capsys):
    workshop.agent(start_training=50).train(30)
    assert "no update was made in 30 agent steps: learning begins after start_training = 50" in capsys.readouterr().err


def test_methods_without_a_world_model_say_that_they_have_none(workshop):
    agent = workshop.agent()
    for ask in (lambda: Agent.look(agent, None), lambda: Agent.dream(agent, None, None, None)):
        with pytest.raises(ConfigError, match="method: DreamerV2 has no world model to "):
            ask()
    assert Agent.inspect(agent, ()) is None


def test_an_evaluation_holds_out_the_first_episodes_and_is_the_same_again(workshop):
    agent = workshop.agent(test_parallels=2)
    agent.train(25)
    first, second = agent.evaluate(3), agent.evaluate(3)
    assert [len(rows.reward) for rows in first.held_out] == [8, 8] and first == second
    for rows, again in zip(first.held_out, second.held_out, strict=True):
        assert np.array_equal(rows.action, again.action)
        assert all(np.array_equal(rows.obs[name], again.obs[name]) for name in rows.obs)


def test_what_the_log_wrote_is_told(workshop):
    class Records(Callback):
        def on_record(self, agent, record):
            self.told = [*getattr(self, "told", []), {**agent.counters, **record}]

    told = Records()
    agent = workshop.agent([told], log_interval=10)
    agent.train(35)
    written = [record for record in records(agent.folder / "metrics.jsonl") if "time/fps" in record]
    assert told.told == written and len(written) == 4


def test_evaluations_play_at_most_test_parallels_side_by_side(workshop, watched):
    agent = workshop.agent(test_parallels=2)
    before = len(watched.made)
    agent.test(5)
    assert len(watched.made) - before == 2


def test_determinism_follows_the_configuration(workshop):
    try:
        for said, expected in ((False, False), (None, True), (True, True)):
            workshop.agent(deterministic=said)
            assert torch.are_deterministic_algorithms_enabled() == expected
    finally:
        torch.use_deterministic_algorithms(False)
