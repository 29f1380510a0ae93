"""The state of one environment: what each layer of it holds, and how users' own environments join.

A state is nested dicts with str keys and lists; inside are numpy arrays of numbers, int, float, bool, str, bytes, None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from xrl.common.errors import ConfigError, ModelFileError
from xrl.environment.wrappers import CanonicalEnv, Faults, RawAdapter

_DEEPEST = 20
_ALLOWED = ("a state holds dicts with str keys (without / and not beginning with $), lists, numpy arrays of numbers, "
            "int, float, bool, str, bytes and None")
_BIT_GENERATORS = {kind.__name__: kind for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937,
                                                    np.random.Philox, np.random.SFC64)}
# What a state of another environment, or a damaged one, makes a layer raise. The emulator's is a SystemError.
_MISFITS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, SystemError)


@dataclass(frozen=True)
class Unsaveable:
    """Why an environment cannot save its state, as one sentence."""

    reason: str


def get_state(env: CanonicalEnv) -> dict[str, Any] | Unsaveable:
    """A copy of the state of every layer and of Gymnasium's generator.

    Raises ConfigError if a user's get_state returns what no state holds, and EnvironmentFault if it raises.
    """
    if reason := why_unsaveable(env):
        return Unsaveable(reason)
    layers, base = _layers(env)
    states = []
    for layer in layers:
        known = _known(layer)
        state = known.save(layer) if known else _users_state(layer, env.label)
        states.append({"class": type(layer).__name__, "state": state})
    return {"layers": states, "generator": _generator_state(base)}


def set_state(env: CanonicalEnv, state: Any) -> None:
    """Bring ``env``, which may never have been reset, to where ``get_state`` was called.

    Raises ModelFileError if the state is another environment's, and EnvironmentFault if a user's set_state raises.
    """
    layers, base = _layers(env)
    try:
        saved = [(each["class"], each["state"]) for each in state["layers"]]
        generator = state["generator"]
    except _MISFITS as error:
        raise ModelFileError(f"{env.label}: its saved state is damaged: {error!r}") from error
    if [name for name, _ in saved] != [type(layer).__name__ for layer in layers]:
        raise ModelFileError(f"{env.label} is {' around '.join(type(layer).__name__ for layer in layers)}, the saved "
                             f"state is of {' around '.join(str(name) for name, _ in saved)}; use the environment of "
                             f"that run")
    # From the outside in, the generator last: what a user's set_state does to the layers inside, or draws, is undone.
    for layer, (_, each) in zip(layers, saved, strict=True):
        if known := _known(layer):
            with _Fitting(env.label):
                known.restore(layer, each)
        else:
            with Faults(env.label, "set_state"):
                layer.set_state(plain(each, "state"))
    with _Fitting(env.label):
        _restore_generator(base, generator)


def why_unsaveable(env: CanonicalEnv) -> str:
    """The reason as one sentence; "" if the state can be saved."""
    layers, base = _layers(env)
    for layer in layers:
        known, name = _known(layer), type(layer).__name__
        if known and (reason := known.refuse(layer)):
            return reason
        missing = [method for method in ("get_state", "set_state") if not callable(getattr(type(layer), method, None))]
        if not known and missing:
            return f"{name} implements no {'/'.join(missing)}"
    generator = base._np_random
    if generator is not None and not (type(generator) is np.random.Generator and _is_numpys(generator.bit_generator)):
        return f"{type(base).__name__}.np_random is no generator of numpy's own"
    return ""


class _Fitting:
    """``with _Fitting(label):`` around restoring layers that are not the user's: it fails where the state is wrong."""

    def __init__(self, label: str) -> None:
        self._label = label

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, _MISFITS):
            raise ModelFileError(f"{self._label}: its saved state does not fit: {error!r}") from error


def _layers(env: CanonicalEnv) -> tuple[list[Any], gymnasium.Env[Any, Any]]:
    """All objects that may hold state, the outermost first, and the one whose generator is Gymnasium's."""
    layers: list[Any] = [env]
    while isinstance(layers[-1], gymnasium.Wrapper):
        layers.append(layers[-1].env)
    base = layers[-1]
    return ([*layers, base.raw] if isinstance(base, RawAdapter) else layers), base


