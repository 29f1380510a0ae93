"""From configuration to environments: what users may register, what each receives, seeds, limits and repeats."""

from __future__ import annotations

import subprocess
import sys
import warnings
from argparse import Namespace

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control import PendulumEnv

from xrl.common.errors import ConfigError
from xrl.environment import RawEnvironment, make_envs
from xrl.environment.wrappers import RawAdapter

from .examples import Numbered, Probe, config, one_hot

LEFT = one_hot([0], 2)


class MyRaw(RawEnvironment):
    """As in XuanCe's tutorial, with its call of the base class and its infinite action bounds."""

    def __init__(self, env_config):
        super().__init__()
        self.config = env_config
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,))
        self.action_space = spaces.Box(-np.inf, np.inf, (1,))
        self.max_episode_steps = 4
        self.calls = []

    def reset(self):
        self.calls.append("reset")
        return np.array([self.config.env_seed, 0], np.float32), {}

    def step(self, action):
        self.calls.append(action.tolist())
        return np.zeros(2, np.float32), 0.5, False, False, {}

    def render(self):
        self.calls.append("render")

    def close(self):
        self.calls.append("close")


class MyDuck:
    """The same without any base class, and with a seed."""

    def __init__(self, env_config):
        self.observation_space, self.action_space = spaces.Discrete(3), spaces.Discrete(2)
        self.seeds = []

    def reset(self, **kwargs):
        self.seeds.append(kwargs)
        return 1, {}

    def step(self, action):
        return 2, 1, action == 1, False, {}


def base(envs, index=0):
    """What the user wrote."""
    env = envs._vector.envs[index].unwrapped
    return env.raw if isinstance(env, RawAdapter) else env


def test_a_raw_environment_receives_the_run_keys_its_seed_and_env_kwargs(registered):
    registered["Mine"] = MyRaw
    keys = config("Mine", "mine-v3", env_seed=5, seed=9, parallels=2, render_mode="human", env_kwargs={"gravity": 3})
    with warnings.catch_warnings(record=True), make_envs(keys, seed_offset=100) as envs:
        received = [vars(base(envs, index).config) for index in (0, 1)]
        assert [each["env_seed"] for each in received] == [105, 106]
        assert envs.reset().obs["vector"][:, 0].tolist() == [105, 106]
    expected = {"env_name": "Mine", "env_id": "mine-v3", "seed": 9, "gravity": 3, "fps": 50, "render_mode": None}
    assert expected.items() <= received[0].items()
    assert "world_model" not in received[0]  # keys of the run, not of the method


def test_a_raw_environment_is_truncated_after_its_own_limit_and_closed(registered):
    registered["Mine"] = MyRaw
    with warnings.catch_warnings(record=True):
        envs = make_envs(config("Mine"))
    raw = base(envs)
    with envs:
        assert envs.time_limit == 4
        envs.reset()
        rows = [envs.step(np.full((1, 1), 0.5, np.float32)) for _ in range(5)]
    assert [bool(row.is_last[0]) for row in rows] == [False, False, False, True, False]
    assert not any(row.is_terminal[0] for row in rows) and rows[4].is_first[0]
    assert raw.calls == ["reset", [.5], [.5], [.5], [.5], "reset", "close"]


def test_infinite_action_bounds_warn_once_whatever_the_number_of_environments(registered):
    registered["Mine"] = MyRaw
    for vectorize in ("sync", "async"):
        with pytest.warns(UserWarning, match=r"^environment 0 \(Mine/any-v0\): 1 of 1 action entries have") as caught:
            make_envs(config("Mine", parallels=3, vectorize=vectorize)).close()
        assert len(caught) == 1


def test_a_class_without_base_works_and_only_the_first_reset_is_seeded(registered):
    registered["Duck"] = MyDuck
    with make_envs(config("Duck", env_seed=7)) as envs:
        assert envs.reset().obs["vector"].tolist() == [[0, 1, 0]]
        row = envs.step(one_hot([1], 2))
        assert row.is_terminal[0] and row.reward[0] == 1 and envs.time_limit is None
        envs.step(LEFT)
        envs.reset()
        assert base(envs).seeds == [{"seed": 7}, {}, {}]


