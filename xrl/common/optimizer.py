"""Optimisers over one flat buffer: Adam as DreamerV2 uses it, and LaProp as DreamerV3 does."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Optimizer(ABC):
    """One optimiser over named parameters, which become views of one flat buffer: a step is a dozen operations.

    A gradient that holds NaN or infinity changes nothing, neither weights nor moments; ``healthy`` turns False and
    ``culprit()`` names the parameter. Nothing here waits for the device.
    """

    betas = (0.9, 0.999)

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        named = list(named_parameters)
        self.names = [name for name, _ in named]
        self.parameters: list[nn.Parameter] = [parameter for _, parameter in named]
        self.orders = [_memory_order(parameter) for parameter in self.parameters]
        self.weights = _flatten([parameter.data for parameter in self.parameters], self.orders)
        for parameter, view in zip(self.parameters, self._views(self.weights), strict=True):
            parameter.data = view
        self.mean = torch.zeros_like(self.weights)
        self.square = torch.zeros_like(self.weights)
        self.gradient = torch.zeros_like(self.weights)
        self.steps = torch.zeros((), device=self.weights.device)
        self.healthy = torch.ones((), dtype=torch.bool, device=self.weights.device)
        self.finite, self.norm = self.healthy.clone(), self.steps.clone()  # of the gradients gathered last
        self.norms = self.weights.new_zeros(len(named))  # of each gradient, in the last healthy step or the first bad
        self.gathered = self.norms.clone()  # of each of the gradients gathered last

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], valid: Tensor | bool = True) -> Tensor:
        """Apply one step, unless not ``valid``; returns the global norm before clipping, a scalar on the device."""
        norm = self.gather(gradients, valid)
        self.healthy &= self.finite
        self.apply(self.finite)
        return norm

    @torch.no_grad()
    def gather(self, gradients: Sequence[Tensor], valid: Tensor | bool = True) -> Tensor:
        """The first half of a step: take the gradients, change no weight. ``finite`` says whether all of them are, and
        ``valid`` too. Returns their global norm."""
        self.gathered = norms = torch.stack(torch._foreach_norm(list(gradients)))
        self.norms.copy_(norms.where(self.healthy, self.norms))
        self.norm = torch.linalg.vector_norm(norms)
        self.finite = torch.isfinite(self.norm) & valid
        torch.cat([gradient.permute(order).reshape(-1) for gradient, order in zip(gradients, self.orders, strict=True)],
                  out=self.gradient)
        return self.norm

    @abstractmethod
    def apply(self, good: Tensor) -> None:
        """The second half: step with what was gathered, or change nothing where not ``good``, a bool on the device;
        what is not ``finite`` must not be good."""

    def _corrections(self) -> tuple[Tensor, Tensor]:
        """1 - b^t of both betas, as -expm1(t log b): in float32 the plain difference is off by 6e-5 at t = 1."""
        b1, b2 = self.betas
        return -torch.expm1(self.steps * math.log(b1)), -torch.expm1(self.steps * math.log(b2))

    def _views(self, flat: Tensor) -> list[Tensor]:
        """The part of a flat buffer that belongs to each parameter, in the parameter's shape and memory order."""
        parts = flat.split([parameter.numel() for parameter in self.parameters])
        return [part.view([parameter.shape[axis] for axis in order]).permute(_inverse(order))
                for part, parameter, order in zip(parts, self.parameters, self.orders, strict=True)]

    def minimize(self, loss: Tensor) -> Tensor:
        """Differentiate ``loss`` by this optimiser's parameters only, and step. Returns the gradient's norm."""
        return self.step(torch.autograd.grad(loss, self.parameters), loss.detach().isfinite())

    def differentiate(self, loss: Tensor) -> Tensor:
        """The first half of ``minimize``; several optimisers can then step together (`xrl.common.health.Health`)."""
        return self.gather(torch.autograd.grad(loss, self.parameters), loss.detach().isfinite())

    def culprit(self) -> str | None:
        """The first parameter that holds NaN or infinity, or whose gradient in the first bad step did, or was so
        large that its norm overflows."""
        sick = [not bool(torch.linalg.vector_norm(parameter).isfinite()) for parameter in self.parameters]
        bad = sick if any(sick) else (~self.norms.isfinite()).tolist()
        return next((name for name, is_bad in zip(self.names, bad, strict=True) if is_bad), None)

    def state_dict(self) -> dict[str, Tensor]:
        """The moments in the order of each parameter's axes, so that a file knows nothing of memory layouts."""
        def plain(flat: Tensor) -> Tensor:
            return torch.cat([view.reshape(-1) for view in self._views(flat)])

        return {"mean": plain(self.mean), "square": plain(self.square), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, flat in (("mean", self.mean), ("square", self.square)):
            parts = state[name].split([parameter.numel() for parameter in self.parameters])
            for view, part in zip(self._views(flat), parts, strict=True):
                view.copy_(part.view(view.shape))
        self.steps.copy_(state["steps"])
        self.healthy.fill_(True)
        self.norms.zero_()


class Adam(Optimizer):
    """With gradient g of global norm \\|g\\|, in this order (official code of DreamerV2, tfutils.py)::

        g <- g min(1, clip / |g|)
        w <- (1 - weight_decay) w                  every weight, biases and norms too, not multiplied by lr
        m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
        w <- w - lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps)

    The last line is TensorFlow's: eps meets the *uncorrected* sqrt(v), so torch's eps would be
    eps / sqrt(1 - b2^t).
    """

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], *, lr: float, eps: float, clip: float,
                 weight_decay: float) -> None:
        super().__init__(named_parameters)
        self.lr: float | Tensor = lr  # a scalar on the device where it changes as training goes on
        self.eps, self.clip, self.weight_decay = eps, clip, weight_decay

    @torch.no_grad()
    def apply(self, good: Tensor) -> None:
        """See ``Optimizer.apply``."""
        b1, b2 = self.betas
        live = good.to(self.norm.dtype)
        self.steps += live
        correction1, correction2 = self._corrections()
        rate = self.lr * live * correction2.sqrt() / correction1.clamp(min=1e-8)
        scale = torch.where(good, self.clip / self.norm.clamp(min=self.clip), 0.0)
        self.gradient.mul_(scale).nan_to_num_(0.0, 0.0, 0.0)
        self.weights.mul_(1 - self.weight_decay * live)
        self.mean.lerp_(self.gradient, (1 - b1) * live)
        self.square.lerp_(self.gradient.square_(), (1 - b2) * live)
        self.weights.sub_((rate * self.mean).div_(self.square.sqrt().add_(self.eps)))


