"""Rollouts inside the world model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xrl.world_models.rssm import RSSM, State


def imagine(rssm: RSSM, actor: Callable[[Tensor], Any], start: State, action_noise: Tensor, latent_noise: Tensor
            ) -> tuple[Tensor, Tensor]:
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
        Features feat_0 .. feat_H, (H+1, N, F), and actions a_1 .. a_H, (H, N, A).
    """
    state, feats, actions = start, [start.feat], []
    for k in range(len(action_noise)):
        action = actor(feats[-1].detach()).sample(action_noise[k])
        state = rssm.img_step(state, action, latent_noise[k])
        actions.append(action)
        feats.append(state.feat)
    return torch.stack(feats), torch.stack(actions)
