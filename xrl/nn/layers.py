"""Dense layers, and what stands between them: as Keras builds them (DreamerV1 and V2: Glorot-uniform kernels, zero
biases, LayerNorm with epsilon 1e-3), or as DreamerV3 does (truncated normal kernels, RMSNorm)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYER_NORM_EPS = 1e-3  # Keras' default, which the official code relies on; torch's is 1e-5
RMS_NORM_EPS = 1e-4
TRUNCATED = 0.87962566103423978  # standard deviation of a unit normal cut to [-2, 2]

# The style of a network, ``norm`` everywhere below, is what follows each of its dense layers and how these begin.
# "none": ELU; "layer": LayerNorm and ELU, both with Glorot's kernels; "rms": RMSNorm and SiLU, DreamerV3's kernels.


def glorot(layer: nn.Module) -> None:
    """Initialise a dense or convolutional layer in place; its bias becomes zero."""
    if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def fan_in(weight: Tensor, inputs: int, scale: float = 1.0) -> None:
    """Initialise in place as DreamerV3 does: a normal cut at two of its standard deviations, whose own is then
    ``scale`` / sqrt(``inputs``)."""
    nn.init.trunc_normal_(weight, a=-2.0, b=2.0)
    weight.mul_(scale / math.sqrt(inputs) / TRUNCATED)


def dense(inputs: int, outputs: int, norm: str = "none", scale: float = 1.0) -> nn.Linear:
    """A dense layer of a network in style ``norm``, whose weight lies in memory as (inputs, outputs): what one input
    adds to the outputs is then contiguous, which ``gather_sum`` needs and no matrix product minds. ``scale``: of the
    initial weights; 0 for an output that begins at zero."""
    layer = nn.Linear(inputs, outputs)
    if norm == "rms":
        fan_in(layer.weight, inputs, scale)
        nn.init.zeros_(layer.bias)
    else:
        glorot(layer)
    layer.weight.data = layer.weight.data.t().contiguous().t()
    return layer


class LayerNorm(nn.LayerNorm):
    """Over the last axis, in float32 whatever the precision around it: torch would sum the gradients of its weight and
    bias over all rows in bfloat16, where a sum of 1,000 ones is 256."""

    def __init__(self, size: int) -> None:
        super().__init__(size, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        return F.layer_norm(x.to(dtype), self.normalized_shape, self.weight.to(dtype), self.bias.to(dtype),
                            self.eps).to(x.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) times a learned scale, over the last axis, in float32 whatever the precision around."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = _RMSNorm.apply(x.to(torch.promote_types(x.dtype, torch.float32)), self.weight)
        return normed.to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """PyTorch's own is made of single operations on a CPU, 30 of them there and back. With n = x / rms(x), and g the
    gradient of w n: that of w is the sum of g n, that of x is (w g - n mean(w g n)) / rms(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        inverse = square.div_(x.shape[-1]).add_(RMS_NORM_EPS).rsqrt_()
        normed = x * inverse
        ctx.save_for_backward(normed, inverse, weight)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        normed, inverse, weight = ctx.saved_tensors
        product = grad * normed
        mean = (product @ weight).div_(len(weight)).unsqueeze(-1)
        return (torch.addcmul(grad * weight, normed, mean, value=-1).mul_(inverse),
                product.sum(tuple(range(product.dim() - 1))))


def norm_layer(norm: str, size: int) -> nn.Module:
    """The norm of a style, over the last axis."""
    if norm == "none":
        return nn.Identity()
    return RMSNorm(size) if norm == "rms" else LayerNorm(size)


def activation(norm: str) -> nn.Module:
    """The activation of a style, in place: no backward pass asks for what an ELU overwrites."""
    return nn.SiLU() if norm == "rms" else nn.ELU(inplace=True)


@dataclass(frozen=True)
class OneHots:
    """The input [z; x] of a dense layer, where z is made of zeros and of ones at ``index``.

    ``index``: (..., S) places of the ones in z; ``rest``: x, (..., X); ``ones``: the length of z. No gradient flows.
    """

    index: Tensor
    rest: Tensor
    ones: int

    def __getitem__(self, key: Any) -> OneHots:
        return OneHots(self.index[key], self.rest[key], self.ones)

    def detach(self) -> OneHots:
        return self


class MLP(nn.Sequential):
    """``layers`` times dense, norm, activation, in style ``norm``: (..., inputs) -> (..., units)."""

    def __init__(self, inputs: int, layers: int, units: int, norm: str = "none") -> None:
        blocks: list[nn.Module] = []
        for size in [inputs] + [units] * (layers - 1):
            blocks += [dense(size, units, norm), norm_layer(norm, units), activation(norm)]
        super().__init__(*(block for block in blocks if not isinstance(block, nn.Identity)))
        self._record: list[list[Tensor]] | None = None
        self._can_recall = norm == "none"

    @property
    def first(self) -> nn.Linear:
        """The dense layer that reads the input."""
        layer = self[0]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, x: Tensor | OneHots, known: Sequence[Tensor] = ()) -> Tensor:
        """``known``: the outputs of all layers where they were computed before, from ``recording``."""
        if known:
            recalled: Tensor = _Recalled.apply(x, known, *self.parameters())
            return recalled
        return self.after_first(gather_linear(self.first, x) if isinstance(x, OneHots) else self.first(x))

    def loop(self, outside: Tensor) -> Callable[[int, Tensor], Tensor]:
        """The MLP inside a loop over T steps, on [inside; outside] with ``outside`` (T, B, O): see ``LoopLinear``."""
        first = LoopLinear(self.first, outside)
        return lambda t, inside: self.after_first(first(t, inside))

    def after_first(self, x: Tensor) -> Tensor:
        """What follows the first dense layer, given its output."""
        outputs = []
        for layer in list(self)[1:]:
            x = layer(x)
            if isinstance(layer, nn.ELU):
                outputs.append(x)
        if self._record is not None:
            self._record.append(outputs)
        return x

    @contextmanager
    def recording(self) -> Iterator[list[list[Tensor]]]:
        """Within, every call leaves the outputs of its layers in the list that this yields, as long as it builds no
        graph. What acts in imagination need not compute the same layers again for its loss."""
        record: list[list[Tensor]] = []
        self._record = record if self._can_recall and not torch.is_grad_enabled() else None
        try:
            yield record
        finally:
            self._record = None


