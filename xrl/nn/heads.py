"""Heads on the model state: scalars (reward, value), the discount, and actors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xrl.common.row import ActionSpec
from xrl.nn.distributions import MultiOneHot, Normal, OneHot, TanhNormal, TruncatedNormal, mixed, normal_loss
from xrl.nn.layers import MLP, OneHots, dense


class ScalarHead(nn.Module):
    """A unit-variance normal over one number: an MLP and a dense layer. The mean is the prediction."""

    def __init__(self, inputs: int, layers: int, units: int, norm: str = "none") -> None:
        super().__init__()
        self.mlp = MLP(inputs, layers, units, norm)
        self.out = dense(units, 1, norm)

    def forward(self, feat: Tensor | OneHots) -> Tensor:
        """(..., F) -> the mean, (...)."""
        return self.out(self.mlp(feat)).squeeze(-1).float()

    def loss(self, feat: Tensor | OneHots, target: Tensor) -> Tensor:
        """-log N(target; mean, 1), (...)."""
        return normal_loss(self(feat), target)


class DiscountHead(ScalarHead):
    """A Bernoulli trained on a *soft* label, gamma (1 - is_terminal): its mean already contains gamma."""

    def forward(self, feat: Tensor | OneHots) -> Tensor:
        """(..., F) -> the mean, the discount factor of a step, (...)."""
        return torch.sigmoid(super().forward(feat))

    def loss(self, feat: Tensor | OneHots, target: Tensor) -> Tensor:
        """-[y log sigmoid(l) + (1 - y) log sigmoid(-l)] with y in [0, 1], (...)."""
        return F.binary_cross_entropy_with_logits(super().forward(feat), target, reduction="none")


class OneHotActor(nn.Module):
    """Policy over discrete actions: (..., F) -> OneHot over A.

    ``scale``: of the initial output weights; ``unimix``: the share of the uniform law in the policy.
    """

    def __init__(self, inputs: int, action_size: int, layers: int, units: int, norm: str = "none", scale: float = 1.0,
                 unimix: float = 0.0) -> None:
        super().__init__()
        self.mlp = MLP(inputs, layers, units, norm)
        self.out = dense(units, action_size, norm, scale)
        self.unimix = unimix
        self.noise_shape: tuple[int, ...] = ()

    def forward(self, feat: Tensor | OneHots, known: Sequence[Tensor] = ()) -> OneHot:
        """``known``: see ``MLP``."""
        return OneHot(mixed(self.out(self.mlp(feat, known)).float(), self.unimix))


class MultiOneHotActor(nn.Module):
    """Policy over several discrete actions at once: (..., F) -> MultiOneHot over ``choices``."""

    def __init__(self, inputs: int, choices: Sequence[int], layers: int, units: int, norm: str = "none",
                 scale: float = 1.0, unimix: float = 0.0) -> None:
        super().__init__()
        self.mlp = MLP(inputs, layers, units, norm)
        self.out = dense(units, sum(choices), norm, scale)
        self.choices, self.unimix = list(choices), unimix
        self.noise_shape: tuple[int, ...] = (len(choices),)

    def forward(self, feat: Tensor | OneHots, known: Sequence[Tensor] = ()) -> MultiOneHot:
        """``known``: see ``MLP``."""
        logits = self.out(self.mlp(feat, known)).float()
        return MultiOneHot(tuple(OneHot(mixed(part, self.unimix)) for part in logits.split(self.choices, -1)))


class TruncatedNormalActor(nn.Module):
    """Policy over [-1, 1]^A: loc = tanh(m), scale = 2 sigmoid(s / 2) + min_std, so 1.1 where s = 0."""

    min_std = 0.1

    def __init__(self, inputs: int, action_size: int, layers: int, units: int, norm: str = "none") -> None:
        super().__init__()
        self.mlp = MLP(inputs, layers, units, norm)
        self.loc = dense(units, action_size)
        self.scale = dense(units, action_size)
        self.noise_shape: tuple[int, ...] = (action_size,)

    def forward(self, feat: Tensor | OneHots, known: Sequence[Tensor] = ()) -> TruncatedNormal:
        """``known``: see ``MLP``."""
        x = self.mlp(feat, known)
        scale = 2 * torch.sigmoid(self.scale(x).float() / 2) + self.min_std
        return TruncatedNormal(torch.tanh(self.loc(x).float()), scale)


class BoundedNormalActor(nn.Module):
    """DreamerV3's policy over [-1, 1]^A: a normal of loc = tanh(m) and scale = 0.9 sigmoid(s + 2) + 0.1, itself not cut
    to these bounds. The scale begins near 0.89 and lies in (0.1, 1)."""

    min_std, max_std = 0.1, 1.0

    def __init__(self, inputs: int, action_size: int, layers: int, units: int, norm: str = "rms", scale: float = 1.0
                 ) -> None:
        super().__init__()
        self.mlp = MLP(inputs, layers, units, norm)
        self.loc = dense(units, action_size, norm, scale)
        self.scale = dense(units, action_size, norm, scale)
        self.noise_shape: tuple[int, ...] = (action_size,)

    def forward(self, feat: Tensor | OneHots, known: Sequence[Tensor] = ()) -> Normal:
        """``known``: see ``MLP``."""
        x = self.mlp(feat, known)
        scale = (self.max_std - self.min_std) * torch.sigmoid(self.scale(x).float() + 2) + self.min_std
        return Normal(torch.tanh(self.loc(x).float()), scale)


class TanhNormalActor(nn.Module):
    """DreamerV1's policy over [-1, 1]^A: tanh of a normal of loc = l tanh(m / l), l being ``mean_scale``, and
    scale = softplus(s + s_0) + 1e-4, where s_0 = log(e^i - 1) makes the scale begin at ``init_std`` i."""

    min_std = 1e-4

    def __init__(self, inputs: int, action_size: int, layers: int, units: int, init_std: float = 5.0,
                 mean_scale: float = 5.0) -> None:
        super().__init__()
        self.limit, self.offset = mean_scale, math.log(math.expm1(init_std))
        self.mlp = MLP(inputs, layers, units)
        self.out = dense(units, 2 * action_size)
        self.noise_shape: tuple[int, ...] = (action_size,)

    def forward(self, feat: Tensor) -> TanhNormal:
        loc, scale = self.out(self.mlp(feat)).float().chunk(2, -1)
        scale = F.softplus(scale + self.offset) + self.min_std
        return TanhNormal(self.limit * torch.tanh(loc / self.limit), scale)


Actor = OneHotActor | MultiOneHotActor | TruncatedNormalActor | BoundedNormalActor | TanhNormalActor


def make_actor(inputs: int, action: ActionSpec, layers: int, units: int, norm: str = "none") -> Actor:
    """DreamerV2's actor for an action space. Each takes noise of (..., *noise_shape), uniform in [0, 1)."""
    if action.kind == "continuous":
        return TruncatedNormalActor(inputs, action.size, layers, units, norm)
    return make_discrete_actor(inputs, action, layers, units, norm)


def make_discrete_actor(inputs: int, action: ActionSpec, layers: int, units: int, norm: str = "none",
                        scale: float = 1.0, unimix: float = 0.0) -> OneHotActor | MultiOneHotActor:
    """The actor that fits a discrete or multi_discrete action space."""
    if action.kind == "multi_discrete":
        return MultiOneHotActor(inputs, action.choices, layers, units, norm, scale, unimix)
    return OneHotActor(inputs, action.size, layers, units, norm, scale, unimix)
