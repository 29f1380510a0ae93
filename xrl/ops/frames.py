"""The last K observations as one, joined on the last axis, oldest first.

Rows hold single observations. Where a method sees several, acting carries them along (``push``), and learning builds
them again from consecutive rows (``stack``); both give the same. Before an episode's first observation there is none:
that one stands in its place.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from xrl.common.row import ObsSpec

Frames = dict[str, Tensor]
"""name -> (E, ..., count * C), each the last ``count`` observations; empty where count is 1 and nothing is carried."""


def no_frames(obs_spec: Mapping[str, ObsSpec], count: int, num_envs: int, device: torch.device) -> Frames:
    """What ``push_all`` begins with."""
    kinds = {"image": torch.uint8, "vector": torch.float32}
    return {} if count == 1 else {
        name: torch.zeros(num_envs, *spec.shape[:-1], count * spec.shape[-1], dtype=kinds[spec.kind], device=device)
        for name, spec in obs_spec.items()}


def push_all(before: Frames, obs: dict[str, Tensor], is_first: Tensor, count: int) -> tuple[dict[str, Tensor], Frames]:
    """``push`` for every entry. Returns what the networks see, and what to carry to the next step."""
    if count == 1:
        return obs, {}
    after = {name: push(before[name], new, is_first, count) for name, new in obs.items()}
    return after, after


def restored(found: Frames, fresh: Frames, device: torch.device) -> Frames:
    """Frames from a file, on the device, if they are as ``fresh`` ones. Raises ValueError if not."""
    if {name: value.shape for name, value in found.items()} != {name: value.shape for name, value in fresh.items()}:
        raise ValueError(f"frames of {list(found)}, not of {list(fresh)}, or of another shape")
    return {name: value.to(device) for name, value in found.items()}


def push(before: Tensor, new: Tensor, is_first: Tensor, count: int) -> Tensor:
    """The last ``count`` observations when one more has arrived.

    Args:
        before: the last ones before it, (E, ..., count * C), oldest first.
        new: (E, ..., C).
        is_first: (E,) bool; where True an episode begins, and ``before`` is of another one.

    Returns:
        (E, ..., count * C).
    """
    alone = torch.cat([new] * count, -1)
    begins = is_first.view(-1, *[1] * (new.dim() - 1))
    return torch.where(begins, alone, torch.cat([before[..., new.shape[-1]:], new], -1))


def stack(frames: Tensor, is_first: Tensor, count: int) -> Tensor:
    """The last ``count`` observations at each of T rows, from those and the count - 1 rows before them::

        count = 3        row   0   1   2   3   4            row 3 begins an episode (is_first)
        stacks at        2: 0 1 2    3: 3 3 3    4: 3 3 4

    Args:
        frames: consecutive rows, (count - 1 + T, B, ..., C), oldest first.
        is_first: (count - 1 + T, B) bool.

    Returns:
        (T, B, ..., count * C), of the type of ``frames``.
    """
    if count == 1:
        return frames
    rows = len(frames) - count + 1
    index = torch.arange(count - 1, len(frames), device=frames.device)[:, None].expand(rows, frames.shape[1])
    env = torch.arange(frames.shape[1], device=frames.device)
    parts = [frames[count - 1:]]
    for _ in range(count - 1):  # one row back at a time, but never past the first of an episode
        index = index - (~is_first[index, env]).long()
        parts.append(frames[index, env])
    return torch.cat(parts[::-1], -1)
