"""Returns. Inputs are already aligned: the alignment is the learner's and stands there as a time diagram."""

from __future__ import annotations

import torch
from torch import Tensor


def lambda_return(reward: Tensor, next_value: Tensor, discount: Tensor, lambda_: float | Tensor) -> Tensor:
    """TD(lambda) targets, computed backwards from the bootstrap ``next_value[-1]`` (DreamerV2, eq. 4)::

        V_k = r_k + d_k [(1 - lambda) v_{k+1} + lambda V_{k+1}],    V_H = v_H

    Args:
        reward: r_0 .. r_{H-1}, (H, N).
        next_value: v_1 .. v_H, (H, N).
        discount: d_0 .. d_{H-1}, (H, N); d_k weighs what comes after step k and contains gamma.
        lambda_: 0 gives one-step targets, 1 the discounted sum up to the bootstrap; a number, or one for each step,
            (H, N).

    Returns:
        V_0 .. V_{H-1}, (H, N), differentiable in every input.

    Raises:
        ValueError: the three inputs differ in shape.
    """
    if not reward.shape == next_value.shape == discount.shape:
        raise ValueError(f"shapes differ: reward {tuple(reward.shape)}, next_value {tuple(next_value.shape)}, "
                         f"discount {tuple(discount.shape)}")
    one_step = reward + (1 - lambda_) * discount * next_value
    decay = lambda_ * discount
    target = next_value[-1]
    targets = []
    for k in reversed(range(len(reward))):
        target = one_step[k] + decay[k] * target
        targets.append(target)
    return torch.stack(targets[::-1])


def cumulative_weight(discount: Tensor) -> Tensor:
    """How much imagined step k still counts: w_0 = 1, w_k = d_0 d_1 .. d_{k-1}.

    ``discount``: d_0 .. d_{H-1}, (H, N). Returns w_0 .. w_{H-1}, (H, N), without a gradient.
    """
    shifted = torch.cat([torch.ones_like(discount[:1]), discount[:-1]])
    return shifted.detach().cumprod(0)