def test_a_gymnasium_class_receives_env_kwargs(registered):
    registered["Plain"] = Numbered
    with make_envs(config("Plain", env_kwargs={"lengths": (7,)})) as envs:
        assert base(envs).lengths == (7,)


def test_a_function_may_build_the_environment(registered):
    registered["Built"] = lambda lengths: gymnasium.wrappers.TimeLimit(Numbered(lengths), 1)
    with make_envs(config("Built", env_kwargs={"lengths": (7,)})) as envs:
        envs.reset()
        assert envs.step(one_hot([0], 5)).is_last[0]


class Looking(Probe):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode=None):
        super().__init__()
        self.render_mode = render_mode

    def render(self):
        return np.full((4, 4, 3), 9, np.uint8)


def test_render_mode_reaches_a_gymnasium_class_that_accepts_it(registered):
    registered["Looking"], registered["Probe"] = Looking, Probe
    with make_envs(config("Looking"), render_mode="rgb_array") as envs:
        envs.reset()
        assert envs.render()[0].shape == (4, 4, 3)
    with make_envs(config("Probe"), render_mode="rgb_array") as envs:
        assert envs.render() is None


def test_what_is_no_class_nor_function_is_refused(registered):
    registered["Instance"] = Numbered()
    registered["Number"] = 3
    for name in ("Instance", "Number"):
        with pytest.raises(ConfigError, match="register a class"):
            make_envs(config(name))


@pytest.mark.parametrize("vectorize", ["sync", "async"])
def test_a_constructor_that_fails_names_env_kwargs(registered, vectorize):
    registered["Plain"] = Numbered
    with pytest.raises(ConfigError, match=r"environment 0 \(Plain/any-v0\).*lenghts.*unexpected keyword"):
        make_envs(config("Plain", env_kwargs={"lenghts": 3}, vectorize=vectorize))


def test_an_object_that_is_no_environment_is_refused(registered):
    registered["Empty"] = type("Empty", (), {"__init__": lambda self, env_config: None})
    with pytest.raises(ConfigError, match="Empty has no observation_space, action_space, reset, step"):
        make_envs(config("Empty"))


@pytest.mark.parametrize("name", ["Probe", "Pendulum"])
def test_environment_i_is_seeded_env_seed_plus_i_and_the_offset_is_disjoint(registered, name):
    registered.update(Probe=Probe, Pendulum=PendulumEnv)

    def trajectories(count, **offset):
        with make_envs(config(name, env_seed=3), parallels=count, **offset) as envs:
            action = np.tile(one_hot([0], envs.action_spec.size), (count, 1))
            rows = [envs.reset(), *(envs.step(action) for _ in range(3))]
        return np.stack([row.obs["vector"] for row in rows], axis=1)

    four = trajectories(4)
    for index in range(4):
        np.testing.assert_array_equal(trajectories(1, seed_offset=index)[0], four[index])
    np.testing.assert_array_equal(trajectories(2, seed_offset=2), four[2:])
    all_starts = np.concatenate([four, trajectories(4, seed_offset=1000)])[:, 0, 0]
    assert len(set(all_starts.tolist())) == 8


def test_sync_and_async_are_the_same_environments():
    rows = {}
    for vectorize in ("sync", "async"):
        with make_envs(config("classic_control", "CartPole-v1", parallels=2, vectorize=vectorize)) as envs:
            rows[vectorize] = [envs.reset(), *(envs.step(one_hot([0, 1], 2)) for _ in range(30))]
    for ours, theirs in zip(rows["sync"], rows["async"], strict=True):
        np.testing.assert_array_equal(ours.obs["vector"], theirs.obs["vector"])
        np.testing.assert_array_equal(ours.is_first, theirs.is_first)
    assert any(row.is_first.any() for row in rows["sync"][1:])


