"""``vectorize: native``: all emulators of a run in the threads of ALE's own vector, told to obey DreamerV2's law."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ale_py import AtariVectorEnv
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from xrl.common.errors import ConfigError, ModelFileError
from xrl.common.row import ObsSpec
from xrl.configs.schemas.base import RunConfig
from xrl.environment.spaces import IMAGE_SIZE, DiscreteActions
from xrl.environment.state import Unsaveable

THREADS = {"num_threads": 0, "thread_affinity_offset": -1}  # one thread per emulator, at most one per core; anywhere
_NO_LIMIT = 2**30  # frames, half a year of play: the emulators' own limit, which leaves ending episodes to AtariVector
_SEEDS = 2**31


class AtariVector:
    """E copies of one game with the interface that RowEnvs reads: one-hot actions, images (E, 64, 64, C), NEXT_STEP.

    The time limit is counted here, in agent steps: the emulators' own would hide the last picture of a truncated
    episode. Raises ConfigError if ``env_kwargs`` holds anything but how to use threads.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    render_mode: str | None = None

    def __init__(self, game: str, num_envs: int, config: RunConfig, time_limit: int) -> None:
        if unknown := config.env_kwargs.keys() - THREADS.keys():
            raise ConfigError(f"env_kwargs: {', '.join(sorted(unknown))} cannot be set with vectorize: native, which "
                              f"takes only {', '.join(THREADS)}; everything else is the law of xrl's Atari, see "
                              f"environment, or needs vectorize: sync or async")
        settings = config.environment
        self._emulators: AtariVectorEnv | None = AtariVectorEnv(
            game, num_envs, batch_size=0, autoreset_mode=AutoresetMode.NEXT_STEP,
            max_num_frames_per_episode=_NO_LIMIT, repeat_action_probability=settings.sticky,
            full_action_space=settings.full_action_space, continuous=False, continuous_action_threshold=0.5,
            img_height=IMAGE_SIZE, img_width=IMAGE_SIZE, grayscale=settings.grayscale, stack_num=1,
            frameskip=settings.action_repeat, maxpool=True, noop_max=settings.noop_max, episodic_life=False,
            life_loss_info=False, reward_clipping=False, use_fire_reset=False, **{**THREADS, **config.env_kwargs})
        self.num_envs, self.time_limit = num_envs, time_limit
        self.obs_spec = {"image": ObsSpec("image", (IMAGE_SIZE, IMAGE_SIZE, 1 if settings.grayscale else 3))}
        self._actions = DiscreteActions(spaces.Discrete(len(self._emulators.ale.get_action_set())))
        self.action_spec = self._actions.spec
        self._start()

    def _start(self) -> None:
        self._steps = np.zeros(self.num_envs, np.int64)  # agent steps of the episode
        self._over = np.zeros(self.num_envs, bool)       # it ended with the last step
        self._cut = np.zeros(self.num_envs, bool)        # ... by the time limit alone, which no emulator knows of

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """The attribute once per environment."""
        return (getattr(self, name),) * self.num_envs

    def reset(self, *, seed: Sequence[int] | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode everywhere. The emulators take the seeds modulo 2^31."""
        seeds = None if seed is None else np.asarray(seed, np.int64) % _SEEDS
        obs, _ = self._open.reset(seed=seeds)
        self._start()
        return self._images(obs), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray,
                                                dict[str, Any]]:
        """One agent step with ``action`` (E, A); an environment whose episode was over begins one instead.

        Raises ValueError unless every action that counts is one-hot.
        """
        index = np.zeros(self.num_envs, np.int64)
        index[~self._over] = self._actions.indices(action[~self._over])
        obs, reward, terminated, _, _ = self._open.step(index)
        if self._cut.any():  # these emulators have played on for a step, which nobody will know of
            fresh, _ = self._open.reset(options={"reset_mask": self._cut})
            obs[self._cut], reward[self._cut], terminated[self._cut] = fresh[self._cut], 0, False
        self._steps = np.where(self._over, 0, self._steps + 1)
        truncated = self._steps >= self.time_limit
        self._over, self._cut = terminated | truncated, truncated & ~terminated
        return self._images(obs), reward, terminated, truncated, {}

    def _images(self, obs: np.ndarray) -> dict[str, np.ndarray]:
        """(E, 1, 64, 64) or (E, 1, 64, 64, 3) to (E, 64, 64, C): with one frame in the stack a reshape."""
        return {"image": obs.reshape(self.num_envs, *self.obs_spec["image"].shape)}

    @property
    def _open(self) -> AtariVectorEnv:
        if self._emulators is None:
            raise RuntimeError("these environments are closed")
        return self._emulators

    def reseed(self, seeds: Sequence[int]) -> None:
        """Nothing: the emulators are given their seeds at the first reset."""

    def get_states(self) -> list[dict[str, Any] | Unsaveable]:
        """The reason why there is none: ALE's vector can neither read nor write its emulators."""
        return [Unsaveable("the emulators of vectorize: native cannot save their state")] * self.num_envs

    def set_states(self, states: Sequence[Any], over: np.ndarray) -> None:
        """Raises ModelFileError: a state must be of other environments."""
        raise ModelFileError("the saved state of the environments does not fit vectorize: native, which can restore "
                             "none; set vectorize as it was")

    def render(self) -> None:
        """Nothing: the emulators have no screen; make_envs steps environments to look at in this process."""

    def close(self) -> None:
        """End the threads; a second call does nothing."""
        self._emulators = None
