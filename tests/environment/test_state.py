"""Every environment that says it can be saved goes on, in another process, as if nothing had happened."""

from __future__ import annotations

import enum
from typing import Any

import ale_py
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.wrappers import FlattenObservation, StickyAction, TimeLimit, TransformReward

from xrl.common.errors import ConfigError, EnvironmentFault, ModelFileError
from xrl.environment import RawEnvironment, make_envs
from xrl.environment.state import Unsaveable, get_state, plain, set_state
from xrl.environment.wrappers import CanonicalEnv, RawAdapter

from . import savers
from .examples import Numbered, config, one_hot, row_envs
from .restoring import elsewhere, reference, same_rows

CLASSIC = ["CartPole-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1"]
LAYERS = ("environments", 0, "env", "layers")
GAMES = ["Pong", "Breakout", "Qbert", "Seaquest"]


def continued(played, tmp_path) -> None:
    for each, result in zip(played, elsewhere(played, tmp_path / "played"), strict=True):
        assert result == {"points": len(each["states"]), "wrong": []}, each["keys"]


def test_classic_control_and_catch_go_on_in_another_process(tmp_path):
    families = [("classic_control", each) for each in CLASSIC] + [("toy", "Catch-v0"), ("gymnasium", "CartPole-v1")]
    continued([reference({"env_name": env_name, "env_id": env_id, "environment": {"time_limit": 15}},
                         points=100, tail=20, spread=4) for env_name, env_id in families], tmp_path)


def atari(game: str, points: int, tail: int, spread: int, **keys: Any) -> dict[str, Any]:
    """Episodes of 23 agent steps, so that no-ops are drawn again and again; every frame may be sticky."""
    return reference({"env_name": "atari", "env_id": f"ALE/{game}-v5", **keys,
                      "environment": {"action_repeat": 4, "time_limit": 23, "sticky": 0.25}}, points, tail, spread)