class _Recalled(torch.autograd.Function):
    """An MLP (without norms) whose outputs are known: no work forwards, the ordinary gradient of its parameters
    backwards. Its input gets none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor | OneHots, outputs: Sequence[Tensor], *parameters: Tensor) -> Tensor:
        ctx.x, ctx.outputs = x, [output.flatten(0, -2) for output in outputs]
        ctx.save_for_backward(*parameters[::2])
        return outputs[-1].view_as(outputs[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights = ctx.saved_tensors
        grads: list[Tensor] = []
        grad = grad.flatten(0, -2)
        for layer in reversed(range(len(weights))):
            grad = torch.ops.aten.elu_backward(grad, 1.0, 1.0, 1.0, True, ctx.outputs[layer])
            weight = (ctx.outputs[layer - 1].t() @ grad if layer else _weight_gradient(ctx.x, grad)).t()
            grads = [weight.to(weights[layer].dtype), grad.sum(0).to(weights[layer].dtype), *grads]
            if layer:
                grad = grad @ weights[layer].to(grad.dtype)
        return None, None, *grads


def _weight_gradient(x: Tensor | OneHots, grad: Tensor) -> Tensor:
    """(inputs, outputs), of a dense layer that read ``x`` and whose output has the gradient ``grad`` (N, outputs)."""
    if isinstance(x, Tensor):
        return x.flatten(0, -2).to(grad.dtype).t() @ grad
    rest = x.rest.flatten(0, -2).to(grad.dtype)
    return torch.cat([_add_rows(x.index.flatten(0, -2), grad, x.ones), rest.t() @ grad])


def as_factor(x: Tensor) -> Tensor:
    """``x`` in the precision that autocast, where it is on, gives the factors of a product."""
    kind = x.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return x.to(torch.get_autocast_dtype(kind)) if on else x


def gather_linear(layer: nn.Linear, x: OneHots) -> Tensor:
    """``layer`` on [z; x]. For the ones of z, rows of the weight are added up, a thirtieth of the product's work."""
    weight = layer.weight.t()
    return F.linear(x.rest, weight[x.ones:].t(), layer.bias).add_(gather_sum(x.index, weight[:x.ones]))


