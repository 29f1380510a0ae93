"""Stacked observations: the two ways to them agree, and neither looks into another episode."""

from __future__ import annotations

import pytest
import torch

from xrl.common.row import ObsSpec
from xrl.ops.frames import no_frames, push_all, restored, stack

SPEC = {"screen": ObsSpec("image", (2, 2, 3)), "joints": ObsSpec("vector", (2,))}


def life(rows=12, envs=2):
    """Rows (rows, E) whose entries all tell the row and environment; episodes begin here and there."""
    number = torch.arange(rows * envs).view(rows, envs)
    first = torch.zeros(rows, envs, dtype=torch.bool)
    first[0] = first[4, 0] = first[5, 0] = first[9] = True
    obs = {"screen": number[..., None, None, None].expand(rows, envs, 2, 2, 3).to(torch.uint8),
           "joints": torch.stack([number, -number], -1).float()}
    return obs, first


def stacks_by_search(frames, first, row, env, count):
    """The last ``count`` frames of the episode, its first one repeated where there are not so many."""
    found = [frames[row, env]]
    while len(found) < count:
        row -= 0 if first[row, env] else 1
        found.insert(0, frames[row, env])
    return torch.cat(found, -1)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_acting_and_learning_see_the_same(count):
    obs, first = life()
    carried = no_frames(SPEC, count, 2, torch.device("cpu"))
    seen = []
    for row in range(len(first)):
        new = {name: frames[row] for name, frames in obs.items()}
        now, carried = push_all(carried, new, first[row], count)
        seen.append(now)
    assert bool(carried) == (count > 1)
    for name, frames in obs.items():
        acted = torch.stack([now[name] for now in seen])
        learned = stack(frames, first, count)
        assert learned.dtype == frames.dtype and torch.equal(acted[count - 1:], learned)
        for row in range(count - 1, len(first)):
            for env in range(2):
                expected = stacks_by_search(frames, first, row, env, count)
                assert torch.equal(learned[row - count + 1, env], expected)


def test_what_was_carried_before_an_episode_does_not_matter():
    obs, _ = life()
    new, first = {"joints": obs["joints"][5]}, torch.tensor([True, False])
    before = no_frames({"joints": SPEC["joints"]}, 3, 2, torch.device("cpu"))
    one, _ = push_all(before, new, first, 3)
    other, _ = push_all({"joints": before["joints"] + 7}, new, first, 3)
    assert torch.equal(one["joints"][0], other["joints"][0]) and not torch.equal(one["joints"][1], other["joints"][1])
    assert one["joints"][0].tolist() == 3 * new["joints"][0].tolist()


def test_frames_from_a_file_must_fit():
    cpu = torch.device("cpu")
    fresh = no_frames(SPEC, 3, 2, cpu)
    assert restored(dict(fresh), fresh, cpu).keys() == SPEC.keys() and restored({}, {}, cpu) == {}
    for other in ({}, no_frames(SPEC, 2, 2, cpu), no_frames({"joints": SPEC["joints"]}, 3, 2, cpu)):
        with pytest.raises(ValueError, match="another shape"):
            restored(other, fresh, cpu)
