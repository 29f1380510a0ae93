"""Recurrent cells."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xrl.nn.layers import LAYER_NORM_EPS, dense


class LayerNormGRUCell(nn.Module):
    """The GRU of DreamerV2. It differs from the textbook in four ways, all of them on purpose::

        r, c, u = split(LayerNorm(W [x; h] + b))    one norm over all 3D units
        h' = u' tanh(sigmoid(r) c) + (1 - u') h      the reset gates the whole candidate pre-activation
        u' = sigmoid(u - 1)                           a bias towards remembering; u' weighs the *candidate*
    """

    update_bias = -1.0

    def __init__(self, inputs: int, deter: int) -> None:
        super().__init__()
        self.gates = dense(inputs + deter, 3 * deter)
        self.norm = nn.LayerNorm(3 * deter, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, deter: Tensor) -> Tensor:
        """``x``: (..., inputs), ``deter``: (..., D) -> the next ``deter``, (..., D)."""
        return self.gated(self.gates(torch.cat([x, deter], -1)), deter)

    def gated(self, gates: Tensor, deter: Tensor) -> Tensor:
        """The next ``deter`` from W [x; h] + b, (..., 3D)."""
        # The norm and the gates stay in float32 whatever the precision of the matrix product.
        gates = self.norm(gates.float())
        reset, candidate, update = gates.chunk(3, -1)
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        return torch.lerp(deter, candidate, torch.sigmoid(update + self.update_bias))
