"""Kullback-Leibler divergences and KL balancing."""

from __future__ import annotations

import torch
from torch import Tensor


def categorical_kl(post_logits: Tensor, prior_logits: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q || p) of S independent categoricals, twice: once for either side's gradient.

    Args:
        post_logits, prior_logits: (..., S, K), any scale.

    Returns:
        ``dyn_kl``, KL(sg q || p), which trains the prior p, and ``rep_kl``, KL(q || sg p), which trains
        the posterior q; both (...), in nats, summed over the S variables, equal in value.
    """
    log_q = torch.log_softmax(post_logits, -1)
    log_p = torch.log_softmax(prior_logits, -1)
    q = log_q.exp()
    dyn_kl = (q.detach() * (log_q.detach() - log_p)).sum((-2, -1))
    rep_kl = (q * (log_q - log_p.detach())).sum((-2, -1))
    return dyn_kl, rep_kl


def gaussian_kl(post: tuple[Tensor, Tensor], prior: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """``categorical_kl`` for diagonal normals: each side is (mean, std), both (..., S); sums over S."""
    def frozen(law: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return law[0].detach(), law[1].detach()

    return gaussian_kl_each(frozen(post), prior).sum(-1), gaussian_kl_each(post, frozen(prior)).sum(-1)


def categorical_kl_each(post_logits: Tensor, prior_logits: Tensor) -> Tensor:
    """KL(q || p) of each of S categoricals: logits (..., S, K) -> (..., S), nats."""
    log_q, log_p = torch.log_softmax(post_logits, -1), torch.log_softmax(prior_logits, -1)
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def gaussian_kl_each(post: tuple[Tensor, Tensor], prior: tuple[Tensor, Tensor]) -> Tensor:
    """KL(q || p) of each of S normals: (mean, std), both (..., S) -> (..., S), nats."""
    ratio = (post[1] / prior[1]).square()
    return 0.5 * (ratio + ((post[0] - prior[0]) / prior[1]).square() - 1 - ratio.log())


def balanced_kl(dyn_kl: Tensor, rep_kl: Tensor, balance: float, free_nats: float, free_avg: bool) -> Tensor:
    """KL balancing: alpha max(f, KL(sg q || p)) + (1 - alpha) max(f, KL(q || sg p)) (DreamerV2, algorithm 2).

    Args:
        dyn_kl, rep_kl: (T, B), nats.
        balance: alpha, the share that trains the prior.
        free_nats: f; below it nothing is trained.
        free_avg: clip the mean over T and B (official code); otherwise clip every entry, then average.

    Returns:
        A scalar.
    """
    def clipped(kl: Tensor) -> Tensor:
        return kl.mean().clamp(min=free_nats) if free_avg else kl.clamp(min=free_nats).mean()

    return balance * clipped(dyn_kl) + (1 - balance) * clipped(rep_kl)


def weighted_kl(dyn_kl: Tensor, rep_kl: Tensor, dyn_scale: float, rep_scale: float, free_bits: float) -> Tensor:
    """DreamerV3's two KL losses, eq. 5: b_dyn max(f, KL(sg q || p)) + b_rep max(f, KL(q || sg p)), row by row.

    A row whose KL, summed over the latents, is below ``free_bits`` f (nats) has no gradient; V2 clips the mean of all
    rows instead. ``dyn_kl``, ``rep_kl``: (T, B), nats. Returns (T, B).
    """
    return dyn_scale * dyn_kl.clamp(min=free_bits) + rep_scale * rep_kl.clamp(min=free_bits)
