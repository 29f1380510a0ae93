"""An agent as a model file: which tensors, which metadata, and what must agree before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from xrl.common.errors import ModelFileError
from xrl.common.files import load_tensors, save_tensors

if TYPE_CHECKING:
    from xrl.agents.base import Agent


def save_model_file(path: Path, agent: Agent[Any]) -> None:
    """Everything of ``agent.state_dict()``: tensors by dotted name, numbers in the metadata."""
    tensors, numbers = _split(agent.state_dict())
    save_tensors(path, tensors, {
        "method": agent.config.method, "env_name": agent.config.env_name, "env_id": agent.config.env_id,
        "counters": agent.counters, "config": agent.config.model_dump(mode="json"), "numbers": numbers,
        "spaces": _spaces(agent)})


def load_model_file(path: Path, agent: Agent[Any]) -> None:
    """Load into ``agent``, all or nothing. Raises ModelFileError with the first thing that does not agree."""
    tensors, metadata = load_tensors(path)
    if metadata["method"] != agent.config.method:
        raise ModelFileError(f"{path}: a model of {metadata['method']}, not of {agent.config.method}; "
                             f"use method={metadata['method']!r}, or another file")
    if metadata["spaces"] != _spaces(agent):
        raise ModelFileError(f"{path}: made for {metadata['spaces']} ({metadata['env_id']}), but this environment "
                             f"({agent.config.env_id}) has {_spaces(agent)}; use a model of this environment")
    expected, _ = _split(agent.state_dict())
    for name in expected.keys() & tensors.keys():
        # A generator's state fits its own kind of device: on another one the agent's stays as it is.
        if name.rpartition("/")[2] == "generator" and tensors[name].shape != expected[name].shape:
            tensors[name] = expected[name]
    for name in sorted(expected.keys() | tensors.keys()):
        have, want = tensors.get(name), expected.get(name)
        if have is None or want is None or have.shape != want.shape:
            shapes = [tuple(tensor.shape) if tensor is not None else "no such tensor" for tensor in (have, want)]
            raise ModelFileError(f"{path}: another network shape: {name} is {shapes[0]} in the file, {shapes[1]} "
                                 "here; use the config.yaml saved beside the model")
    agent.load_state_dict(_merge(tensors, metadata["numbers"]))


def _spaces(agent: Agent[Any]) -> dict[str, Any]:
    obs = {name: [spec.kind, list(spec.shape)] for name, spec in sorted(agent.envs.obs_spec.items())}
    spec = agent.envs.action_spec
    return {"observation": obs, "action": [spec.kind, spec.size, *([list(spec.choices)] if spec.choices else [])]}


def _split(state: dict[str, Any], prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A nested state into tensors and plain values, both flat by path ("learner/model_opt/mean")."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, dict):
            inner = _split(value, f"{prefix}{key}/")
            tensors |= inner[0]
            numbers |= inner[1]
        elif isinstance(value, Tensor):
            tensors[prefix + key] = value
        else:
            numbers[prefix + key] = value
    return tensors, numbers


def _merge(tensors: dict[str, Tensor], numbers: dict[str, Any]) -> dict[str, Any]:
    """The inverse of ``_split``."""
    state: dict[str, Any] = {}
    for path, value in {**tensors, **numbers}.items():
        *parents, leaf = path.split("/")
        place = state
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    return state
