"""Does an environment keep its promises? Played at random for a moment, and looked at from every side."""

from __future__ import annotations

import os
import re
import sysconfig
import time
import traceback
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gymnasium import Space, spaces

from xrl.common.config import as_config
from xrl.common.errors import ConfigError, XrlError
from xrl.common.row import ActionSpec, ObsSpec, Row
from xrl.configs.schemas.base import RunConfig
from xrl.environment.build import EnvFactory, make_envs
from xrl.environment.registry import find_entry
from xrl.environment.vector import RowEnvs

SLOW = 100  # agent steps per second, below which the environment holds up most runs
GUIDE = "docs/extending/new_env.md"
_PLACE = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')
_NOT_THE_USERS = tuple(f"{folder}{os.sep}" for folder in (
    Path(__file__).parents[1], sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")))


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what was found, and, unless all is well, what to do about it."""

    name: str
    status: Literal["ok", "note", "warning", "failed"]
    found: str
    fix: str = ""


def check_env(config: RunConfig | Mapping[str, Any] | Namespace, steps: int = 200) -> list[Finding]:
    """What is to be known of an environment before a run: it plays ``steps`` random agent steps, twice.

    Whatever the environment raises becomes a finding. Raises ConfigError for a configuration that is none, or fewer
    than 2 steps.
    """
    config = as_config(config)
    if steps < 2:
        raise ConfigError(f"steps: {steps} is too few to check an environment; use at least 2")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        findings = _findings(config, steps)
    said = dict.fromkeys(str(each.message) for each in caught if issubclass(each.category, UserWarning))
    return [*findings, *(Finding("warning given", "note", text) for text in said)]


def failed(name: str, error: BaseException) -> Finding:
    """The finding that an error is: its words, and the remedy they end with or the place where it was raised."""
    if not isinstance(error, XrlError):
        return Finding(name, "failed", f"{type(error).__name__}: {error}", _mend(error))
    told, _, remedy = str(error).partition("\n")[0].rpartition("; ")
    return Finding(name, "failed", told or remedy, _mend(error.__cause__) or (remedy if told else f"see {GUIDE}"))


def _mend(error: BaseException | str | None) -> str:
    """Where the user's own code raised ``error``, or where a traceback says that it did."""
    text = error if isinstance(error, str) else "".join(traceback.format_exception(error)) if error else ""
    own = [place for place in _PLACE.findall(text) if not place[0].startswith(_NOT_THE_USERS)]
    return f"mend {own[-1][0]}, line {own[-1][1]} ({own[-1][2]})" if own else ""


@dataclass
class _Played:
    """Rows of one environment, from its first reset. ``state``: saved in the middle, where that was asked for."""

    obs_spec: dict[str, ObsSpec]
    action_spec: ActionSpec
    time_limit: int | None
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    failure: Finding | None = None
    state: dict[str, Any] | None = None
    unsaveable: str = ""

    @property
    def steps(self) -> list[Row]:
        return [row for row in self.rows if not row.is_first[0]]


def _findings(config: RunConfig, steps: int) -> list[Finding]:
    played = _attempt("environment", lambda: _play(config, steps))
    if isinstance(played, Finding):
        return [played]
    if played.failure and not played.steps:  # of nothing there is nothing to tell
        return [_spaces(played), played.failure]
    findings = [_spaces(played), _attempt("observations", lambda: _observations(config, played)), _rewards(played),
                _episodes(played), _speed(played)]
    if played.failure:
        return [*findings, played.failure]
    again = _attempt("same seed", lambda: _play(config, steps, save=True))
    if isinstance(again, Finding):
        findings.append(again)
    else:
        findings += [_same(played, again), _attempt("saving", lambda: _saving(config, again, steps))]
    return [*findings, _attempt("rendering", lambda: _rendering(config))]


def _attempt(name: str, look: Callable[[], Any]) -> Any:
    """What ``look`` returns, or the finding that it raised."""
    try:
        return look()
    except (Exception, SystemExit) as error:
        return failed(name, error)


def _play(config: RunConfig, steps: int, save: bool = False) -> _Played:
    with make_envs(config, parallels=1) as envs:
        played = _Played(envs.obs_spec, envs.action_spec, envs.time_limit)
        begun = time.perf_counter()
        played.rows.append(envs.reset())
        for index, action in enumerate(_actions(envs, steps)):
            if save and index == steps // 2:
                played.state, played.unsaveable = envs.get_state(), envs.unsaveable
            played.rows.append(envs.step(action))
            if envs.failed:
                fault = envs.failed[0]
                remedy = _mend(fault.detail) or f"its spaces and what it returns must agree: see {GUIDE}"
                played.failure = Finding("failure", "failed", fault.detail.partition("\n")[0], remedy)
                break
        played.seconds = time.perf_counter() - begun
    return played


def _actions(envs: RowEnvs, steps: int) -> np.ndarray:
    """The same at every call: (steps, 1, A)."""
    return envs.action_spec.random(np.random.default_rng(0), steps)[:, None]


def _spaces(played: _Played) -> Finding:
    entries = [f"{key!r}: {spec.kind} {spec.shape} of {spec.dtype}" for key, spec in played.obs_spec.items()]
    return Finding("spaces", "ok", f"{'; '.join(entries)}; {_described(played.action_spec)}")


def _described(action: ActionSpec) -> str:
    if action.kind == "multi_discrete":
        return f"{len(action.choices)} discrete actions at once, of {', '.join(map(str, action.choices))} choices"
    return f"{action.size} discrete actions" if action.kind == "discrete" else f"continuous action ({action.size},)"


def _observations(config: RunConfig, played: _Played) -> Finding:
    """Vectors against the bounds of their boxes; that images are uint8 and all is finite is checked at every step."""
    ranges = []
    for key, low, high in _bounds(config):
        if key not in played.obs_spec:  # a space that is no Dict has no key of its own
            key = next(iter(played.obs_spec))
        values = np.concatenate([row.obs[key].reshape(1, -1) for row in played.rows])
        outside = np.argwhere((values < low) | (values > high))
        if len(outside):
            row, entry = outside[0]
            return Finding("observations", "warning", f"entry {entry} of {key!r} was {values[row, entry]:g}, its space "
                           f"says {low[entry]:g} to {high[entry]:g}", "widen observation_space, or clip what is given")
        ranges.append(f"; {key!r} from {values.min():.4g} to {values.max():.4g}")
    return Finding("observations", "ok", "finite and within their space" + "".join(ranges))


def _bounds(config: RunConfig) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(key, low, high), flat and float32 as rows are, of every box that the user's own space has for a vector."""
    entry = find_entry(config.env_name)
    env = EnvFactory(entry, config, f"environment 0 ({config.env_name}/{config.env_id})", None)(config.env_seed)
    space: Space[Any] = env.env.observation_space
    kinds = {key: spec.kind for key, spec in env.obs_spec.items()}
    env.close()
    parts = space.spaces if isinstance(space, spaces.Dict) else dict.fromkeys(kinds, space)
    for key, part in parts.items():
        if isinstance(part, spaces.Box) and kinds[key] == "vector":
            yield key, part.low.astype(np.float32).reshape(-1), part.high.astype(np.float32).reshape(-1)


def _rewards(played: _Played) -> Finding:
    rewards = np.array([row.reward[0] for row in played.steps])
    if not rewards.any():
        return Finding("rewards", "note", f"all 0 in {len(rewards)} random steps",
                       "if chance should have met one, check what step() returns")
    return Finding("rewards", "ok", f"finite, from {rewards.min():.4g} to {rewards.max():.4g}, "
                                    f"{np.count_nonzero(rewards)} of {len(rewards)} not 0")


def _episodes(played: _Played) -> Finding:
    ends = [index for index, row in enumerate(played.rows) if row.is_last[0]]
    limit = "no limit is known" if played.time_limit is None else f"the limit is {played.time_limit:,} steps"
    if not ends:
        return Finding("episodes", "note", f"none ended in {len(played.steps)} random steps; {limit}",
                       "" if played.time_limit else "if none ever ends, set a limit: environment.time_limit=1000")
    lengths = np.diff([-1, *ends]) - 1  # an episode of n steps is n + 1 rows
    terminated = sum(bool(played.rows[index].is_terminal[0]) for index in ends)
    return Finding("episodes", "ok", f"{len(ends)} ended in {len(played.steps)} random steps, after {lengths.min()} to "
                                     f"{lengths.max()}; {terminated} of them terminated; {limit}")


def _speed(played: _Played) -> Finding:
    rate = len(played.rows) / played.seconds
    if rate < SLOW:
        return Finding("speed", "note", f"{rate:.3g} steps per second", "step several at once, each in a process of "
                                                                        "its own: vectorize=async parallels=4")
    return Finding("speed", "ok", f"{rate:,.0f} steps per second")


def _same(played: _Played, again: _Played) -> Finding:
    if (row := _first_difference(played.rows, again.rows)) is None:
        return Finding("same seed", "ok", f"the same {len(played.rows)} rows twice")
    before = sum(bool(each.is_last[0]) for each in played.rows[:row])
    return Finding("same seed", "warning", f"two plays of one seed differ from row {row} on, in episode {before + 1}",
                   "draw everything from self.np_random (of gymnasium.Env), or from env_config.env_seed (a raw one)")


def _first_difference(rows: Sequence[Row], others: Sequence[Row]) -> int | None:
    """Index of the first pair that differs in anything, or of the first row that has no partner."""
    for index, (one, other) in enumerate(zip(rows, others, strict=False)):
        pairs = [(getattr(one, each.name), getattr(other, each.name)) for each in fields(Row) if each.name != "obs"]
        pairs += [(one.obs[key], other.obs[key]) for key in one.obs]
        if not all(np.array_equal(left, right) for left, right in pairs):
            return index
    return None if len(rows) == len(others) else min(len(rows), len(others))


def _saving(config: RunConfig, again: _Played, steps: int) -> Finding:
    """Another instance, brought to the state saved in the middle, must yield the rest of the rows."""
    if again.state is None:
        fix = f"write get_state and set_state: {GUIDE}#saving-its-state" if "implements no" in again.unsaveable else ""
        return Finding("saving", "note", f"a resumed run begins with fresh episodes: {again.unsaveable}", fix)
    with make_envs(config, parallels=1) as envs:
        envs.set_state(again.state)
        rows = [envs.step(action) for action in _actions(envs, steps)[steps // 2:]]
    if (row := _first_difference(rows, again.rows[steps // 2 + 1:])) is None:
        return Finding("saving", "ok", f"restored after {steps // 2} steps it goes on the same, for {len(rows)} steps")
    return Finding("saving", "failed", f"restored after {steps // 2} steps it goes another way, {row + 1} steps later",
                   f"get_state must hold all that decides the future, generators too: {GUIDE}#saving-its-state")


def _rendering(config: RunConfig) -> Finding:
    """Not being able to is no failure; to raise where one says that one can is one."""
    unable = "give a frame (H, W, 3) of uint8 in render mode rgb_array, to see videos"
    try:
        envs = make_envs(config, parallels=1, render_mode="rgb_array")
    except ConfigError as error:
        return Finding("rendering", "note", f"not supported: {error}", unable)
    with envs:
        envs.reset()
        try:
            frame = (envs.render() or (None,))[0]
        except XrlError as error:
            if not isinstance(error.__cause__, NotImplementedError):
                raise
            frame = None
    if frame is None:
        return Finding("rendering", "note", "not supported", unable)
    if not (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3):
        kind = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else f"a {type(frame).__name__}"
        return Finding("rendering", "warning", f"render() gives {kind}", unable)
    return Finding("rendering", "ok", f"a frame {frame.shape} of uint8")