# What users save -----------------------------------------------------------------------------------------------------


def _users_state(layer: Any, label: str) -> dict[str, Any]:
    with Faults(label, "get_state"):
        state = layer.get_state()
    where = f"{type(layer).__name__}.get_state()"
    if not isinstance(state, dict):
        raise ConfigError(f"{where} returned {_described(state)}; return a dict: {_ALLOWED}")
    return plain(state, f"{where}: ")


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """A deep copy; raises ConfigError, naming ``where`` and the place, unless all of it may be part of a state.

    Numpy's bools, integers and float64 become Python's, which calculate alike; other numpy scalars are refused.
    """
    if depth > _DEEPEST:
        raise ConfigError(f"{where} is nested deeper than {_DEEPEST} levels, or contains itself; make it flatter")
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or "/" in key or key.startswith("$"):
                raise ConfigError(f"{where} has the key {key!r}; {_ALLOWED}")
        return {str(key): plain(entry, f"{where}[{key!r}]", depth + 1) for key, entry in value.items()}
    if isinstance(value, list):
        return [plain(entry, f"{where}[{index}]", depth + 1) for index, entry in enumerate(value)]
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        return np.array(value, value.dtype.newbyteorder("="), order="C")
    for ours, kinds in _SCALARS:
        if isinstance(value, kinds):
            return ours(value)
    if value is None:
        return None
    raise ConfigError(f"{where} is {_described(value)}; {_ALLOWED}")


_SCALARS: tuple[tuple[type, tuple[type, ...]], ...] = (
    (bool, (bool, np.bool_)), (int, (int, np.integer)), (float, (float,)), (str, (str,)), (bytes, (bytes,)))


def _described(value: Any) -> str:
    return f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


# Gymnasium's generator ---------------------------------------------------------------------------------------------


def _is_numpys(bit_generator: Any) -> bool:
    return _BIT_GENERATORS.get(type(bit_generator).__name__) is type(bit_generator)


def _generator_state(base: gymnasium.Env[Any, Any]) -> dict[str, Any]:
    """With the seed, because Gymnasium makes a new generator when somebody asks for a seed that is not known."""
    generator = base._np_random
    return {"state": None if generator is None else plain(dict(generator.bit_generator.state), "np_random"),
            "seed": None if base._np_random_seed is None else int(base._np_random_seed)}


def _restore_generator(base: gymnasium.Env[Any, Any], saved: dict[str, Any]) -> None:
    state = saved["state"]
    if state is None:
        base._np_random = None
    else:
        name = state["bit_generator"]
        if name not in _BIT_GENERATORS:
            raise ValueError(f"{name!r} is no bit generator of numpy's own")
        # In place where that is possible: the environment may have handed its generator on.
        if base._np_random is None or type(base._np_random.bit_generator).__name__ != name:
            base._np_random = np.random.Generator(_BIT_GENERATORS[name]())
        base._np_random.bit_generator.state = state
    base._np_random_seed = saved["seed"]


# What layers hold that users did not write ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """How a layer's own state is saved and restored; ``refuse`` gives the reason where it cannot be, else ""."""

    save: Callable[[Any], dict[str, Any]]
    restore: Callable[[Any, dict[str, Any]], None]
    refuse: Callable[[Any], str] = lambda layer: ""


def _known(layer: Any) -> _Layer | None:
    """By exact type: a class derived from a known one may hold more."""
    return _LAYERS.get(f"{type(layer).__module__}.{type(layer).__qualname__}")


def _attributes(*names: str) -> _Layer:
    def save(layer: Any) -> dict[str, Any]:
        return {name: _value(getattr(layer, name)) for name in names}

    def restore(layer: Any, state: dict[str, Any]) -> None:
        for name in names:
            setattr(layer, name, plain(state[name], name))

    return _Layer(save, restore)


