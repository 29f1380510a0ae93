"""Dense layers as Keras builds them: Glorot-uniform kernels, zero biases, LayerNorm with epsilon 1e-3."""

from __future__ import annotations

from torch import Tensor, nn

LAYER_NORM_EPS = 1e-3  # Keras' default, which the official code relies on; torch's is 1e-5


def glorot(layer: nn.Module) -> None:
    """Initialise a dense or convolutional layer in place; its bias becomes zero."""
    if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def dense(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    glorot(layer)
    return layer


def norm_layer(norm: str, size: int) -> nn.Module:
    """``norm``: "none" or "layer" (over the last axis)."""
    return nn.LayerNorm(size, eps=LAYER_NORM_EPS) if norm == "layer" else nn.Identity()


class MLP(nn.Sequential):
    """``layers`` times dense, norm, ELU: (..., inputs) -> (..., units)."""

    def __init__(self, inputs: int, layers: int, units: int, norm: str = "none") -> None:
        blocks: list[nn.Module] = []
        for size in [inputs] + [units] * (layers - 1):
            blocks += [dense(size, units), norm_layer(norm, units), nn.ELU()]
        super().__init__(*(block for block in blocks if not isinstance(block, nn.Identity)))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channel axis of (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=LAYER_NORM_EPS)

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
