"""What must hold of every method, whichever it is: a new entry in METHODS is tested here without a line more."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import xrl
from tests.agents.examples import Recorder, same, tiny, untimed, watched_environments, weights
from xrl.agents.base import Agent
from xrl.common.callback import Callback
from xrl.common.checkpoint import find_checkpoints
from xrl.common.config import as_config, load_config
from xrl.common.config_keys import keys_of
from xrl.common.files import read_metadata
from xrl.common.registry import load
from xrl.configs.schemas.base import RunConfig
from xrl.environment import REGISTRY_ENV, make_envs
from xrl.learners.base import Learner
from xrl.methods import METHODS

OBSERVATIONS = {
    "vector": spaces.Box(-1, 1, (3,), np.float32),
    "gray": spaces.Box(0, 255, (64, 64), np.uint8),
    "rgb": spaces.Box(0, 255, (3, 20, 30), np.uint8),
    "number": spaces.Discrete(4),
    "dict": spaces.Dict({"camera": spaces.Box(0, 255, (64, 64, 3), np.uint8),
                         "joints": spaces.Box(-1, 1, (2, 2), np.float32)}),
}
ACTIONS = {"discrete": spaces.Discrete(3), "continuous": spaces.Box(-2, 3, (2,), np.float32)}


class Anything(gymnasium.Env):
    """Random observations of one kind, episodes of 12 steps; every action must lie in its space."""

    def __init__(self, observation: str = "vector", action: str = "discrete") -> None:
        self.observation_space = deepcopy(OBSERVATIONS[observation])  # it holds a generator
        self.action_space = ACTIONS[action]
        self.frame = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.frame = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        self.frame += 1
        return self.observation_space.sample(), float(self.np_random.normal()), self.frame >= 12, False, {}


@pytest.fixture(params=list(METHODS))
def method(request) -> str:
    return request.param


@pytest.fixture
def make(method, tmp_path):
    """Makes agents of the method; everything is closed afterwards."""
    made: list[Agent] = []

    def make_agent(callbacks=(), **keys) -> Agent:
        config = as_config({**tiny(tmp_path / "models", "anything"), "method": method, **keys})
        made.append(load(METHODS[method].agent)(config, make_envs(config), callbacks))
        return made[-1]

    with watched_environments():
        REGISTRY_ENV["anything"] = Anything
        yield make_agent
        for agent in made:
            agent.finish()
            agent.envs.close()


def test_the_entry_leads_to_its_parts(method):
    entry = METHODS[method]
    assert issubclass(load(entry.agent), Agent) and issubclass(load(entry.learner), Learner)
    assert issubclass(load(entry.policy), torch.nn.Module) and issubclass(load(entry.schema), RunConfig)
    assert METHODS[method.upper()] is entry


def test_every_key_says_what_it_means_and_in_which_unit(method):
    keys = keys_of(load(METHODS[method].schema))
    for name, info in {**keys.leaves, **keys.sections}.items():
        assert info.description, name
    for name, info in keys.leaves.items():
        assert (info.json_schema_extra or {}).get("unit"), name


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_every_kind_of_environment_is_learned_from(make, observation, action):
    recorder = Recorder()
    agent = make([recorder], env_kwargs={"observation": observation, "action": action}, parallels=2)
    before = weights(agent)
    agent.train(25)
    assert agent.updates > 1 and not same(before, weights(agent))
    for event in recorder.named("update"):
        assert event[3] and all("/" in key and math.isfinite(value) for key, value in event[3].items())
    assert len(agent.test(2)) == 2


@pytest.mark.parametrize("action", ACTIONS)
def test_acting_depends_on_nothing_but_its_arguments_and_the_weights(make, action):
    agent = make(env_kwargs={"action": action}, parallels=2)
    agent.train(25)
    row, state = agent.row, agent.state
    for explore in (True, False):
        first, after = agent.act(row, state, torch.Generator().manual_seed(4), explore=explore)
        torch.rand(7)
        np.random.rand(3)
        agent.rng.random(2)
        again, after_again = agent.act(row, state, torch.Generator().manual_seed(4), explore=explore)
        assert first.dtype == np.float32 and np.array_equal(first, again)
        assert repr(after) == repr(after_again)
        assert (np.abs(first) <= 1).all()
        if action == "discrete":
            assert np.array_equal(np.sort(first, axis=-1), np.tile([0, 0, 1], (2, 1)))


def test_a_seed_is_a_run(make):
    runs = [make(seed=seed, parallels=2) for seed in (5, 5, 6)]
    for agent in runs:
        agent.train(25)
    assert same(weights(runs[0]), weights(runs[1])) and not same(weights(runs[0]), weights(runs[2]))
    logs = [untimed(agent.folder / "metrics.jsonl") for agent in runs]
    assert logs[0] == logs[1]


def test_evaluation_leaves_no_trace(make):
    plain, evaluated = make(), make()
    for agent in (plain, evaluated):
        agent.train(25)
        if agent is evaluated:
            agent.test(3)
        agent.train(20)
    assert same(weights(plain), weights(evaluated))


def test_a_saved_model_acts_the_same(make, method):
    agent, fresh = make(seed=1), make(seed=2)
    agent.train(25)
    path = agent.save_model("any.thing")
    assert read_metadata(path)["method"] == method
    fresh.load_model(path)
    assert same(weights(agent), weights(fresh)) and agent.counters == fresh.counters
    row = agent.envs.reset()
    actions = [one.act(row, one.initial_state(1), torch.Generator().manual_seed(1), explore=True)[0]
               for one in (agent, fresh)]
    assert np.array_equal(*actions)
    assert agent.evaluate(2).scores == fresh.evaluate(2).scores


def test_counters_and_updates_go_together(make):
    recorder = Recorder()
    agent = make([recorder], parallels=2, start_training=20)
    agent.train(9)
    assert agent.updates == 0 and agent.agent_steps == 18
    agent.train(11)
    assert agent.updates == len(recorder.named("update")) > 0
    assert 40 <= agent.agent_steps <= 41


def test_state_dict_comes_back(make):
    agent, fresh = make(seed=1), make(seed=2)
    agent.train(25)
    fresh.load_state_dict(agent.state_dict())
    assert repr(flat(fresh.state_dict())) == repr(flat(agent.state_dict()))


def flat(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: flat(value) for key, value in state.items()}
    return state.tolist() if isinstance(state, torch.Tensor) else state


def test_the_public_entry_runs_it(method, tmp_path):
    with watched_environments():
        runner = xrl.get_runner(method.lower(), "classic_control", "CartPole-v1", preset="debug", device="cpu",
                                model_dir=str(tmp_path), running_steps=60, eval_interval=30, logger="none")
        folder = runner.run()
    assert folder.parent == tmp_path / method / "CartPole-v1"
    assert load_config(config_path=folder / "config.yaml").config == runner.config


class Lost(Exception):
    """A power cut."""


class PowerCut(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, agent: Agent) -> None:
        if agent.agent_steps >= self.step:
            raise Lost


@pytest.mark.parametrize("action", ["CartPole-v1", "Pendulum-v1"])
def test_a_run_that_is_cut_and_resumed_is_the_same_run(method, action, tmp_path):
    def runner(name: str, *callbacks: Callback) -> Any:
        return xrl.get_runner(method=method, env="classic_control", env_id=action, model_dir=str(tmp_path / name),
                              preset="debug", logger="none", running_steps=150, checkpoint_every=40,
                              callbacks=callbacks)

    def last(folder: Any) -> dict[str, Any]:
        state = find_checkpoints(folder)[-1].load()
        state["callbacks"].pop("MetricLog")
        return state

    expected = last(runner("whole").run())
    with pytest.raises(Lost):
        runner("cut", PowerCut(130)).run()
    assert identical(last(runner("cut").run(resume=True)), expected)


def identical(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(identical(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(identical(*pair) for pair in zip(one, other, strict=True))
    return bool(np.array_equal(one, other)) and type(one) is type(other)
