"""When checkpoints are written, what they hold, and how a run goes on from one."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xrl.common.callback import Callback
from xrl.common.checkpoint import REPLAY, Checkpoints, Snapshot
from xrl.common.config import load_config
from xrl.common.config_files import shown
from xrl.common.errors import CheckpointError, ConfigError, XrlError
from xrl.common.provenance import PACKAGES, version_of
from xrl.common.run_folder import CONFIG, FINAL_MODEL, INTERRUPTED_MODEL, LAST_GOOD_MODEL
from xrl.common.state import pack

if TYPE_CHECKING:
    from xrl.agents.base import Agent


class Checkpointer(Callback):
    """Writes a checkpoint before the first step, every so often, and when training ends or is stopped.

    Training waits while the state is copied; hashing and writing are done in a thread. It should be the last callback,
    so that all others have seen the step.

    Args:
        every: agent steps, or minutes as "10min" (see ``RunConfig.checkpoint_every``).
        keep: how many of the newest stay.
    """

    part = "checkpoint"

    def __init__(self, every: int | str, keep: int) -> None:
        self.steps = every if isinstance(every, int) else None
        self.seconds = None if isinstance(every, int) else 60 * float(every.removesuffix("min"))
        self.keep = keep
        self.next_step = self.steps
        self.written_at = time.monotonic()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Path | None] | None = None
        self.checkpoints: Checkpoints | None = None  # a resumed run hands over those it has looked at
        self._said = False

    def on_start(self, agent: Agent[Any]) -> None:
        self.save(agent)
        self.wait()  # no step is made that a kill could take back to nothing

    def on_step(self, agent: Agent[Any]) -> None:
        if self._due(agent):
            self.save(agent)

    def on_pretrain(self, agent: Agent[Any]) -> None:
        self.on_step(agent)

    def on_pause(self, agent: Agent[Any]) -> None:
        self.save(agent)
        self.wait()

    def on_finish(self, agent: Agent[Any]) -> None:
        self.wait()
        self._thread.shutdown()

    def _due(self, agent: Agent[Any]) -> bool:
        if self.next_step is None:
            assert self.seconds is not None
            return time.monotonic() - self.written_at >= self.seconds
        return agent.agent_steps >= self.next_step

    def save(self, agent: Agent[Any]) -> None:
        """Take the state now and write it behind training's back; wait for the one before.

        Raises NumericalError rather than saving a learner that has met NaN.
        """
        self.wait()
        agent.settle()
        agent.learner.check()
        if self.checkpoints is None:
            self.checkpoints = Checkpoints(agent.folder, self.keep)
        self.written_at = time.monotonic()
        while self.next_step is not None and self.steps and self.next_step <= agent.agent_steps:
            self.next_step += self.steps
        try:
            snapshot = take_snapshot(agent)
        except OSError as error:
            self._failed(agent, error)
            return
        if agent.envs.unsaveable and not self._said:
            print(f"not exact: a resumed run will not be the same run: {agent.envs.unsaveable}; it goes on with fresh "
                  f"episodes", file=sys.stderr)
            self._said = True
        self._writing = self._thread.submit(self._write, agent, snapshot)

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _write(self, agent: Agent[Any], snapshot: Snapshot) -> Path | None:
        assert self.checkpoints is not None
        try:
            return self.checkpoints.write(snapshot)
        except OSError as error:
            self._failed(agent, error)
            return None

    def _failed(self, agent: Agent[Any], error: OSError) -> None:
        print(f"CHECKPOINT FAILED at {agent.agent_steps} agent steps: {error}. Training goes on; the last good "
              f"checkpoint stays; the next try is at the next one's time. Free some space or permissions in "
              f"{agent.folder}", file=sys.stderr)

    def state_dict(self, agent: Agent[Any]) -> dict[str, Any]:
        return {"next_step": self.next_step}

    def load_state_dict(self, agent: Agent[Any], state: dict[str, Any]) -> None:
        self._said = bool(state)  # whoever resumes a run that is not exact is told by `resume`
        if self.steps and state.get("next_step") is not None:
            self.next_step = int(state["next_step"])


def take_snapshot(agent: Agent[Any]) -> Snapshot:
    """The agent's run at the end of a step, as copies. Raises OSError where the replay cannot be written."""
    state = agent.run_state()
    try:
        arrays, tree = pack(state)
    except TypeError as error:
        raise ConfigError(f"checkpoint: {error}; a state consists of dicts and lists of arrays, numbers, strings, "
                          f"bytes and None") from error
    return Snapshot(arrays, tree, agent.counters, rows=state.get("replay", {}).get("files", ()),
                    facts={**surroundings(agent), "exact": not (agent.envs.unsaveable or agent.inexact),
                           "not_exact_because": agent.envs.unsaveable or agent.inexact})