def test_action_repeat_sums_rewards_and_stops_at_the_end(registered):
    registered["Plain"] = Numbered
    keys = config("Plain", env_kwargs={"lengths": (5,)}, environment={"action_repeat": 2})
    with make_envs(keys) as envs:
        envs.reset()
        rows = [envs.step(one_hot([1], 5)) for _ in range(3)]
        assert envs.action_repeat == 2
    assert [row.reward[0] for row in rows] == [1 + 2, 3 + 4, 5]
    assert [row.obs["vector"][0, 1] for row in rows] == [2, 4, 5]
    assert [bool(row.is_terminal[0]) for row in rows] == [False, False, True]


@pytest.mark.parametrize(("environment", "limit"), [
    ({}, 200), ({"action_repeat": 2}, 100), ({"action_repeat": 3}, 67), ({"time_limit": 5}, 5),
    ({"time_limit": 5, "action_repeat": 2}, 5), ({"time_limit": 70, "action_repeat": 3}, 67)])
def test_time_limits_count_agent_steps_and_truncate(environment, limit):
    with make_envs(config("classic_control", "Pendulum-v1", environment=environment)) as envs:
        assert envs.time_limit == limit
        envs.reset()
        action = np.zeros((1, 1), np.float32)
        for _ in range(limit - 1):
            assert not envs.step(action).is_last[0]
        row = envs.step(action)
        assert row.is_last[0] and not row.is_terminal[0]


def test_termination_and_truncation_may_coincide(registered):
    registered["Plain"] = Numbered
    with make_envs(config("Plain", env_kwargs={"lengths": (2,)}, environment={"time_limit": 2})) as envs:
        envs.reset()
        envs.step(one_hot([0], 5))
        row = envs.step(one_hot([0], 5))
    assert row.is_last[0] and row.is_terminal[0]


def test_the_config_may_be_a_dict_or_a_namespace():
    plain = config("toy", "Catch-v0", parallels=2).model_dump()
    for form in (plain, Namespace(**plain)):
        with make_envs(form) as envs:
            assert envs.num_envs == 2 and envs.action_spec.size == 3


@pytest.mark.parametrize("parallels", [0, -1])
def test_at_least_one_environment(parallels):
    with pytest.raises(ConfigError, match=f"parallels: {parallels}"):
        make_envs(config("toy", "Catch-v0"), parallels=parallels)


def test_importing_is_light():
    code = ("import sys, xrl.environment as e; e.REGISTRY_ENV, e.RawEnvironment; "
            "print([m for m in ('torch', 'gymnasium', 'ale_py', 'cv2') if m in sys.modules]); "
            "e.make_envs, e.RowEnvs; print([m for m in ('torch', 'ale_py', 'cv2') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]


class Leaky(gymnasium.Env):
    """Notes who is closed; with ``flaw`` "constructor" the third one raises, with "space" its space is refused."""

    made: list[Leaky] = []

    def __init__(self, flaw):
        third = len(self.made) == 2
        if third and flaw == "constructor":
            raise OSError("no licence left")
        self.observation_space = spaces.Text(3) if third else spaces.Box(-1, 1, (2,))
        self.action_space = spaces.Discrete(2)
        self.closed = False
        self.made.append(self)

    def close(self):
        self.closed = True


@pytest.mark.parametrize("flaw", ["constructor", "space"])
def test_a_construction_that_fails_closes_what_was_built(registered, flaw):
    Leaky.made.clear()
    registered["Mine"] = Leaky
    with pytest.raises(ConfigError, match=r"^evaluation environment 2 \(Mine/any-v0\)"):
        make_envs(config("Mine", parallels=3, env_kwargs={"flaw": flaw}), seed_offset=1)
    assert len(Leaky.made) == (2 if flaw == "constructor" else 3) and all(env.closed for env in Leaky.made)
