"""Rollouts inside the world model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xrl.nn.layers import OneHots
from xrl.world_models.rssm import RSSM, State


def imagine(rssm: RSSM, actor: Callable[[Any], Any], start: State, action_noise: Tensor, latent_noise: Tensor
            ) -> tuple[Tensor | OneHots, Tensor]:
    """Follow ``actor`` for H steps from N start states::

        k:        0      1      2    ..    H
        feat_k    start  *      *          *       a_{k+1} ~ actor(feat_k), then
        a_{k+1}   a_1    a_2    a_3        -       feat_{k+1} from img_step(feat_k, a_{k+1})

    The actor reads *detached* features: a gradient reaches it only through the actions it sampled and what
    they led to, never through its own input (DreamerV2, section 2.2).

    Args:
        start: (N, ...), already detached from the model loss.
        action_noise: (H, N, *actor.noise_shape); latent_noise: rssm.latent.noise(H, N).

    Returns:
        Features feat_0 .. feat_H, (H+1, N, F), in the form that ``start`` has (see ``State``), and actions
        a_1 .. a_H, (H, N, A).
    """
    states, actions = [start], []
    for k in range(len(action_noise)):
        feat = rssm.join(states[-1].stoch, states[-1].deter)
        action = actor(feat.detach()).sample(action_noise[k])
        states.append(rssm.img_step(states[-1], action, latent_noise[k]))
        actions.append(action)
    deter, stoch = (torch.stack(parts) for parts in zip(*states, strict=True))
    return rssm.join(stoch, deter), torch.stack(actions)
