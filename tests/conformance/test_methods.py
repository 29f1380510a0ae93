"""What must hold of every method, whichever it is, over every kind of observation and action that it claims: a new
entry in METHODS is tested here without a line more."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import is_dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import xrl
from tests.agents.examples import Recorder, same, tiny, untimed, watched_environments, weights
from tests.counting import Calls
from tests.methods import learn, quick, takes, task_of, tasks
from xrl.agents.base import Agent
from xrl.common.callback import Callback
from xrl.common.checkpoint import find_checkpoints
from xrl.common.config import as_config, load_config
from xrl.common.config_keys import keys_of
from xrl.common.errors import ConfigError, NumericalError
from xrl.common.files import read_metadata
from xrl.common.registry import load
from xrl.configs.schemas.base import RunConfig
from xrl.environment import REGISTRY_ENV, make_envs
from xrl.environment.spaces import Observations, read_action_space
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
ACTIONS = {"discrete": spaces.Discrete(3), "multi_discrete": spaces.MultiDiscrete([2, 3]),
           "continuous": spaces.Box(-2, 3, (2,), np.float32)}



def kinds_of(observation: str) -> set[str]:
    return {spec.kind for spec in Observations(OBSERVATIONS[observation], "").spec.values()}


def claims(method: str, observation: str, action: str) -> bool:
    return all(takes(method, kind, action) for kind in kinds_of(observation))


def is_read(space: spaces.Space[Any]) -> bool:
    """Whether environments take such actions at all."""
    try:
        read_action_space(space, "")
    except ConfigError:
        return False
    return True


READ = [action for action, space in ACTIONS.items() if is_read(space)]
EVERYTHING = [(method, observation, action) for method in METHODS for observation in OBSERVATIONS for action in READ]
CLAIMED = [each for each in EVERYTHING if claims(*each)]
ACTING = [(method, action) for method in METHODS for action in READ if action in METHODS[method].actions]


class Anything(gymnasium.Env):
    """Random observations of one kind, episodes of 12 steps; every action must lie in its space."""

    def __init__(self, observation: str = "vector", action: str = "discrete") -> None:
        self.observation_space = deepcopy(OBSERVATIONS[observation])  # it holds a generator
        self.action_space = deepcopy(ACTIONS[action])
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
    """Makes agents of the method, of the first kinds that it claims unless told; everything is closed afterwards."""
    made: list[Agent] = []
    kinds = next({"observation": observation, "action": action} for name, observation, action in CLAIMED
                 if name == method)

    def make_agent(callbacks=(), env_kwargs=None, **keys) -> Agent:
        config = as_config({**tiny(tmp_path / "models", "anything"), "method": method,
                            "env_kwargs": {**kinds, **(env_kwargs or {})}, **keys})
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
    assert entry.observations and {*entry.observations} <= {"image", "vector"}
    assert entry.actions and {*entry.actions} <= {*ACTIONS}


def test_every_key_says_what_it_means_and_in_which_unit(method):
    keys = keys_of(load(METHODS[method].schema))
    for name, info in {**keys.leaves, **keys.sections}.items():
        assert info.description, name
    for name, info in keys.leaves.items():
        assert (info.json_schema_extra or {}).get("unit"), name


# Every kind that is claimed, and no other ---------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "observation", "action"), CLAIMED, indirect=["method"])
def test_every_kind_of_environment_that_is_claimed_is_learned_from(make, observation, action):
    recorder = Recorder()
    agent = make([recorder], env_kwargs={"observation": observation, "action": action}, parallels=2)
    before = weights(agent)
    learn(agent)
    assert not same(before, weights(agent))
    for event in recorder.named("update"):
        assert event[3] and all("/" in key and math.isfinite(value) for key, value in event[3].items())
    assert len(agent.test(2)) == 2


def refused(method: str, observation: str, action: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The message of a run that must be refused before anything of it exists."""
    def built(*_: Any, **__: Any) -> None:
        raise AssertionError("networks are built of what the method does not take")

    monkeypatch.setattr(load(METHODS[method].policy), "__init__", built)
    monkeypatch.setitem(REGISTRY_ENV, "anything", Anything)
    runner = xrl.get_runner(method, "anything", "any-v0", model_dir=str(tmp_path / "models"), preset="debug",
                            env_kwargs={"observation": observation, "action": action})
    with pytest.raises(ConfigError) as caught:
        runner.run()
    assert not (tmp_path / "models").exists()
    return str(caught.value)