def gather_sum(index: Tensor, table: Tensor) -> Tensor:
    """Rows of ``table`` (R, O) added up over the last axis of ``index`` (..., S) -> (..., O)."""
    table = as_factor(table)
    flat = index.flatten(0, -2)
    total: Tensor = _GatherSum.apply(flat, table) if table.requires_grad else F.embedding_bag(flat, table, mode="sum")
    return total.unflatten(0, index.shape[:-1])


class _GatherSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, index: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = len(table)
        return F.embedding_bag(index, table, mode="sum")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        index, = ctx.saved_tensors
        return None, _add_rows(index, grad, ctx.rows)


def _add_rows(index: Tensor, grad: Tensor, rows: int) -> Tensor:
    """The gradient of the table of a gather: row r is the sum of ``grad`` (N, O) where ``index`` (N, S) named r.

    The same operation again, over the transposed index; PyTorch's own backward pass takes twice the time in float32
    and five times in bfloat16.
    """
    flat = index.flatten()
    users = flat.argsort(stable=True) // index.shape[1]
    counts = torch.bincount(flat, minlength=rows)
    return F.embedding_bag(users, grad.contiguous(), counts.cumsum(0) - counts, mode="sum")


class LoopLinear:
    """``layer`` inside a loop over T steps, whose input is [inside; outside]: what does not depend on the loop
    stays out of it.

    ``outside`` (T, ..., O), known for all steps, is multiplied at once, and so is the gradient of the whole weight:
    inside the loop a gradient flows to ``inside`` only. Without ``outside``, give the lengths of the loop and batch.
    """

    def __init__(self, layer: nn.Linear, outside: Tensor | None = None, *, shape: tuple[int, ...] = ()) -> None:
        split = layer.in_features - (0 if outside is None else outside.shape[-1])
        assert layer.bias is not None
        base = (layer.bias.expand(*shape, -1) if outside is None
                else F.linear(outside, layer.weight[:, split:], layer.bias))
        weight = layer.weight[:, :split]
        base = as_factor(base)
        self._inputs: list[Tensor] = []
        self._weight = weight.detach().to(base.dtype).t()
        self._base: tuple[Tensor, ...] = _WeightOutsideLoop.apply(base, weight, self._inputs).unbind(0)

    def __call__(self, t: int, inside: Tensor) -> Tensor:
        """The layer's output at step ``t``; ``inside``: (B, I)."""
        inside = inside.to(self._weight.dtype)
        self._inputs.append(inside.detach())
        return torch.addmm(self._base[t], inside, self._weight)


class _WeightOutsideLoop(torch.autograd.Function):
    """Hands ``base`` on; backwards its gradient, that of the layer's output at all steps, also gives the weight's."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, weight: Tensor, inputs: list[Tensor]) -> Tensor:
        ctx.inputs, ctx.dtype = inputs, weight.dtype
        return base.view_as(base)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        inputs = torch.stack(ctx.inputs).flatten(0, 1)
        return grad, (inputs.t() @ grad.flatten(0, 1)).t().to(ctx.dtype), None


class ChannelNorm(LayerNorm):
    """LayerNorm over the channel axis of (N, C, H, W)."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
