"""A session inside a learned model: where it starts, one step of it, and the real environment beside it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xrl.agents.base import Agent
from xrl.common.config import as_config
from xrl.common.config_keys import flatten
from xrl.common.errors import ConfigError, ModelFileError, XrlError
from xrl.common.files import read_metadata
from xrl.common.inspection import Look
from xrl.common.row import Row
from xrl.common.run_folder import CONFIG, find_model
from xrl.common.seeding import TEST_SEED, numpy_generator, torch_generator
from xrl.configs.schemas.base import RunConfig
from xrl.environment import RowEnvs, make_envs
from xrl.environment.build import EnvFactory
from xrl.environment.registry import find_entry
from xrl.player.buttons import Buttons
from xrl.runners.resume import run_folders
from xrl.runners.runner import make_agent

PLAYER_SEED = TEST_SEED + 1_000_000  # episodes that neither training nor an evaluation nor a test has seen
LONGEST_LEAD = 80  # agent steps that the policy makes before a start, at most
FASTEST = 30  # frames a second to begin with

# What environments call their actions that do not say so themselves. An environment does with get_action_meanings().
_LEFT_RIGHT = ["LEFT", "NOOP", "RIGHT"]
_NAMES = {"CartPole": ["LEFT", "RIGHT"], "Catch": _LEFT_RIGHT, "MountainCar-v0": _LEFT_RIGHT, "Acrobot": _LEFT_RIGHT,
          "CarRacing": ["NOOP", "RIGHT", "LEFT", "GAS (UP)", "BRAKE (DOWN)"],
          "LunarLander": ["NOOP", "LEFT", "MAIN (UP)", "RIGHT"],
          "MiniGrid": ["LEFT", "RIGHT", "FORWARD (UP)", "TAKE", "DROP", "TOGGLE (FIRE)", "DONE"]}

# One environment in this process and no second copy of the networks, however the run was trained.
_ONE_BY_ONE = {"parallels": 1, "vectorize": "sync", "policy_lag": 0, "compile": "off", "cuda_graph": "off",
               "device": "auto"}


@dataclass(frozen=True)
class Player:
    """A loaded model: what every session plays with.

    ``names``: of discrete actions (of several at once: of their combinations), empty for continuous ones. ``fps``:
    steps a second to begin with.
    """

    agent: Agent[Any]
    path: Path
    names: list[str]
    fps: int
    renders: bool

    @property
    def config(self) -> RunConfig:
        return self.agent.config

    def close(self) -> None:
        self.agent.finish()
        self.agent.envs.close()


def load_player(place: str | Path) -> Player:
    """The model at ``place`` (see ``model_at``) with the configuration that it was trained with.

    Raises ConfigError or ModelFileError: no model there, damaged, without a world model, an unknown environment.
    """
    path = model_at(Path(place))
    metadata = read_metadata(path)
    try:
        saved = flatten(as_config(metadata["config"]))
        config = as_config(saved | {key: value for key, value in _ONE_BY_ONE.items() if key in saved})
    except ConfigError as error:
        raise ModelFileError(f"{path}: its configuration does not fit this version of xrl: {error}; "
                             "load it with the xrl version that wrote it") from error
    names, fps, renders = _facts(config)
    envs = make_envs(config)
    try:
        agent = make_agent(config, envs, ())
        agent.load_model(path)
        agent.look(agent.initial_state(1))  # refused here if there is no world model
    except BaseException:
        envs.close()
        raise
    return Player(agent, path, names, fps, renders)


def model_at(place: Path) -> Path:
    """The model file that ``place`` means: a file, a run folder, or a folder of runs (its newest model).

    Raises ConfigError where nothing is, ModelFileError where no model is.
    """
    if place.is_file():
        return place
    if not place.is_dir():
        raise ConfigError(f"{place}: no such file or folder; name a run folder, a folder of runs or a model file")
    runs, models = run_folders(place), []
    for folder in runs or [place]:
        with suppress(ModelFileError):
            models.append(find_model(folder))
    if models:
        return max(models, key=lambda path: path.stat().st_mtime)
    if runs:
        raise ModelFileError(f"{runs[0]}: a run without a model, still being written perhaps: a run saves its first "
                             "model at its first evaluation, or at its end; wait for it, or name another run")
    raise ModelFileError(f"{place}: no run and no model here; name a run folder (it holds {CONFIG} and a model), a "
                         "folder of runs or a model file")


def _facts(config: RunConfig) -> tuple[list[str], int, bool]:
    """Names of the actions, steps a second, and whether there is a picture to be had of what is no picture."""
    label = f"environment of the player ({config.env_name}/{config.env_id})"
    env = EnvFactory(find_entry(config.env_name), config, label, None)(config.env_seed)
    try:
        spec, inner = env.action_spec, env.unwrapped
        names = [] if spec.kind == "continuous" else Buttons(spec).names
        known = next((words for start, words in _NAMES.items() if config.env_id.startswith(start)), [])
        said = inner.get_action_meanings() if hasattr(inner, "get_action_meanings") else known
        if names and len(said) == len(names):
            names = [str(name) for name in said]
        images = any(entry.kind == "image" for entry in env.obs_spec.values())
        speed = env.metadata.get("render_fps") or FASTEST
        renders = not images and "rgb_array" in env.metadata.get("render_modes", [])
        return names, max(1, min(FASTEST, int(speed))), renders
    finally:
        env.close()


@dataclass(frozen=True)
class Real:
    """The real environment after the same actions. ``reward`` and its sum are transformed as the model learns them;
    ``ended``: "" while the episode goes on, else why it does not; ``picture``: (H, W, 3) of uint8 or None."""

    obs: dict[str, np.ndarray]
    reward: float
    total: float
    ended: str
    picture: np.ndarray | None


@dataclass(frozen=True)
class Frame:
    """The dream after ``step`` steps: what the model makes of it (N = 1), the action (A,) that led here, that action
    and the policy as the page shows them (J,), the sum of predicted rewards, and the real environment, None where it
    was not asked for."""

    step: int
    look: Look
    action: np.ndarray
    taken: np.ndarray
    policy: np.ndarray
    total: float
    real: Real | None


class DreamSession:
    """One player's dream, with a real environment and generators of its own. The same ``seed``, the same session.

    ``start`` first, then ``step``. Raises EnvironmentFault where the environment cannot be used.
    """

    def __init__(self, player: Player, seed: int) -> None:
        self.player, self.agent = player, player.agent
        self.envs = self._make_envs(seed)
        self.spec = self.envs.action_spec
        self.buttons = None if self.spec.kind == "continuous" else Buttons(self.spec)
        self.rng = numpy_generator(seed, "starts of dreams")
        self.generator = torch_generator(seed, "dreams", self.agent.device)
        self.steps, self.total, self.real_total = 0, 0.0, 0.0
        self.behind: list[np.ndarray] = []  # actions that the real environment has not been given yet
        self.ended = ""

    def _make_envs(self, seed: int) -> RowEnvs:
        config, offset = self.player.config, PLAYER_SEED + seed
        self.renders = self.player.renders
        return make_envs(config, seed_offset=offset, render_mode="rgb_array" if self.renders else None)

    def start(self) -> Frame:
        """Forget all and begin in another real state: the policy plays an episode up to a random step of it."""
        lead = int(self.rng.integers(LONGEST_LEAD + 1))
        with torch.inference_mode():
            while (found := self._lead_in(lead)) is None:
                lead //= 2
            self.row, self.state = found
            self.look = self.agent.look(self.state)
        self.steps, self.total, self.real_total = 0, 0.0, 0.0
        self.behind.clear()
        self.ended = ""
        return self._frame(np.zeros(self.spec.size, np.float32), real=True)

    def _lead_in(self, steps: int) -> tuple[Row, Any] | None:
        """The row after ``steps`` of the policy in a new episode, and the latent state that has seen it; None if the
        episode is shorter."""
        row, state = self.envs.reset(), self.agent.initial_state(1)
        action, state = self.agent.act(row, state, self.generator, explore=False)
        for _ in range(steps):
            row = self.envs.step(action)
            if row.is_last[0] or row.is_first[0]:
                return None
            action, state = self.agent.act(row, state, self.generator, explore=False)
        return row, state

    def step(self, action: np.ndarray | None, real: bool = True) -> Frame:
        """One imagined step with ``action`` (A,), as the networks see it; None: the policy's mode. With ``real`` the
        real environment takes it too, after those that it was not given before."""
        chosen = self.mode() if action is None else action
        with torch.inference_mode():
            self.state = self.agent.dream(self.state, chosen[None], self.generator)
            self.look = self.agent.look(self.state)
        self.steps += 1
        self.total += float(self.look.reward[0])
        self.behind.append(chosen)
        return self._frame(chosen, real)

    def mode(self) -> np.ndarray:
        """The policy's most likely action (A,) in the present dream."""
        law = self.look.action[0]
        return self.buttons.table[self.buttons.policy(law).argmax()] if self.buttons else law

    def read_action(self, value: Any) -> np.ndarray | None:
        """An action from outside: a button's number counted from 0, or A numbers in [-1, 1]; "agent" is None.

        Raises ConfigError.
        """
        if value == "agent":
            return None
        if self.buttons:
            table = self.buttons.table
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(table):
                raise ConfigError(f"action: {value!r}: use 0 to {len(table) - 1}, or agent")
            return table[value]
        size = self.spec.size
        numbers = value if isinstance(value, list) else []
        if len(numbers) != size or not all(isinstance(number, int | float) and -1 <= number <= 1 for number in numbers):
            raise ConfigError(f"action: {value!r}: use {size} numbers from -1 to 1, or agent")
        return np.array(numbers, np.float32)

    def _frame(self, action: np.ndarray, real: bool) -> Frame:
        law = self.look.action[0]
        taken, policy = (self.buttons.pressed(action), self.buttons.policy(law)) if self.buttons else (action, law)
        return Frame(self.steps, self.look, action, taken, policy, self.total, self._real() if real else None)

    def _real(self) -> Real:
        reward = 0.0
        while self.behind and not self.ended:
            self.row = self.envs.step(self.behind.pop(0)[None])
            if self.row.is_first[0]:
                self.ended = "the environment failed and was restarted"
            elif self.row.is_last[0]:
                self.ended = "the episode ended" if self.row.is_terminal[0] else "the episode was cut at its time limit"
            reward = self._transformed(self.row.reward)
            self.real_total += reward
        self.behind.clear()
        obs = {name: value[0] for name, value in self.row.obs.items()}
        return Real(obs, reward, self.real_total, self.ended, self._picture())

    def _transformed(self, reward: np.ndarray) -> float:
        """As the world model learns it, so that both are in one unit; of methods that learn it as it is, no more."""
        transform = getattr(self.agent.learner, "transform_reward", None)
        return float(reward[0] if transform is None else transform(torch.from_numpy(reward))[0])

    def _picture(self) -> np.ndarray | None:
        """None, and from then on, where the environment cannot draw itself: a picture is not worth an error."""
        if not self.renders:
            return None
        try:
            return self.envs.picture()
        except XrlError:
            self.renders = False
            return None

    def close(self) -> None:
        self.envs.close()
