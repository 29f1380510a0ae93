"""Returns. Inputs are already aligned: the alignment is the learner's and stands there as a time diagram."""

from __future__ import annotations

from typing import NamedTuple

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


def gae(reward: Tensor, value: Tensor, next_value: Tensor, discount: Tensor, follows: Tensor, lambda_: float) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, eq. 16), computed backwards over T transitions::

        delta_k = r_k + d_k v'_k - v_k
        A_k = delta_k + lambda d_k f_k A_{k+1},    A_T = 0

    Two things cut the sum over later steps, and they differ: d_k = 0 where the environment ended the episode, because
    nothing is worth anything after it; f_k = 0 where transition k + 1 belongs to another episode. Where a time limit
    cut the episode only the latter is 0, and v'_k, the value of the final observation, stands for what was cut off.

    Args:
        reward, value, next_value: r_k, and v_k and v'_k of the observations before and after transition k, (T, E).
        discount: d_k, (T, E): gamma, or 0 where the observation after transition k is terminal.
        follows: f_k, (T, E) bool: transition k + 1 goes on where k ended. The last entry is not read.
        lambda_: 0 gives one-step advantages, 1 the discounted sum up to the bootstrap, minus v_k.

    Returns:
        A_0 .. A_{T-1}, (T, E).

    Raises:
        ValueError: the inputs differ in shape.
    """
    if not reward.shape == value.shape == next_value.shape == discount.shape == follows.shape:
        raise ValueError(f"shapes differ: reward {tuple(reward.shape)}, value {tuple(value.shape)}, next_value "
                         f"{tuple(next_value.shape)}, discount {tuple(discount.shape)}, follows {tuple(follows.shape)}")
    delta = reward + discount * next_value - value
    decay = lambda_ * discount * follows
    advantage = delta[-1]
    advantages = [advantage]
    for k in reversed(range(len(delta) - 1)):
        advantage = delta[k] + decay[k] * advantage
        advantages.append(advantage)
    return torch.stack(advantages[::-1])


class NStep(NamedTuple):
    """Per transition: the discounted rewards, the factor on the value of the row they lead to, and how many rows
    further on that is, at most n; each (B,)."""

    reward: Tensor
    discount: Tensor
    steps: Tensor


def n_step(reward: Tensor, is_first: Tensor, is_terminal: Tensor, gamma: float) -> NStep:
    """What n rows say about the row before them, within its episode (Sutton and Barto 2018, eq. 7.1)::

        row          t         t+1       ..        t+m       t+m+1
        reward                 r_1       ..        r_m       0           m = n, or fewer: the episode's rows only
        is_first               0         ..        0         1
        return       sum_{j=1..m} gamma^{j-1} r_j  + gamma^m (1 - is_terminal_{t+m}) v_{t+m}

    An episode that was truncated or cut ends like one that was not, with m rows; only ``is_terminal`` takes away the
    value of what comes after.

    Args:
        reward, is_first, is_terminal: of rows t+1 .. t+n, (n, B). Row t+1 must not be ``is_first``; where it is, m = 0.
        gamma: discount factor of one step.
    """
    inside = (~is_first).to(reward.dtype).cumprod(0)
    steps = inside.sum(0).long()
    factor = gamma ** torch.arange(len(reward), device=reward.device, dtype=reward.dtype)
    total = (factor[:, None] * inside * reward).sum(0)
    ended = (inside * is_terminal).amax(0)  # the only terminal row of an episode is its last
    return NStep(total, gamma ** steps.to(reward.dtype) * (1 - ended), steps)