def surroundings(agent: Agent[Any]) -> dict[str, Any]:
    """What a resumed run must share with this one to be bit for bit the same."""
    return {**{name: version_of(name) for name in PACKAGES}, "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}", "threads": torch.get_num_threads(),
            "device": "cpu" if agent.device.type == "cpu" else torch.cuda.get_device_name(agent.device)}


def resume(agent: Agent[Any], folder: Path, keep: int) -> None:
    """Make a fresh ``agent`` go on in ``folder`` from its newest whole checkpoint; without any, from the beginning.

    Raises CheckpointError.
    """
    checkpoints = Checkpoints(folder, keep)
    checkpoint = checkpoints.newest()
    agent.folder = folder
    for callback in agent.callbacks:
        if isinstance(callback, Checkpointer):
            callback.checkpoints = checkpoints
    if checkpoint is None:
        _check_unborn(agent, folder)
        checkpoints.rewind(None)
        for callback in agent.callbacks:
            callback.load_state_dict(agent, {})
        print(f"{folder}: killed before its first checkpoint; it begins again", file=sys.stderr)
        return
    facts = checkpoint.manifest["facts"]
    if (facts.get("device") == "cpu") != (agent.device.type == "cpu"):
        raise CheckpointError(f"{checkpoint.path}: written on {shown(str(facts.get('device')), 80)}, but device: "
                              f"{agent.config.device} is {agent.device} here, and random numbers differ between them: "
                              f"resume it on such a device, or start another run from its model")
    state = checkpoint.load()
    try:
        named = {file["name"] for file in state.get("replay", {}).get("files", ())}
        if not named <= checkpoint.row_names:  # those are ours, and were verified
            raise CheckpointError(f"{checkpoint.path}: its state names rows that its manifest does not list")
        agent.load_run_state(state)
        agent.load_callback_states(state)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        if isinstance(error, XrlError):
            raise
        reason = shown(" ".join(f"{type(error).__name__}: {error}".split()), 400)
        raise CheckpointError(f"{checkpoint.path}: does not fit this run: {reason}") from error
    checkpoints.rewind(checkpoint)
    print(f"{folder}: going on from agent step {agent.agent_steps:,}, update {agent.updates:,}", file=sys.stderr)
    _compare(facts, agent)


def _check_unborn(agent: Agent[Any], folder: Path) -> None:
    """Raise CheckpointError if the run without a checkpoint has come further than its first one would be."""
    models = [name for name in (FINAL_MODEL, INTERRUPTED_MODEL, LAST_GOOD_MODEL) if (folder / name).exists()]
    first = "rows_000000000000_000000000001.safetensors"  # the reset rows, written for the first checkpoint
    stored = any(path.name != first for path in (folder / REPLAY).glob("rows_*"))
    if models or stored or load_config(config_path=folder / CONFIG).config.checkpoint_every == 0:
        raise CheckpointError(f"{folder}: has no checkpoint to go on from (it was trained with checkpoint_every: 0, or "
                              f"its checkpoints are gone), and is not begun again, because that would overwrite what "
                              f"is there; start a new run")


def _compare(then: Mapping[str, Any], agent: Agent[Any]) -> None:
    now = surroundings(agent)
    if changed := [f"{name} {shown(str(then.get(name)), 80)} -> {now[name]}" for name in now
                   if then.get(name) != now[name]]:
        print(f"not exact to the last bit: {', '.join(changed)}", file=sys.stderr)
    if agent.row is None:
        print(f"not exact: {shown(str(then.get('not_exact_because')))}; the run goes on with fresh episodes",
              file=sys.stderr)