def _value(value: Any) -> Any:
    """Mountain car's state is a tuple of numbers, Pendulum's last torque (only drawn, never used) a float32."""
    if isinstance(value, np.floating):
        return float(value)
    return plain(np.array(value) if isinstance(value, tuple) else value, "attribute")


def _save_frames(layer: Any) -> dict[str, Any]:
    """Both frames: where a game is over in the middle of a skip, the old ones are shown."""
    return {"frames": plain(list(layer.obs_buffer), "frames"), "lives": int(layer.lives),
            "game_over": bool(layer.game_over)}


def _restore_frames(layer: Any, state: dict[str, Any]) -> None:
    for buffer, frame in zip(layer.obs_buffer, state["frames"], strict=True):
        if frame.shape != buffer.shape or frame.dtype != buffer.dtype:
            raise ValueError(f"a frame of {frame.dtype} {frame.shape}, not {buffer.dtype} {buffer.shape}")
        buffer[...] = frame
    layer.lives, layer.game_over = state["lives"], state["game_over"]


def _save_emulator(env: Any) -> dict[str, Any]:
    return {"emulator": env.ale.cloneState(include_rng=True).serialize()}


def _restore_emulator(env: Any, state: dict[str, Any]) -> None:
    """A new emulator plays a frame first, which sets up something outside its state; else Q*bert goes another way."""
    import ale_py

    env.ale.act(ale_py.Action.NOOP)
    env.ale.restoreState(ale_py.ALEState(state["emulator"]))


def _refuse_emulator(env: Any) -> str:
    if env.ale.getFloat("repeat_action_probability") > 0:
        return ("AtariEnv with a repeat_action_probability keeps its last action where nobody can read it (env_name: "
                "atari repeats actions outside the emulator)")
    if env._game in _INCOMPLETE:
        return f"the emulator's state of the game {env._game} does not hold all that decides its next frames"
    return ""


# Of 104 games, restored at 50 places each, those that went on otherwise: the reward of one, the picture of two.
_INCOMPLETE = ("miniature_golf", "tic_tac_toe_3d", "yars_revenge")


def _checked_enough(checker: Any, state: dict[str, Any]) -> None:
    """The checker looks at the first reset and steps of an environment; those have been."""
    checker.checked_reset = checker.checked_step = checker.checked_data_reuse = True


_NOTHING = _attributes()
_LAYERS = {
    "xrl.environment.wrappers.CanonicalEnv": _NOTHING,
    "xrl.environment.wrappers.RawAdapter": _NOTHING,
    "xrl.environment.wrappers.Pace": _NOTHING,
    "xrl.environment.dmc.Pixels": _NOTHING,
    "gymnasium.wrappers.rendering.HumanRendering": _NOTHING,
    "gymnasium.wrappers.stateful_action.RepeatAction": _NOTHING,
    "gymnasium.wrappers.transform_observation.FlattenObservation": _NOTHING,
    "gymnasium.wrappers.common.PassiveEnvChecker": _Layer(lambda checker: {}, _checked_enough),
    "gymnasium.wrappers.common.OrderEnforcing": _attributes("_has_reset"),
    "gymnasium.wrappers.common.TimeLimit": _attributes("_elapsed_steps"),
    "gymnasium.wrappers.stateful_action.StickyAction": _attributes("last_action", "is_sticky_actions", "num_repeats",
                                                                   "repeats_taken"),
    "gymnasium.wrappers.atari_preprocessing.AtariPreprocessing": _Layer(_save_frames, _restore_frames),
    "gymnasium.envs.classic_control.acrobot.AcrobotEnv": _attributes("state"),
    "gymnasium.envs.classic_control.cartpole.CartPoleEnv": _attributes("state", "steps_beyond_terminated"),
    "gymnasium.envs.classic_control.continuous_mountain_car.Continuous_MountainCarEnv": _attributes("state"),
    "gymnasium.envs.classic_control.mountain_car.MountainCarEnv": _attributes("state"),
    "gymnasium.envs.classic_control.pendulum.PendulumEnv": _attributes("state", "last_u"),
    "ale_py.env.AtariEnv": _Layer(_save_emulator, _restore_emulator, _refuse_emulator),
}
