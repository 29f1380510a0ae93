"""Run keys that every method shares, in the names XuanCe's users know."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import field_validator

from xrl.configs.schemas.fields import Float, Int, Section, as_number, param


class EnvironmentConfig(Section):
    """How a single environment is prepared; `env_kwargs` holds what its constructor takes."""

    action_repeat: Int = param(1, "emulator or physics ticks per agent step, rewards summed", "frames", ge=1)
    time_limit: Int = param(0, "an episode is truncated after this; 0 keeps the environment's own limit",
                            "agent steps", ge=0)
    sticky: Float = param(0.25, "Atari: probability that the emulator repeats the previous action", "per frame",
                          ge=0, lt=1)
    noop_max: Int = param(30, "Atari: a reset is followed by 1 to this many no-ops (vectorize: native: 0 to one "
                              "fewer); 0 for none", "frames", ge=0)
    full_action_space: bool = param(False, "Atari: all 18 actions instead of the game's minimal set")
    grayscale: bool = param(True, "Atari: luminance (64, 64, 1) instead of colour (64, 64, 3)")


class RunConfig(Section):
    """What a run is, whichever method learns. `running_steps` and all cadences count agent steps
    summed over the parallel environments; a frame is one tick of the emulator (agent steps x action repeat).
    """

    method: str = param(..., "name of the method in METHODS, any case")
    env_name: str = param(..., "environment family in REGISTRY_ENV: classic_control, atari, toy, gymnasium, box2d, "
                               "dmc, minigrid or yours")
    env_id: str = param(..., "environment within the family, e.g. CartPole-v1")
    preset: Literal["official", "paper", "debug"] = param(
        "official", "official: the shipped files; paper: where the paper differs; debug: tiny")
    seed: Int = param(1, "seed of networks, sampling and policy", ge=0)
    env_seed: Int = param(1, "environment i is seeded env_seed + i; evaluation uses others", ge=0)
    device: str = param("auto", "auto, cpu, cuda or cuda:N; auto takes a GPU when there is one")
    precision: Literal["fp32", "bf16"] = param(
        "fp32", "of the matrix products in an update; bf16: bfloat16 products, all else float32")
    compile: Literal["off", "on"] = param(
        "off", "torch.compile for the small parts of an update that run most often; starts up for half a minute")
    cuda_graph: Literal["auto", "off"] = param(
        "auto", "on a GPU an update, and a step of the policy, is one CUDA graph; off: one launch per operation")
    deterministic: bool | None = param(
        None, "the same seed gives the same run to the last bit on this machine; null: on a CPU, where it is free")
    parallels: Int = param(1, "environments stepped side by side", "environments", ge=1)
    vectorize: Literal["sync", "async", "native"] = param(
        "sync", "environments in this process, in a process each, or in the emulator's own threads (atari only)")
    env_kwargs: dict[str, Any] = param({}, "keyword arguments of the environment's constructor")
    max_env_failures: Int = param(
        10, "failures of environments that a run survives by restarting them; the next one stops it", "failures", ge=0)
    env_timeout: Float = param(
        60.0, "an environment in a worker process (vectorize: async) that answers later counts as hung", "s", gt=0)
    environment: EnvironmentConfig = param(EnvironmentConfig(), "how a single environment is prepared")

    running_steps: Int = param(1_000_000, "length of a training run", "agent steps", ge=1)
    start_training: Int = param(10_000, "random actions before the first update", "agent steps", ge=1)
    buffer_size: Int = param(2_000_000, "capacity of the replay", "agent steps", ge=1)
    batch_size: Int = param(16, "sequences per update", "sequences", ge=1)
    skip_nonfinite: Int = param(
        0, "updates in a row with a non-finite loss or gradient that are skipped before the run stops", "updates", ge=0)
    gamma: Float = param(0.99, "discount factor of one agent step", gt=0, le=1)

    checkpoint_every: int | str = param(
        "5min", "training between checkpoints: agent steps, or minutes as in 10min; 0 for no checkpoints",
        "agent steps or minutes")
    keep_checkpoints: Int = param(2, "the newest checkpoints that stay on disk", "checkpoints", ge=1)
    eval_interval: Int = param(100_000, "training between evaluations; 0 for none", "agent steps", ge=0)
    test_episode: Int = param(10, "episodes of an evaluation", "episodes", ge=1)
    test_parallels: Int = param(20, "episodes of an evaluation played side by side, at most", "environments", ge=1)
    inspect: bool = param(True, "after each evaluation: health numbers of the world model, and a dream to look at")
    render: bool = param(False, "after each evaluation, and in test mode: a film of an episode, in the run folder")
    log_interval: Int = param(1_000, "training between records of the log", "agent steps", ge=1)
    logger: Literal["tensorboard", "wandb", "none"] = param(
        "tensorboard", "where metrics go beside metrics.jsonl, which is always written")
    project_name: str = param("xrl", "project of the wandb logger")
    log_dir: str | None = param(None, "folder for the logs; null puts them into the run folder", "path")
    model_dir: str = param("models", "folder of the run folders", "path")
    render_mode: Literal["human", "rgb_array"] | None = param(
        None, "test mode: human opens a window; either is passed to the environment")
    fps: Int = param(50, "test mode with render_mode human: speed of the window", "agent steps per second", ge=1)

    @field_validator("compile", "cuda_graph", mode="before")
    @classmethod
    def _yaml_switch(cls, value: Any) -> Any:
        """YAML reads a bare ``on`` or ``off`` as a truth value."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @field_validator("checkpoint_every", mode="before")
    @classmethod
    def _steps_or_minutes(cls, value: Any) -> Any:
        if isinstance(value, str) and (minutes := re.fullmatch(r"(\d+(?:\.\d+)?) *(?:m|min|minutes?)", value.strip())):
            if not 1e-6 <= float(minutes[1]) <= 1e9:
                raise ValueError("must be more than 0 minutes (0 alone means no checkpoints) and less than for ever")
            return f"{float(minutes[1]):.6f}".rstrip("0").rstrip(".") + "min"
        number = as_number(value)
        if not isinstance(number, int | float) or number < 0 or number != int(number):
            raise ValueError("must be agent steps, or minutes as in 10min")
        return int(number)

    @field_validator("env_id")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must name an environment")
        return value
