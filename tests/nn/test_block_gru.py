"""DreamerV3's recurrent core against a NumPy loop over its blocks, and its other parts against values by hand."""

import math

import numpy as np
import pytest
import torch

from xrl.nn.layers import MLP, OneHots, RMSNorm, dense
from xrl.nn.recurrent import BlockGRUCell, BlockLinear, GRUCell, SplitInput, make_cell, squashed


def array(tensor):
    return tensor.detach().double().numpy()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def rms(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-4) * array(scale)


def layer(mlp, x):
    """Dense, RMSNorm, SiLU."""
    return silu(rms(x @ array(mlp[0].weight).T + array(mlp[0].bias), mlp[1].weight))


def randomized(module, seed=0):
    torch.manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def test_rms_norm():
    norm = RMSNorm(2)
    assert norm(torch.tensor([3.0, 4.0])).tolist() == pytest.approx([0.8485247, 1.1313663], abs=1e-6)
    assert torch.nn.functional.silu(norm(torch.tensor([3.0, 4.0]))).tolist() == pytest.approx([0.5941859, 0.8554159])
    assert norm(torch.zeros(2)).tolist() == [0, 0]


def test_rms_norm_has_the_gradient_of_its_formula():
    torch.manual_seed(0)
    norm, x = RMSNorm(5).double(), torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    torch.nn.init.normal_(norm.weight)
    plain = x / (x.square().mean(-1, keepdim=True) + 1e-4).sqrt() * norm.weight
    assert torch.allclose(norm(x), plain)
    ours, theirs = (torch.autograd.grad(y.pow(3).sum(), [x, norm.weight]) for y in (norm(x), plain))
    assert all(torch.allclose(*pair) for pair in zip(ours, theirs, strict=True))


def test_initial_weights_are_a_cut_normal_of_the_fan_in():
    torch.manual_seed(0)
    weight = dense(400, 300, "rms").weight
    assert float(weight.detach().std()) == pytest.approx(1 / 20, rel=0.01)
    assert float(weight.detach().abs().max()) <= 2 / 20 / 0.8796 + 1e-6
    assert float(BlockLinear(400, 400, 8).weight.detach().std()) == pytest.approx(1 / 20, rel=0.02)  # not sqrt(8) / 20
    assert not dense(4, 3, "rms", scale=0.0).weight.any()


def test_block_gru_is_the_loop_over_its_blocks():
    blocks, deter, hidden, inputs = 8, 16, 3, 5
    cell = randomized(BlockGRUCell(inputs, deter, hidden, blocks))
    x, h = torch.randn(4, inputs), torch.randn(4, deter)
    shared = np.concatenate([layer(cell.deter_in, array(h)), array(x)], -1)
    width, common = deter // blocks, array(cell.shared.weight).T
    y = np.concatenate([
        array(h)[:, g * width:(g + 1) * width] @ array(cell.blocks.weight)[g]
        + shared @ common[:, g * width:(g + 1) * width] + array(cell.shared.bias)[g * width:(g + 1) * width]
        for g in range(blocks)], -1)
    y = silu(rms(y, cell.norm.weight))
    expected = np.empty((4, deter))
    for g in range(blocks):
        own = slice(g * width, (g + 1) * width)
        gates = y[:, own] @ array(cell.gates.weight)[g] + array(cell.gates.bias)[3 * g * width:3 * (g + 1) * width]
        reset, candidate, update = np.split(gates, 3, -1)
        update = sigmoid(update - 1)
        expected[:, own] = update * np.tanh(sigmoid(reset) * candidate) + (1 - update) * array(h)[:, own]
    assert array(cell(x, h)) == pytest.approx(expected, abs=1e-5)
    assert array(cell.loop((1, 4))(0, x, h)) == pytest.approx(expected, abs=1e-5)


def test_without_weights_the_state_fades_as_the_bias_says():
    cell = BlockGRUCell(5, 16, 3, 8)
    for parameter in cell.parameters():
        torch.nn.init.zeros_(parameter)
    h = torch.ones(1, 16)
    for _ in range(10):
        h = cell(torch.zeros(1, 5), h)
    assert h.tolist()[0] == pytest.approx([0.0436035] * 16, rel=1e-4)


def test_actions_are_squashed_without_a_gradient_of_the_divisor():
    action = torch.tensor([-3.0, 0.5, 1.5], requires_grad=True)
    squashed(action).sum().backward()
    assert squashed(action).tolist() == [-1, 0.5, 1]
    assert action.grad.tolist() == pytest.approx([1 / 3, 1, 1 / 1.5])


def test_inputs_are_projected_apart_in_every_form():
    module = randomized(SplitInput(8, 3, 4))
    index = torch.tensor([[1, 6], [0, 4]])
    stoch = torch.zeros(2, 8).scatter_(1, index, 1.0)
    action = torch.tensor([[0.5, -4.0, 1.0], [0.0, 0.2, 0.3]])
    expected = np.concatenate([layer(module.stoch, array(stoch)), layer(module.action, array(squashed(action)))], -1)
    assert array(module(torch.cat([stoch, action], -1))) == pytest.approx(expected, abs=1e-5)
    assert array(module(OneHots(index, action, 8))) == pytest.approx(expected, abs=1e-5)
    assert array(module.loop(action[None])(0, stoch)) == pytest.approx(expected, abs=1e-5)


def test_the_loop_has_the_gradients_of_single_steps():
    cell, reader = randomized(BlockGRUCell(8, 16, 3, 8)), randomized(SplitInput(6, 2, 4))
    action, stoch = torch.randn(3, 2, 2), torch.randn(3, 2, 6)

    def run(looped):
        h = torch.zeros(2, 16)
        step, read = (cell.loop((3, 2)), reader.loop(action)) if looped else (None, None)
        for t in range(3):
            h = step(t, read(t, stoch[t]), h) if looped else cell(reader(torch.cat([stoch[t], action[t]], -1)), h)
        return torch.autograd.grad(h.square().sum(), [*cell.parameters(), *reader.parameters()])

    for one, other in zip(run(True), run(False), strict=True):
        assert torch.allclose(one, other, atol=1e-5, rtol=1e-4)


def test_make_cell():
    reader, cell = make_cell("gru", 4, 2, 8, 5, "none")
    assert isinstance(reader, MLP) and isinstance(cell, GRUCell)
    with pytest.raises(ValueError, match="deter: 12 must be a multiple of 8"):
        make_cell("block_gru", 4, 2, 12, 5, "rms")
    assert math.isclose(float(cell(torch.zeros(1, 5), torch.zeros(1, 8)).abs().sum()), 0.0)