class LaProp(Optimizer):
    """DreamerV3's: momentum of *normalised* gradients, after adaptive clipping, tensor by tensor, in this order::

        g <- g / max(1, |g| / (clip max(1e-3, |w|)))                 norms of whole tensors, no global one
        v <- b2 v + (1 - b2) g^2;  n = g / (sqrt(v / (1 - b2^t)) + eps)
        m <- b1 m + (1 - b1) n
        w <- w - lr min(1, (t - 1) / warmup) m / (1 - b1^t)          the first step only fills v and m

    Ziyin et al. 2020, "LaProp"; Brock et al. 2021, "NFNets", eq. 3, for the clipping. ``warmup``: steps.
    """

    eps = 1e-20
    smallest = 1e-3  # the norm that a tensor counts as, at least

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], *, lr: float, clip: float, warmup: int
                 ) -> None:
        super().__init__(named_parameters)
        self.lr, self.clip, self.warmup = lr, clip, warmup
        self._gradients = self._views(self.gradient)

    @torch.no_grad()
    def apply(self, good: Tensor) -> None:
        """See ``Optimizer.apply``."""
        b1, b2 = self.betas
        live = good.to(self.norm.dtype)
        largest = self.clip * torch.stack(torch._foreach_norm(list[Tensor](self.parameters))).clamp(min=self.smallest)
        scales = torch.where(good, largest / self.gathered.maximum(largest), 0.0)
        torch._foreach_mul_(self._gradients, list(scales.unbind()))
        self.gradient.nan_to_num_(0.0, 0.0, 0.0)
        rate = self.lr * live * (self.steps / max(1, self.warmup)).clamp(max=1.0)
        self.steps += live
        correction1, correction2 = self._corrections()
        self.square.lerp_(self.gradient.square(), (1 - b2) * live)
        self.gradient.div_((self.square / correction2.clamp(min=1e-8)).sqrt_().add_(self.eps))
        self.mean.lerp_(self.gradient, (1 - b1) * live)
        self.weights.sub_(rate / correction1.clamp(min=1e-8) * self.mean)


def _flatten(tensors: Sequence[Tensor], orders: Sequence[tuple[int, ...]]) -> Tensor:
    return torch.cat([tensor.permute(order).reshape(-1) for tensor, order in zip(tensors, orders, strict=True)])


def _memory_order(tensor: Tensor) -> tuple[int, ...]:
    """The axes from the outermost to the innermost in memory."""
    return tuple(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))