@pytest.mark.parametrize(("method", "observation", "action"), [each for each in EVERYTHING if each not in CLAIMED])
def test_a_kind_that_is_not_claimed_is_refused_before_anything_is_built(method, observation, action, tmp_path,
                                                                        monkeypatch):
    message = refused(method, observation, action, tmp_path, monkeypatch)
    assert message.startswith(f"method: {method} takes ")
    able = [name for name in METHODS if claims(name, observation, action)]
    assert message.endswith(f"methods that can: {', '.join(able)}" if able else "no method here can")


@pytest.mark.parametrize("claim", ["observations", "actions"])
def test_what_an_entry_does_not_claim_its_agent_refuses(method, claim, tmp_path, monkeypatch):
    """Also where the method could do it: the claim decides."""
    _, observation, action = next(each for each in CLAIMED if each[0] == method)
    dropped = {action} if claim == "actions" else kinds_of(observation)
    kept = tuple(kind for kind in getattr(METHODS[method], claim) if kind not in dropped) or ("none",)
    entry = METHODS[method]
    METHODS[method] = replace(entry, **{claim: kept})
    try:
        message = refused(method, observation, action, tmp_path, monkeypatch)
    finally:
        METHODS[method] = entry
    assert kept[0] in message and dropped & {*message.split()}


# Acting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "action"), ACTING, indirect=["method"])
def test_acting_depends_on_nothing_but_its_arguments_and_the_weights(make, action):
    agent = make(env_kwargs={"action": action}, parallels=2)
    learn(agent)
    row, state = agent.row, agent.state
    for explore in (True, False):
        first, after = agent.act(row, state, torch.Generator().manual_seed(4), explore=explore)
        torch.rand(7)
        np.random.rand(3)
        agent.rng.random(2)
        again, after_again = agent.act(row, state, torch.Generator().manual_seed(4), explore=explore)
        assert first.dtype == np.float32 and np.array_equal(first, again)
        assert repr(after) == repr(after_again)
        # A normal law may leave [-1, 1]; that environments get what is in their space, ``Anything.step`` sees to.
        assert first.shape == (2, agent.envs.action_spec.size) and np.isfinite(first).all()
        for choice in np.split(first, np.cumsum(agent.envs.action_spec.choices)[:-1].astype(int), axis=1):
            if action != "continuous":
                assert np.array_equal(np.sort(choice), np.eye(choice.shape[1])[[-1, -1]])


def test_a_seed_is_a_run(make):
    runs = [make(seed=seed, parallels=2) for seed in (5, 5, 6)]
    begun = [weights(agent) for agent in runs]
    assert same(begun[0], begun[1]) and not same(begun[0], begun[2])
    for agent in runs:
        learn(agent)
    assert same(weights(runs[0]), weights(runs[1])) and not same(weights(runs[0]), weights(runs[2]))
    logs = [untimed(agent.folder / "metrics.jsonl") for agent in runs]
    assert logs[0] == logs[1]


def test_evaluation_leaves_no_trace(make):
    plain, evaluated = make(), make()
    for agent in (plain, evaluated):
        learn(agent)
        if agent is evaluated:
            agent.test(3)
        learn(agent)
    assert same(weights(plain), weights(evaluated))


def test_counters_and_updates_go_together(make):
    recorder = Recorder()
    agent = make([recorder], parallels=2)
    agent.train(9)
    assert agent.agent_steps == 18 and agent.updates == len(recorder.named("update"))
    learn(agent)
    updates = [updates for _, _, updates, _ in recorder.named("update")]
    assert agent.updates == len(updates) >= 2 and updates == sorted(updates)
    assert agent.frames == agent.agent_steps * agent.envs.action_repeat


# Learning ---------------------------------------------------------------------------------------------------------


def test_a_gradient_step_never_waits_for_the_device(make, method, monkeypatch):
    """Neither ``step`` nor what one CUDA graph is to hold."""
    kind, waits = load(METHODS[method].learner), []

    def watched(function):
        def watching(*args, **kwargs):
            with Calls() as calls:
                result = function(*args, **kwargs)
            waits.append([call.name for call in calls.all if call.waits])
            return result

        return watching

    monkeypatch.setattr(kind, "step", watched(kind.step))
    monkeypatch.setattr(sys.modules[kind.__module__], "captured", lambda function, *_: watched(function), raising=False)
    learn(make(), 1)
    assert waits and not any(waits)


def test_metrics_of_an_update_are_scalars_on_the_device(make):
    seen = []

    class Noting(Callback):
        def on_update(self, agent, metrics):
            seen.append(metrics)

    agent = make([Noting()])
    learn(agent)
    assert seen and all(seen)
    for value in (value for metrics in seen for value in metrics.values()):
        assert isinstance(value, torch.Tensor) and value.ndim == 0 and not value.requires_grad
        assert value.device == agent.device


