"""What makes the update fast, one thing after the other switched off from outside: see ``update.py --levers``.

The mathematics stays (a test compares the losses); only ``inverse-cdf`` draws other numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_pre_hook

CONFIG_CHANGES: dict[str, Any] = {}
"""Keys that a lever which is switched off changes in the configuration of every workload."""


class LinearInLoop:
    """In place of ``LoopLinear``: the whole layer, and the gradient of its weight, at every step of the loop."""

    def __init__(self, layer: nn.Linear, outside: Tensor | None = None, *, shape: tuple[int, ...] = ()) -> None:
        self.layer, self.outside = layer, outside

    def __call__(self, t: int, inside: Tensor) -> Tensor:
        return self.layer(inside if self.outside is None else torch.cat([inside, self.outside[t]], -1))


@contextmanager
def contiguous_images() -> Iterator[None]:
    """Weights and images of convolutions with channels first in memory, PyTorch's default."""
    def contiguous(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return (inputs[0].contiguous(),) if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) else None

    hook = register_module_forward_pre_hook(contiguous)
    with mock.patch("xrl.nn.conv.channels_last", lambda layers: None):
        try:
            yield
        finally:
            hook.remove()


def first_transposed(layer: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    return layer(x[:, :, None, None])


def last_transposed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv_transpose2d(x, weight, bias, stride=2).permute(0, 2, 3, 1)


def elu_apart(x: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    return torch.ops.aten.elu(x, alpha)


def multinomial(probs: Tensor, uniform: Tensor) -> Tensor:
    return torch.multinomial(probs.flatten(0, -2), 1).view(uniform.shape)


@contextmanager
def replaced(substitutes: dict[str, Any]) -> Iterator[None]:
    """Other objects under these dotted names."""
    with ExitStack() as stack:
        for name, substitute in substitutes.items():
            stack.enter_context(mock.patch(name, substitute))
        yield


LEVERS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    # As peers do: differentiate through the dream and multiply by (nearly) nothing, 0 would skip the backward pass.
    # That takes latents that are dense, and layers whose gradient is wanted: it is without "gather" and "recall" too.
    "no-graph": partial(mock.patch.dict, CONFIG_CHANGES, {"actor.grad": "mix", "actor.mix": 1e-6}),
    "gather": partial(replaced, {"xrl.world_models.rssm.RSSM.compact": lambda self, state: state}),
    "recall": partial(replaced, {"xrl.nn.layers.MLP.recording": lambda self: nullcontext([])}),
    "loop-linear": partial(replaced, {"xrl.world_models.rssm.LoopLinear": LinearInLoop}),
    "inverse-cdf": partial(replaced, {"xrl.nn.distributions.category": multinomial,
                                      "xrl.world_models.latents.category": multinomial}),
    "first-deconvolution": partial(replaced, {
        "xrl.nn.conv.ConvDecoder._from_one_pixel": staticmethod(first_transposed)}),
    "last-deconvolution": partial(replaced, {"xrl.nn.conv._LastLayer.apply": staticmethod(last_transposed)}),
    "bias-apart": partial(replaced, {"xrl.nn.conv.TransposedConv.forward": nn.ConvTranspose2d.forward}),
    "channels-last": contiguous_images,
    "elu-in-place": partial(replaced, {"xrl.nn.conv.FrugalELU.forward": lambda self, x: elu_apart(x),
                                       "torch.nn.functional.elu": elu_apart}),
    "allocator": partial(replaced, {"xrl.common.accelerate.keep_memory": lambda: False}),
}
OF_IMAGES = {"first-deconvolution", "last-deconvolution", "bias-apart", "channels-last"}
OF_REINFORCE = {"no-graph", "gather", "recall"}


def levers_for(images: bool, discrete: bool) -> list[str]:
    """Those that a workload pulls; discrete actions learn by reinforce."""
    return [name for name in LEVERS if (images or name not in OF_IMAGES) and (discrete or name not in OF_REINFORCE)]