def test_atari_goes_on_in_another_process(tmp_path):
    continued([atari("Pong", 8, 26, 9), atari("Breakout", 4, 25, 11), atari("Qbert", 4, 20, 13)], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("game", GAMES)
def test_atari_goes_on_from_a_hundred_places(tmp_path, game):
    continued([atari(game, 100, 25, 5)], tmp_path)


@pytest.mark.slow
def test_atari_goes_on_in_long_games_with_endings_of_their_own(tmp_path):
    keys = {"env_name": "atari", "env_id": "ALE/Breakout-v5", "environment": {"action_repeat": 4, "grayscale": False}}
    continued([reference(keys, points=100, tail=20, spread=10)], tmp_path)


def test_users_environments_go_on_in_another_process(tmp_path, registered):
    savers.register()
    continued([reference({"env_name": name, "env_id": "any-v0", "parallels": 2, "environment": {"action_repeat": 2}},
                         points=25, tail=20, spread=4) for name in ("Wanderer", "Echoing", "Dice")], tmp_path)


def test_a_game_that_is_over_in_the_middle_of_a_skip_shows_old_frames():
    keys = config("atari", "ALE/Breakout-v5", environment={"action_repeat": 4, "noop_max": 0})
    with make_envs(keys) as envs, make_envs(keys) as other:
        envs.reset()
        row = envs.step(one_hot([1], 4))
        while not row.is_last[0]:  # in this game a life is lost within a skip
            state = envs.get_state()
            row = envs.step(one_hot([1], 4))
        other.set_state(state)
        assert same_rows(other.step(one_hot([1], 4)), row) and row.is_terminal[0]


@pytest.mark.parametrize("keys", [
    {"env_name": "classic_control", "env_id": "CartPole-v1"}, {"env_name": "Wanderer"},
    {"env_name": "atari", "env_id": "ALE/Pong-v5", "environment": {"time_limit": 9}}],
    ids=lambda keys: keys["env_name"])
def test_sync_and_async_save_the_same_and_restore_each_other(keys, registered):
    savers.register()
    random, rows, states = np.random.default_rng(0), {}, {}
    keys = {"env_id": "any-v0", "parallels": 2, **keys}
    both = {kind: make_envs(config(vectorize=kind, **keys)) for kind in ("sync", "async")}
    size, discrete = both["sync"].action_spec.size, both["sync"].action_spec.kind == "discrete"
    actions = [one_hot(random.integers(size, size=2), size) if discrete else random.uniform(-1, 1, (2, size))
               for _ in range(60)]
    for kind, envs in both.items():
        with envs:
            envs.reset()
            rows[kind], states[kind] = [], []
            for action in actions:
                states[kind].append(envs.get_state())
                rows[kind].append(envs.step(action))
    assert all(same_rows(one, other) for one, other in zip(rows["sync"], rows["async"], strict=True))
    assert plain(states["sync"], "") is not states["sync"]
    assert _equal(states["sync"], states["async"]) and not _equal(states["sync"][0], states["sync"][1])
    waiting = next(step for step in range(5, 60) if states["sync"][step]["is_last"].any())
    for kind in both:
        with make_envs(config(vectorize=kind, **keys)) as envs:
            envs.set_state(states["sync" if kind == "async" else "async"][waiting])
            assert all(same_rows(envs.step(actions[step]), rows["sync"][step]) for step in range(waiting, 60))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.tobytes() == other.tobytes()
    return type(one) is type(other) and one == other


def test_a_state_holds_only_what_files_can_and_is_a_copy(registered):
    savers.register()
    for name, env_id in [("atari", "ALE/Pong-v5"), ("Wanderer", "any"), ("classic_control", "Pendulum-v1")]:
        with make_envs(config(name, env_id)) as envs:
            envs.reset()
            action = np.eye(1, envs.action_spec.size, dtype=np.float32)
            envs.step(action)
            state = envs.get_state()
            before = plain(state, "state")
            _only_plain(state)
            for _ in range(3):
                envs.step(action)
            assert _equal(state, before)


def _only_plain(value: Any) -> None:
    if type(value) in (dict, list):
        for entry in value.values() if type(value) is dict else value:
            _only_plain(entry)
    else:
        assert value is None or type(value) in (np.ndarray, int, float, bool, str, bytes), type(value)


def test_restoring_does_not_hold_on_to_the_state(registered):
    savers.register()
    with make_envs(config("Wanderer")) as envs, make_envs(config("Wanderer")) as other:
        envs.reset()
        state = envs.get_state()
        before = plain(state, "state")
        for array in (state["environments"][0]["env"]["layers"][1]["state"]["place"],):
            array.flags.writeable = False  # as one that is mapped from a file
        other.set_state(state)
        other.step(np.ones((1, 1), np.float32))
        assert _equal(state, before) and other.failures == 0


# Before the first reset, and from one run into another ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_before_the_first_reset_there_is_nothing_to_save_and_all_is_still_to_come(kind, registered):
    savers.register()
    keys = config("Wanderer", vectorize=kind)  # its get_state would raise: there is no place yet
    with make_envs(keys) as envs, make_envs(keys) as other:
        state = envs.get_state()
        assert state["started"] is False and envs.unsaveable == ""
        other.set_state(state)
        assert same_rows(envs.reset(), other.reset())
        assert envs.get_state()["started"] is True


def test_after_a_restored_state_a_reset_goes_on_with_the_generators():
    keys = config("classic_control", "CartPole-v1")
    with make_envs(keys) as envs, make_envs(keys) as other:
        first = envs.reset()
        other.set_state(envs.get_state())
        row = envs.reset()
        assert same_rows(row, other.reset()) and not same_rows(first, row)


def test_a_state_of_other_environments_is_refused():
    with make_envs(config("classic_control", "CartPole-v1")) as envs:
        envs.reset()
        state = envs.get_state()
    for keys, message in [(config("classic_control", "CartPole-v1", parallels=2), "of 1 environments, there are 2"),
                          (config("toy", "Catch-v0"), r"\(toy/Catch-v0\) is CanonicalEnv around Catch, .*CartPoleEnv"),
                          (config("atari", "ALE/Pong-v5", vectorize="native"), "does not fit vectorize: native")]:
        with make_envs(keys) as envs, pytest.raises(ModelFileError, match=message):
            envs.set_state(state)


@pytest.mark.parametrize("place", [
    ("environments",), ("is_last",), ("environments", 0, "restarts"), (*LAYERS,), (*LAYERS, 1, "state"),
    (*LAYERS, 1, "state", "_elapsed_steps"), ("environments", 0, "env", "generator", "state", "bit_generator"),
    ("environments", 0, "env", "generator", "seed")])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_damaged_state_is_refused(place, kind):
    keys = config("classic_control", "CartPole-v1", vectorize=kind)
    with make_envs(keys) as envs:
        envs.reset()
        state = envs.get_state()
        *path, last = place
        part = state
        for key in path:
            part = part[key]
        del part[last]
        with pytest.raises(ModelFileError, match=r"state of the environments is damaged|its saved state"):
            envs.set_state(state)


def test_the_seed_is_known_afterwards_and_the_generator_is_kept():
    """Gymnasium makes a new generator, from the system's entropy, when a seed that is not known is asked for."""
    env, other = (CanonicalEnv(savers.Wanderer(), "environment 0") for _ in range(2))
    env.reset(seed=5)
    handed_on = other.unwrapped.np_random  # an environment may have given it to a part of itself
    set_state(other, get_state(env))
    assert other.unwrapped.np_random_seed == 5 and other.unwrapped.np_random is handed_on
    assert handed_on.random() == env.unwrapped.np_random.random()


def test_a_generator_that_is_not_numpys_is_neither_saved_nor_made():
    env = CanonicalEnv(savers.Wanderer(), "environment 0")
    env.reset(seed=1)
    state = get_state(env)
    state["generator"]["state"]["bit_generator"] = "Generator"
    with pytest.raises(ModelFileError, match="'Generator' is no bit generator"):
        set_state(env, state)
    env.unwrapped.np_random = np.random.RandomState(0)
    assert get_state(env) == Unsaveable("Wanderer.np_random is no generator of numpy's own")


@pytest.mark.parametrize("emulator", [b"", b"nonsense", bytes(14_000)])
def test_a_damaged_emulator_is_refused(emulator):
    with make_envs(config("atari", "ALE/Pong-v5")) as envs:
        envs.reset()
        state = envs.get_state()
        state["environments"][0]["env"]["layers"][-1]["state"]["emulator"] = emulator
        with pytest.raises(ModelFileError, match=r"environment 0 \(atari/ALE/Pong-v5\): its saved state does not fit"):
            envs.set_state(state)


def test_frames_of_another_shape_are_refused():
    with make_envs(config("atari", "ALE/Pong-v5")) as envs, \
            make_envs(config("atari", "ALE/Pong-v5", environment={"grayscale": False})) as other:
        envs.reset()
        with pytest.raises(ModelFileError, match=r"does not fit.*a frame of uint8 \(210, 160\)"):
            other.set_state(envs.get_state())


# Who cannot save, and why -------------------------------------------------------------------------------------------


class Half(Numbered):
    def get_state(self):
        return {}


class MyTimeLimit(TimeLimit):
    """May hold anything."""


class Plain(RawEnvironment):
    observation_space, action_space = spaces.Discrete(2), spaces.Discrete(2)

    def reset(self, **kwargs):
        return 0, {}

    def step(self, action):
        return 0, 0.0, False, False, {}


def sticky_emulator() -> gymnasium.Env:
    gymnasium.register_envs(ale_py)
    return gymnasium.make("ALE/Pong-v5", obs_type="ram")


@pytest.mark.parametrize(("make", "reason"), [
    (Numbered, "Numbered implements no get_state/set_state"),
    (Half, "Half implements no set_state"),
    (lambda: RawAdapter(Plain(), None), "Plain implements no get_state/set_state"),
    (lambda: MyTimeLimit(CartPoleEnv(), 9), "MyTimeLimit implements no get_state/set_state"),
    (lambda: TransformReward(CartPoleEnv(), float), "TransformReward implements no get_state/set_state"),
    (type("MyPole", (CartPoleEnv,), {}), "MyPole implements no get_state/set_state"),
    (sticky_emulator, "AtariEnv with a repeat_action_probability keeps its last action"),
])
@pytest.mark.parametrize("started", [False, True])
def test_what_cannot_be_saved_says_why(make, reason, started):
    with row_envs(False, CartPoleEnv, lambda: FlattenObservation(CartPoleEnv())) as envs:
        envs.reset()
        assert envs.get_state() is not None and envs.unsaveable == ""
    with row_envs(False, make) as envs:
        if started:
            envs.reset()
        assert envs.get_state() is None and envs.unsaveable.startswith(reason)


@pytest.mark.parametrize("game", ["MiniatureGolf", "TicTacToe3D", "YarsRevenge"])
def test_games_whose_emulator_forgets_something_cannot_be_saved(game):
    with make_envs(config("atari", f"ALE/{game}-v5")) as envs:
        envs.reset()
        assert envs.get_state() is None
        assert envs.unsaveable.startswith("the emulator's state of the game ")


def test_the_emulators_own_vector_cannot_be_saved():
    with make_envs(config("atari", "ALE/Pong-v5", vectorize="native")) as envs:
        envs.reset()
        assert envs.get_state() is None
        assert envs.unsaveable == "the emulators of vectorize: native cannot save their state"


@pytest.mark.parametrize("make", [
    lambda: gymnasium.make("CartPole-v1"),  # with the checker, which looks at the first steps only
    lambda: StickyAction(CartPoleEnv(), 0.5, (2, 4))], ids=["checker", "sticky"])
def test_wrappers_that_users_put_around_known_environments(make):
    with row_envs(False, make) as envs:
        envs.reset()
        for _ in range(100):
            state = envs.get_state()
            with row_envs(False, make) as other:
                other.set_state(state)
                for _ in range(6):
                    action = one_hot([int(np.random.default_rng(1).integers(2))], 2)
                    assert same_rows(other.step(action), envs.step(action))


# What users' methods return and raise ---------------------------------------------------------------------------------


class Returns(savers.Wanderer):
    def __init__(self, returned: Any) -> None:
        super().__init__()
        self.returned = returned

    def get_state(self) -> Any:
        if isinstance(self.returned, Exception):
            raise self.returned
        return self.returned

    def set_state(self, state: Any) -> None:
        raise LookupError("no such level")


def nested(depth: int) -> dict[str, Any]:
    return {"deeper": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize(("returned", "message"), [
    ({"ball": {"pos": [1, object()]}}, r"Returns.get_state\(\): \['ball'\]\['pos'\]\[1\] is a object; a state holds"),
    ({"ball": np.array([object()])}, r"\['ball'\] is an array of object; a state holds dicts with str keys"),
    ({"ball": np.zeros(2, complex)}, r"\['ball'\] is an array of complex128"),
    ({"ball": np.zeros(2, np.longdouble)}, r"\['ball'\] is an array of float128"),
    ({"ball": np.float32(1)}, r"\['ball'\] is a float32"), ({"ball": (1, 2)}, r"\['ball'\] is a tuple"),
    ({"ball": {1: 2}}, r"\['ball'\] has the key 1"), ({"a/b": 1}, "has the key 'a/b'"),
    ({"$array": 1}, "has the key '\\$array'"), ({"ball": {1, 2}}, "is a set"), ({"ball": 1j}, "is a complex"),
    (None, r"Returns.get_state\(\) returned a NoneType; return a dict"), ([1], "returned a list; return a dict"),
    (nested(21), "is nested deeper than 20 levels"),
])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_what_no_state_holds_is_named(returned, message, asynchronous):
    with row_envs(asynchronous, lambda: Returns(returned)) as envs:
        envs.reset()
        with pytest.raises(ConfigError, match=message):
            envs.get_state()


def test_what_a_state_holds_arrives():
    class Color(enum.IntEnum):
        RED = 1

    value = {"a": [1, 2.5, True, None, "x", b"y", -2**200, float("inf")], "nested": nested(19), "": np.zeros((0, 3))}
    assert _equal(plain(value, "state"), value)
    numpys = plain([np.bool_(True), np.int64(3), np.uint8(4), np.float64(.1), np.str_("s"), Color.RED], "state")
    assert _equal(numpys, [True, 3, 4, .1, "s", 1])
    swapped, sliced = np.arange(3, dtype=">i4"), np.arange(12).reshape(3, 4)[:, ::2]
    for array in (swapped, sliced, np.array(3.0), np.ones(2, bool), np.ones(2, np.float16)):
        copy = plain(array, "state")
        np.testing.assert_array_equal(copy, array)
        assert copy.dtype.isnative and copy.dtype == array.dtype.newbyteorder("=") and copy.flags.owndata
        assert copy.shape == array.shape and copy.flags.c_contiguous


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_errors_of_users_methods_are_faults_with_the_label(asynchronous):
    with row_envs(asynchronous, lambda: Returns(ZeroDivisionError("1/0"))) as envs:
        envs.reset()
        with pytest.raises(EnvironmentFault, match=r"environment 0 \(Mine/mine-v0\): get_state raised ZeroDiv.*1/0"):
            envs.get_state()
    with row_envs(asynchronous, lambda: Returns({})) as envs:
        envs.reset()
        state = envs.get_state()
        with pytest.raises(EnvironmentFault, match=r"environment 0 \(Mine/mine-v0\): set_state raised LookupError"):
            envs.set_state(state)
