"""The GRU cell against a loop written from its equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from xrl.nn.recurrent import LayerNormGRUCell


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(cell, x, h):
    """One unit at a time, in double precision."""
    kernel, bias, gain, shift = (p.detach().double().numpy() for p in (
        cell.gates.weight, cell.gates.bias, cell.norm.weight, cell.norm.bias))
    size = h.shape[-1]
    result = np.empty_like(h)
    for n in range(len(h)):
        gates = [sum(w * v for w, v in zip(kernel[j], [*x[n], *h[n]], strict=True)) + bias[j] for j in range(3 * size)]
        mean = sum(gates) / (3 * size)
        variance = sum((gate - mean)**2 for gate in gates) / (3 * size)
        gates = [(gate - mean) / np.sqrt(variance + 1e-3) * gain[j] + shift[j] for j, gate in enumerate(gates)]
        for d in range(size):
            candidate = np.tanh(sigmoid(gates[d]) * gates[size + d])
            update = sigmoid(gates[2 * size + d] - 1)
            result[n, d] = update * candidate + (1 - update) * h[n, d]
    return result


def zeroed(inputs=2, deter=3):
    cell = LayerNormGRUCell(inputs, deter)
    nn.init.zeros_(cell.gates.weight)
    return cell


def test_equals_a_loop_over_its_equations():
    torch.manual_seed(0)
    cell = LayerNormGRUCell(4, 5)
    for parameter in cell.parameters():
        nn.init.normal_(parameter)
    x, h = torch.randn(6, 4), torch.randn(6, 5)
    for _ in range(3):
        expected = reference(cell, x.double().numpy(), h.double().numpy())
        h = cell(x, h).detach()
        np.testing.assert_allclose(h.numpy(), expected, atol=1e-5)


def test_small_gates_meet_the_epsilon_of_keras():
    torch.manual_seed(0)
    cell = LayerNormGRUCell(4, 5)
    with torch.no_grad():
        cell.gates.weight.mul_(0.02)
    x, h = torch.randn(6, 4), torch.randn(6, 5)
    expected = reference(cell, x.double().numpy(), h.double().numpy())
    np.testing.assert_allclose(cell(x, h).detach().numpy(), expected, atol=1e-5)


def test_without_input_the_state_decays_by_the_update_bias():
    cell, h = zeroed(), torch.tensor([[1.0, -2.0, 0.5]])
    assert torch.allclose(cell(torch.randn(1, 2), h), 0.7310586 * h, atol=1e-6)  # 1 - sigmoid(-1)
    state = h
    for _ in range(10):
        state = cell(torch.zeros(1, 2), state)
    assert torch.allclose(state, 0.0436035 * h, atol=1e-6)


def test_order_and_roles_of_the_gates():
    cell = zeroed()
    with torch.no_grad():
        cell.norm.bias.copy_(torch.tensor([0.0, 2.0, 1.0]).repeat_interleave(3))  # reset, candidate, update
    out = cell(torch.randn(1, 2), torch.full((1, 3), 0.2))
    assert out.tolist()[0] == pytest.approx([0.4807971] * 3, abs=1e-6)  # (tanh(1) + 0.2) / 2


def test_parameters():
    cell = LayerNormGRUCell(600, 600)
    assert sum(p.numel() for p in cell.gates.parameters()) == 2_161_800
    assert sum(p.numel() for p in cell.norm.parameters()) == 3_600


def test_state_stays_float32_under_autocast():
    """The norm and the gates are float32 whatever the precision of the matrix product."""
    torch.manual_seed(0)
    cell = LayerNormGRUCell(4, 5)
    x, h = torch.randn(6, 4), torch.randn(6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        low = cell(x, h)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, cell(x, h), atol=3e-2, rtol=0)
