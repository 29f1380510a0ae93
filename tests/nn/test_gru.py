"""DreamerV1's recurrent cell against Keras' equations in a loop, and against torch's cell."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.builders import parameter_count
from xrl.nn.recurrent import GRUCell, make_cell


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(cell, x, h):
    """Keras' GRU, version 2 (reset_after), one unit at a time in double precision. Its order of gates is another."""
    kernel, recurrent, bias, recurrent_bias = (p.detach().double().numpy() for p in (
        cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh))
    size, result = h.shape[-1], np.empty_like(h)

    def parts(gate, d, n):
        j = gate * size + d
        return (sum(w * v for w, v in zip(kernel[j], x[n], strict=True)) + bias[j],
                sum(w * v for w, v in zip(recurrent[j], h[n], strict=True)) + recurrent_bias[j])

    for n in range(len(h)):
        for d in range(size):
            r, z = sigmoid(sum(parts(0, d, n))), sigmoid(sum(parts(1, d, n)))
            own, past = parts(2, d, n)
            result[n, d] = z * h[n, d] + (1 - z) * np.tanh(own + r * past)
    return result


def filled(inputs=4, deter=5):
    torch.manual_seed(0)
    cell = GRUCell(inputs, deter)
    for parameter in cell.parameters():
        nn.init.normal_(parameter)
    return cell


def test_equals_a_loop_over_its_equations_and_torchs_cell():
    cell, other = filled(), nn.GRUCell(4, 5)
    other.load_state_dict(cell.state_dict())
    x, h = torch.randn(6, 4), torch.randn(6, 5)
    for t in range(3):
        expected = reference(cell, x.double().numpy(), h.double().numpy())
        torch.testing.assert_close(cell(x, h), other(x, h))
        assert torch.equal(cell.loop((3, 6))(t, x, h), cell(x, h))
        h = cell(x, h).detach()
        np.testing.assert_allclose(h.numpy(), expected, atol=1e-5)


def test_without_weights_half_of_the_state_is_kept():
    """Golden: 0.2 of 0.4. DreamerV2's cell, with its bias towards remembering, would keep 0.2924."""
    cell = GRUCell(2, 3)
    for parameter in cell.parameters():
        nn.init.zeros_(parameter)
    assert cell(torch.randn(1, 2), torch.full((1, 3), 0.4)).tolist()[0] == pytest.approx([0.2] * 3)


def test_an_open_update_gate_keeps_the_old_state():
    cell = GRUCell(2, 3)
    with torch.no_grad():
        cell.bias_ih[3:6] = 50.0
    h = torch.randn(1, 3)
    torch.testing.assert_close(cell(torch.randn(1, 2), h), h)


def test_begins_as_keras_does():
    torch.manual_seed(0)
    cell = GRUCell(200, 200)
    limit = math.sqrt(6 / (200 + 600))
    assert cell.weight_ih.abs().max().item() == pytest.approx(limit, rel=1e-3)
    assert cell.weight_ih.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.02)
    torch.testing.assert_close(cell.weight_hh.T @ cell.weight_hh, torch.eye(200), atol=1e-4, rtol=0)
    assert not cell.bias_ih.any() and not cell.bias_hh.any()
    assert parameter_count(cell) == 241_200


def test_reads_latent_and_action_through_one_layer():
    img_in, cell = make_cell("gru", stoch=30, action=6, deter=200, hidden=200, norm="none")
    assert isinstance(cell, GRUCell) and parameter_count(img_in) == 36 * 200 + 200
