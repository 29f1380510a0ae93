"""Percentiles of a tensor's numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def percentiles(values: Tensor, shares: Sequence[float]) -> Tensor:
    """Those of all numbers of ``values`` (...), at ``shares`` in [0, 1], interpolated linearly: (shares,).

    As ``torch.quantile``, which makes the host wait for the device to see whether the shares lie in [0, 1].
    """
    ordered = values.flatten().sort().values
    found = []
    for share in shares:
        place = share * (len(ordered) - 1)
        low = math.floor(place)
        found.append(torch.lerp(ordered[low], ordered[min(low + 1, len(ordered) - 1)], place - low))
    return torch.stack(found)
