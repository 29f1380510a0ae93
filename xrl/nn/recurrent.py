"""Recurrent cells, and what they read of the latent state and the action.

A cell is (x, h) -> h'. Besides, it knows how to run inside a loop over T steps: ``loop`` returns (t, x, h) -> h', with
the gradients of its weights left outside (see ``LoopLinear``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xrl.nn.layers import LAYER_NORM_EPS, MLP, LoopLinear, OneHots, RMSNorm, dense, fan_in

Step = Callable[[int, Tensor, Tensor], Tensor]


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

    def loop(self, shape: tuple[int, ...]) -> Step:
        """``shape``: (T, B)."""
        gates = LoopLinear(self.gates, shape=shape)
        return lambda t, x, deter: self.gated(gates(t, torch.cat([x, deter], -1)), deter)

    def gated(self, gates: Tensor, deter: Tensor) -> Tensor:
        """The next ``deter`` from W [x; h] + b, (..., 3D)."""
        # The norm and the gates stay in float32 whatever the precision of the matrix product.
        gates = self.norm(gates.float())
        reset, candidate, update = gates.chunk(3, -1)
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        return torch.lerp(deter, candidate, torch.sigmoid(update + self.update_bias))


class BlockLinear(nn.Module):
    """G dense layers side by side, from the g-th part of the input to the g-th part of the output.

    ``fan``: the number of inputs by which DreamerV3 scales the initial weights; the official code counts those of all
    blocks together, so that they are sqrt(G) smaller than would keep the variance.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int, fan: int | None = None, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(blocks, inputs // blocks, outputs // blocks))
        fan_in(self.weight.data, fan or inputs)
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs)."""
        blocks = len(self.weight)
        y = torch.bmm(x.unflatten(-1, (blocks, -1)).transpose(0, 1), self.weight.to(x.dtype)).transpose(0, 1).flatten(1)
        return y if self.bias is None else y + self.bias


class BlockGRUCell(nn.Module):
    """The recurrent core of DreamerV3 (Hafner et al. 2023, section "Block GRU" of the appendix), G blocks::

        y = SiLU(RMSNorm(for each block g: W_g [h_g; NLin(h); x] + b_g))     one norm over all D units
        r_g, c_g, u_g = split(V_g y_g + d_g)                                 split inside each block; no norm
        h' = u' tanh(sigmoid(r) c) + (1 - u') h,   u' = sigmoid(u - 1)

    The blocks are no recurrences of their own: each reads NLin(h), one layer on all of h. What all blocks read alike,
    [NLin(h); x], is one product for all of them here.
    """

    update_bias = -1.0

    def __init__(self, inputs: int, deter: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.deter_in = MLP(deter, 1, hidden, "rms")
        shared = hidden + inputs
        fan = deter + blocks * shared
        self.blocks = BlockLinear(deter, deter, blocks, fan, bias=False)
        self.shared = dense(shared, deter, "rms", scale=(shared / fan) ** 0.5)
        self.norm = RMSNorm(deter)
        self.gates = BlockLinear(deter, 3 * deter, blocks)

    def forward(self, x: Tensor, deter: Tensor) -> Tensor:
        """``x``: (B, inputs), ``deter``: (B, D) -> the next ``deter``, (B, D)."""
        return self.gated(self.shared(torch.cat([self.deter_in(deter), x], -1)), deter)

    def loop(self, shape: tuple[int, ...]) -> Step:
        """``shape``: (T, B)."""
        first, shared = LoopLinear(self.deter_in.first, shape=shape), LoopLinear(self.shared, shape=shape)

        def step(t: int, x: Tensor, deter: Tensor) -> Tensor:
            own = self.deter_in.after_first(first(t, deter))
            return self.gated(shared(t, torch.cat([own, x], -1)), deter)

        return step

    def gated(self, shared: Tensor, deter: Tensor) -> Tensor:
        """The next ``deter`` from what all blocks read alike, (B, D)."""
        y = F.silu(self.norm(shared + self.blocks(deter)))
        gates = self.gates(y).float().unflatten(-1, (len(self.gates.weight), 3, -1))
        reset, candidate, update = (gate.flatten(-2) for gate in gates.unbind(-2))
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        return torch.lerp(deter, candidate, torch.sigmoid(update + self.update_bias))


class SplitInput(nn.Module):
    """DreamerV3's layers on z and on a, one each: [z; a] (..., Z + A) -> (..., 2 units).

    The action is squashed first, a / max(1, |a|) entry by entry, without a gradient of the divisor: a policy that is an
    unbounded normal may choose any number, which the replay keeps as it is.
    """

    def __init__(self, stoch: int, action: int, units: int) -> None:
        super().__init__()
        self.stoch, self.action = MLP(stoch, 1, units, "rms"), MLP(action, 1, units, "rms")

    def forward(self, x: Tensor | OneHots) -> Tensor:
        if isinstance(x, OneHots):
            stoch: Tensor | OneHots = OneHots(x.index, x.rest[..., :0], x.ones)
            action = x.rest
        else:
            stoch, action = x.split([self.stoch.first.in_features, self.action.first.in_features], -1)
        return torch.cat([self.stoch(stoch), self.action(squashed(action))], -1)

    def loop(self, outside: Tensor) -> Callable[[int, Tensor], Tensor]:
        """``outside``: actions (T, B, A); then (t, z) -> what the cell reads."""
        first, actions = LoopLinear(self.stoch.first, shape=outside.shape[:2]), self.action(squashed(outside)).unbind(0)
        return lambda t, stoch: torch.cat([self.stoch.after_first(first(t, stoch)), actions[t]], -1)


def squashed(action: Tensor) -> Tensor:
    """a / max(1, |a|), the divisor without a gradient."""
    return action / action.detach().abs().clamp(min=1.0)


class GRUCell(nn.GRUCell):
    """The textbook's, as Keras begins it: Glorot's input kernel, an orthogonal recurrent one, zero biases. The update
    gate keeps the *old* state, unlike that of the two other cells."""

    def __init__(self, inputs: int, deter: int) -> None:
        super().__init__(inputs, deter)
        nn.init.xavier_uniform_(self.weight_ih)
        nn.init.orthogonal_(self.weight_hh)
        nn.init.zeros_(self.bias_ih)
        nn.init.zeros_(self.bias_hh)

    def loop(self, shape: tuple[int, ...]) -> Step:
        """``shape``: (T, B)."""
        return lambda t, x, deter: self(x, deter)


Cell = LayerNormGRUCell | BlockGRUCell | GRUCell
BLOCKS = 8


def make_cell(kind: str, stoch: int, action: int, deter: int, hidden: int, norm: str) -> tuple[MLP | SplitInput, Cell]:
    """What reads [z; a], and the cell behind it. ``kind``: "gru" (DreamerV1), "layer_norm_gru" (V2), "block_gru" (V3).

    Raises ValueError unless the blocks of a block GRU divide ``deter``.
    """
    if kind == "block_gru":
        if deter % BLOCKS:
            raise ValueError(f"deter: {deter} must be a multiple of {BLOCKS}, the blocks of the recurrent cell")
        return SplitInput(stoch, action, hidden), BlockGRUCell(2 * hidden, deter, hidden, BLOCKS)
    cell = GRUCell if kind == "gru" else LayerNormGRUCell
    return MLP(stoch + action, 1, hidden, norm), cell(hidden, deter)
