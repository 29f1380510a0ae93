"""Adam as DreamerV2 uses it: TensorFlow's epsilon, clipping by global norm, decay free of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Adam:
    """One optimiser over named parameters, which become views of one flat buffer: a step is a dozen operations.

    With gradient g of global norm \\|g\\|, in this order (official code, tfutils.py)::

        g <- g min(1, clip / |g|)
        w <- (1 - weight_decay) w                  every weight, biases and norms too, not multiplied by lr
        m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
        w <- w - lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps)

    The last line is TensorFlow's: eps meets the *uncorrected* sqrt(v), so torch's eps would be
    eps / sqrt(1 - b2^t). A gradient that holds NaN or infinity changes nothing, neither weights nor moments;
    ``healthy`` turns False and ``culprit()`` names the parameter. Nothing here waits for the device.
    """

    betas = (0.9, 0.999)

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], *, lr: float, eps: float, clip: float,
                 weight_decay: float) -> None:
        named = list(named_parameters)
        self.names = [name for name, _ in named]
        self.parameters: list[nn.Parameter] = [parameter for _, parameter in named]
        self.lr, self.eps, self.clip, self.weight_decay = lr, eps, clip, weight_decay
        self.weights = _flatten([parameter.data for parameter in self.parameters])
        for parameter, view in zip(self.parameters, _views(self.weights, self.parameters), strict=True):
            parameter.data = view
        self.mean = torch.zeros_like(self.weights)
        self.square = torch.zeros_like(self.weights)
        self.steps = torch.zeros((), device=self.weights.device)
        self.healthy = torch.ones((), dtype=torch.bool, device=self.weights.device)
        self.gradient = torch.zeros_like(self.weights)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], valid: Tensor | bool = True) -> Tensor:
        """Apply one step, unless not ``valid``; returns the global norm before clipping, a scalar on the device."""
        b1, b2 = self.betas
        gradient = _flatten(gradients)
        # The first bad one is kept for ``culprit``, which may be asked many steps later.
        self.gradient = torch.where(self.healthy, gradient, self.gradient)
        norm = torch.linalg.vector_norm(gradient)
        finite = torch.isfinite(norm) & valid
        self.healthy &= finite
        live = finite.to(gradient.dtype)
        gradient = torch.where(finite, gradient * (self.clip / norm.clamp(min=self.clip)), 0.0)
        self.steps += live
        self.weights.mul_(1 - self.weight_decay * live)
        self.mean.lerp_(gradient, (1 - b1) * live)
        self.square.lerp_(gradient.square(), (1 - b2) * live)
        # 1 - b^t as -expm1(t log b): in float32 the plain difference is off by 6e-5 at t = 1.
        correction1 = -torch.expm1(self.steps * math.log(b1))
        correction2 = -torch.expm1(self.steps * math.log(b2))
        rate = self.lr * live * correction2.sqrt() / correction1.clamp(min=1e-8)
        self.weights.sub_(rate * self.mean / (self.square.sqrt() + self.eps))
        return norm

    def minimize(self, loss: Tensor) -> Tensor:
        """Differentiate ``loss`` by this optimiser's parameters only, and step. Returns the gradient's norm."""
        return self.step(torch.autograd.grad(loss, self.parameters), loss.detach().isfinite())

    def culprit(self) -> str | None:
        """The first parameter that holds NaN or infinity, or whose gradient in the first bad step did, or was so
        large that its norm overflows."""
        for flat in (self.weights, self.gradient):
            for name, view in zip(self.names, _views(flat, self.parameters), strict=True):
                if not bool(torch.linalg.vector_norm(view).isfinite()):
                    return name
        return None

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "square": self.square, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
        self.healthy.fill_(True)
        self.gradient.zero_()


def _flatten(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _views(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = flat.split([tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]
