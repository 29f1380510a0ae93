"""Slow copies."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xrl.ops.targets import copy_parameters


def test_copy_is_exact_and_stays_behind():
    source, target = nn.Linear(3, 2), nn.Linear(3, 2).requires_grad_(False)
    storage = target.weight.data_ptr()
    copy_parameters(source, target)
    assert torch.equal(source.weight, target.weight) and torch.equal(source.bias, target.bias)
    assert target.weight.data_ptr() == storage, "in place: whoever holds the old parameters sees the new values"
    assert source.weight.requires_grad and not target.weight.requires_grad
    with torch.no_grad():
        source.weight.add_(1)
    assert not torch.equal(source.weight, target.weight)


@pytest.mark.parametrize("when", [True, False])
def test_copy_or_not_as_the_device_says(when):
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    before = target.weight.detach().clone()
    copy_parameters(source, target, torch.tensor(when))
    assert torch.equal(target.weight, source.weight if when else before)


def test_another_network_is_refused():
    with pytest.raises(ValueError):
        copy_parameters(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))