def test_numbers_that_are_not_finite_stop_the_run_and_leave_the_weights(make, monkeypatch):
    agent = make(skip_nonfinite=0)
    learn(agent, 1)
    before = {name: value.detach().clone() for name, value in agent.policy.named_parameters()}
    update, poisoned = agent.learner.update, []

    def poisoning(batch, *args, **kwargs):
        poisoned.append(poison(batch))
        return update(batch, *args, **kwargs)

    monkeypatch.setattr(agent.learner, "update", poisoning)
    with pytest.raises(NumericalError) as caught:
        learn(agent, 3)
    assert sum(poisoned), "the batch has no number that could be spoiled"
    after = dict(agent.policy.named_parameters())  # those of slow copies too
    assert [name for name, value in after.items() if not torch.equal(value, before[name])] == []
    assert any(name in str(caught.value) for name in after), caught.value


def poison(tree: Any) -> int:
    """Make every float of a batch NaN, in place; returns how many there were."""
    if isinstance(tree, torch.Tensor | np.ndarray):
        floats = tree.is_floating_point() if isinstance(tree, torch.Tensor) else tree.dtype.kind == "f"
        if floats:
            tree[...] = math.nan
        return int(np.prod(tree.shape)) if floats else 0
    if is_dataclass(tree):
        return poison(vars(tree))
    parts = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list | tuple) else ()
    return sum(map(poison, parts))


# Files ------------------------------------------------------------------------------------------------------------


def test_a_saved_model_acts_the_same(make, method):
    agent, fresh = make(seed=1), make(seed=2)
    learn(agent)
    path = agent.save_model("any.thing")
    assert read_metadata(path)["method"] == method
    fresh.load_model(path)
    assert same(weights(agent), weights(fresh)) and agent.counters == fresh.counters
    row = agent.envs.reset()
    actions = [one.act(row, one.initial_state(one.envs.num_envs), torch.Generator().manual_seed(1), explore=True)[0]
               for one in (agent, fresh)]
    assert np.array_equal(*actions)
    assert agent.evaluate(2).scores == fresh.evaluate(2).scores
    learn(fresh, 1)  # and goes on learning


def test_state_dict_comes_back(make):
    agent, fresh = make(seed=1), make(seed=2)
    learn(agent)
    fresh.load_state_dict(agent.state_dict())
    assert repr(flat(fresh.state_dict())) == repr(flat(agent.state_dict()))


def flat(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: flat(value) for key, value in state.items()}
    return state.tolist() if isinstance(state, torch.Tensor) else state


def test_the_public_entry_runs_it(method, tmp_path):
    with watched_environments():
        runner = xrl.get_runner(method.lower(), *task_of(method), model_dir=str(tmp_path), **quick(method))
        folder = runner.run()
    assert folder.parent == tmp_path / method / runner.config.env_id
    assert load_config(config_path=folder / "config.yaml").config == runner.config


class Lost(Exception):
    """A power cut."""


class PowerCut(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, agent: Agent) -> None:
        if agent.agent_steps >= self.step:
            raise Lost


@pytest.mark.parametrize(("method", "env", "env_id"), tasks())
def test_a_run_that_is_cut_and_resumed_is_the_same_run(method, env, env_id, tmp_path):
    def runner(name: str, *callbacks: Callback) -> Any:
        keys = {"running_steps": 150, "checkpoint_every": 40, "eval_interval": 100}
        return xrl.get_runner(method=method, env=env, env_id=env_id, model_dir=str(tmp_path / name),
                              callbacks=callbacks, **quick(method, **keys))

    def last(folder: Any) -> dict[str, Any]:
        state = find_checkpoints(folder)[-1].load()
        state["callbacks"].pop("MetricLog")
        return state

    with watched_environments():
        folder = runner("whole").run()
        expected = last(folder)
        with pytest.raises(Lost):
            runner("cut", PowerCut(130)).run()
        resumed = runner("cut").run(resume=True)
    assert identical(last(resumed), expected) and not expected["inexact"]
    assert read_metadata(resumed / "final_train_model.pth")["counters"]["updates"] > 0
    assert untimed(resumed / "metrics.jsonl") == untimed(folder / "metrics.jsonl")


def identical(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(identical(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(identical(*pair) for pair in zip(one, other, strict=True))
    return bool(np.array_equal(one, other)) and type(one) is type(other)
