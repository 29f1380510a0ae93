"""Dense layers: initialisation, order of norm and activation, and the norm's epsilon."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from xrl.nn.layers import (
    MLP,
    ChannelNorm,
    LoopLinear,
    OneHots,
    dense,
    gather_linear,
    gather_sum,
    glorot,
    norm_layer,
)


def array(tensor):
    return tensor.detach().numpy().astype(np.float64)


def elu(x):
    return np.where(x > 0, x, np.expm1(x))


def layer_norm(x, weight=1.0, bias=0.0):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3) * weight + bias


@pytest.mark.parametrize(("layer", "fan_in", "fan_out"), [
    (nn.Linear(300, 200), 300, 200),
    (nn.Conv2d(16, 32, 4, stride=2), 16 * 4 * 4, 32 * 4 * 4),
    (nn.ConvTranspose2d(32, 16, 5, stride=2), 32 * 5 * 5, 16 * 5 * 5),
])
def test_kernels_are_glorot_uniform_and_biases_zero(layer, fan_in, fan_out):
    torch.manual_seed(0)
    glorot(layer)
    bound = math.sqrt(6 / (fan_in + fan_out))
    kernel = layer.weight.detach()
    assert kernel.abs().max() <= bound
    assert kernel.abs().max() > 0.99 * bound
    assert kernel.std().item() == pytest.approx(math.sqrt(2 / (fan_in + fan_out)), rel=0.02)
    assert not layer.bias.any()


def test_dense_is_initialised():
    torch.manual_seed(0)
    layer = dense(300, 200)
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / 500), rel=0.02)
    assert not layer.bias.any()


def test_a_norm_is_left_as_it_is():
    norm = nn.LayerNorm(4)
    glorot(norm)
    assert norm.weight.eq(1).all() and not norm.bias.any()


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_mlp_is_dense_norm_elu_repeated(norm):
    torch.manual_seed(0)
    mlp = MLP(3, 2, 5, norm)
    for parameter in mlp.parameters():
        nn.init.normal_(parameter)
    denses = [layer for layer in mlp if isinstance(layer, nn.Linear)]
    norms = [layer for layer in mlp if isinstance(layer, nn.LayerNorm)]
    assert (len(denses), len(norms)) == (2, 2 if norm == "layer" else 0)
    assert all(layer.bias is not None for layer in denses), "kept even where a norm follows"
    x = torch.randn(4, 2, 3)
    expected = array(x)
    for i, layer in enumerate(denses):
        expected = expected @ array(layer.weight).T + array(layer.bias)
        if norms:
            expected = layer_norm(expected, array(norms[i].weight), array(norms[i].bias))
        expected = elu(expected)
    np.testing.assert_allclose(array(mlp(x)), expected, atol=1e-5)


def test_layer_norm_has_the_epsilon_of_keras():
    x = torch.tensor([[0.01, -0.01]])  # variance 1e-4, a tenth of epsilon
    assert norm_layer("layer", 2)(x)[0, 0].item() == pytest.approx(0.01 / math.sqrt(1.1e-3), rel=1e-5)
    assert norm_layer("none", 2)(x) is x


def test_channel_norm_normalises_every_pixel_over_channels():
    torch.manual_seed(0)
    norm = ChannelNorm(6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    image = torch.randn(2, 6, 3, 4) * 0.05
    pixels = np.moveaxis(array(image), 1, -1)
    expected = np.moveaxis(layer_norm(pixels, array(norm.weight), array(norm.bias)), -1, 1)
    np.testing.assert_allclose(array(norm(image)), expected, atol=1e-5)


# Inputs made of ones and zeros -----------------------------------------------------------------------------------


@pytest.fixture
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


def one_hots(lead=(6, 5), variables=3, classes=4, rest=2):
    """The same input as places and as numbers. Row 0 of every table is drawn often, the last one never."""
    index = torch.randint(0, classes - 1, (*lead, variables)) * (torch.rand(*lead, variables) < 0.7)
    index = index + torch.arange(0, variables * classes, classes)
    x = torch.randn(*lead, rest)
    dense_input = torch.zeros(*lead, variables * classes).scatter_(-1, index, 1.0)
    return OneHots(index, x, variables * classes), torch.cat([dense_input, x], -1)


def gradients(output, direction, inputs):
    return torch.autograd.grad((output * direction).sum(), inputs)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("lead", [(7,), (6, 5), (2, 3, 4)])
def test_a_gathered_sum_is_the_product_with_one_hot_rows(lead):
    sparse, full = one_hots(lead)
    table = torch.randn(5, sparse.ones).t().requires_grad_()  # as the weight of a dense layer lies
    ours, theirs = gather_sum(sparse.index, table), full[..., :sparse.ones] @ table
    torch.testing.assert_close(ours, theirs)
    direction = torch.randn_like(ours)
    (mine,), (other,) = gradients(ours, direction, [table]), gradients(theirs, direction, [table])
    torch.testing.assert_close(mine, other)
    assert not mine[3].any() and mine[0].any(), "a row nobody drew has no gradient"


@pytest.mark.usefixtures("double")
def test_a_gathered_sum_passes_a_finite_difference_also_where_a_row_is_drawn_twice():
    index = torch.tensor([[0, 2], [1, 1], [0, 2], [2, 0]])
    table = torch.randn(4, 3, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: gather_sum(index, rows).square(), table)


@pytest.mark.usefixtures("double")
def test_a_gathered_sum_takes_any_layout_of_its_gradient():
    sparse, full = one_hots()
    table = torch.randn(sparse.ones, 5, requires_grad=True)
    direction = torch.randn(5, 5, 6).permute(2, 1, 0)
    for index, hot in ((sparse.index, full), (sparse.index.transpose(0, 1), full.transpose(0, 1))):
        if index is not sparse.index:
            direction = direction.transpose(0, 1)
        (mine,) = gradients(gather_sum(index, table), direction, [table])
        (other,) = gradients(hot[..., :sparse.ones] @ table, direction, [table])
        torch.testing.assert_close(mine, other)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("grad", [True, False])
def test_a_dense_layer_on_places_is_the_dense_layer(grad):
    sparse, full = one_hots()
    layer = dense(full.shape[-1], 5).requires_grad_(grad)
    nn.init.normal_(layer.bias)
    ours, theirs = gather_linear(layer, sparse), F.linear(full, layer.weight, layer.bias)
    torch.testing.assert_close(ours, theirs)
    assert ours.requires_grad == grad
    if grad:
        direction, own = torch.randn_like(ours), [layer.weight, layer.bias]
        for mine, other in zip(gradients(ours, direction, own), gradients(theirs, direction, own), strict=True):
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_an_mlp_reads_places_as_it_reads_numbers_and_their_slices(norm):
    torch.manual_seed(0)
    sparse, full = one_hots()
    mlp = MLP(full.shape[-1], 2, 5, norm)
    torch.testing.assert_close(mlp(sparse), mlp(full))
    torch.testing.assert_close(mlp(sparse[1:3]), mlp(full[1:3]))
    torch.testing.assert_close(mlp(sparse.detach()), mlp(full))


def test_a_dense_layer_on_places_in_bfloat16():
    """Sums of many numbers are exact to a rounding, forwards and backwards."""
    torch.manual_seed(0)
    sparse, full = one_hots((3000,), variables=16)
    layer, direction = dense(full.shape[-1], 5), torch.rand(3000, 5)
    with torch.autocast("cpu", torch.bfloat16):
        ours = gather_linear(layer, sparse)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), layer(full), atol=0.05, rtol=0.05)
    own = [layer.weight, layer.bias]
    for mine, other in zip(gradients(ours, direction, own), gradients(layer(full), direction, own), strict=True):
        assert mine.dtype == torch.float32 and ((mine - other).norm() / other.norm()).item() < 0.01


@pytest.mark.usefixtures("double")
def test_layers_that_were_computed_before_are_not_computed_again_but_learn_the_same():
    for x in one_hots((4, 5)):
        size = x.shape[-1] if isinstance(x, torch.Tensor) else x.ones + x.rest.shape[-1]
        mlp = MLP(size, 3, 6)
        for parameter in mlp.parameters():
            nn.init.normal_(parameter)
        with torch.no_grad(), mlp.recording() as record:
            for t in range(4):
                mlp(x[t])
        known = [torch.stack(layer) for layer in zip(*record, strict=True)]
        ours, theirs = mlp(x, known), mlp(x)
        torch.testing.assert_close(ours, theirs)
        direction, own = torch.randn_like(ours), list(mlp.parameters())
        for mine, other in zip(gradients(ours, direction, own), gradients(theirs, direction, own), strict=True):
            torch.testing.assert_close(mine, other)


def test_nothing_is_recorded_where_it_could_not_be_used():
    x = torch.randn(2, 3)
    for mlp, grad in ((MLP(3, 2, 5), True), (MLP(3, 2, 5, "layer"), False)):
        with torch.set_grad_enabled(grad), mlp.recording() as record:
            mlp(x)
        assert record == []
    mlp = MLP(3, 2, 5)
    with torch.no_grad():
        with mlp.recording() as record:
            mlp(x)
        mlp(x)
    assert len(record) == 1


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_overwriting_in_the_elu_harms_no_second_reader(norm):
    """Of the input, and of the output."""
    torch.manual_seed(0)
    first, second, x = MLP(4, 2, 5, norm), MLP(4, 2, 5, norm), torch.randn(6, 4, requires_grad=True)
    kept = x.detach().clone()

    def plain(mlp):
        y = x
        for layer in mlp:
            y = F.elu(y) if isinstance(layer, nn.ELU) else layer(y)
        return y

    def loss(run):
        one, two = run(first), run(second)
        return (one * two).sum() + one.exp().sum() + two.square().sum()

    inputs = [x, *first.parameters(), *second.parameters()]
    ours = torch.autograd.grad(loss(lambda mlp: mlp(x)), inputs)
    assert torch.equal(x, kept)
    for mine, other in zip(ours, torch.autograd.grad(loss(plain), inputs), strict=True):
        torch.testing.assert_close(mine, other)


# A dense layer inside a loop -------------------------------------------------------------------------------------

STEPS, BATCH = 4, 3


def looped(layer, inside, step):
    """A recurrence: what ``step`` gives at t is added to the inside input of t + 1."""
    outputs, state = [], torch.zeros(BATCH, layer.out_features, dtype=inside.dtype)
    for t in range(STEPS):
        state = torch.tanh(step(t, torch.cat([inside[t], state], -1)))
        outputs.append(state)
    return torch.stack(outputs)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("outside", [0, 2])
def test_a_layer_in_a_loop_is_the_layer_and_so_are_all_its_gradients(outside):
    layer = dense(2 + 5 + outside, 5)
    nn.init.normal_(layer.bias)
    inside = torch.randn(STEPS, BATCH, 2, requires_grad=True)
    fixed = torch.randn(STEPS, BATCH, outside, requires_grad=True)
    loop = LoopLinear(layer, fixed) if outside else LoopLinear(layer, shape=(STEPS, BATCH))
    ours = looped(layer, inside, loop)
    theirs = looped(layer, inside, lambda t, x: layer(torch.cat([x, fixed[t]], -1)))
    torch.testing.assert_close(ours, theirs)
    inputs = [layer.weight, layer.bias, inside, *([fixed] if outside else [])]
    direction = torch.randn_like(ours)
    for mine, other in zip(gradients(ours, direction, inputs), gradients(theirs, direction, inputs), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.usefixtures("double")
def test_a_layer_in_a_loop_leaves_out_what_is_not_asked_for():
    layer, inside = dense(7, 5), torch.randn(STEPS, BATCH, 2)
    with torch.no_grad():
        ours = looped(layer, inside, LoopLinear(layer, shape=(STEPS, BATCH)))
    assert not ours.requires_grad
    torch.testing.assert_close(ours, looped(layer, inside, lambda t, x: layer(x)).detach())


def test_a_layer_in_a_loop_in_bfloat16():
    torch.manual_seed(0)
    layer, inside, fixed = dense(9, 5), torch.randn(STEPS, BATCH, 2), torch.randn(STEPS, BATCH, 2)
    with torch.autocast("cpu", torch.bfloat16):
        loop = LoopLinear(layer, fixed)
        ours = looped(layer, inside, loop).float()
        assert loop(0, torch.randn(BATCH, 7)).dtype == torch.bfloat16
    theirs = looped(layer, inside, lambda t, x: layer(torch.cat([x, fixed[t]], -1)))
    torch.testing.assert_close(ours, theirs, atol=0.03, rtol=0)


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_norms_learn_from_many_rows_in_bfloat16(norm):
    """A bfloat16 sum of more than 256 ones stays 256; gradients of weights and biases must be summed in float32."""
    torch.manual_seed(0)
    mlp, x, direction = MLP(8, 2, 16, norm), torch.randn(3000, 8), torch.rand(3000, 16)
    with torch.autocast("cpu", torch.bfloat16):
        low = mlp(x)
    own = list(mlp.parameters())
    for mine, other in zip(gradients(low, direction, own), gradients(mlp(x), direction, own), strict=True):
        assert ((mine - other).norm() / other.norm()).item() < 0.05


def test_channel_norm_learns_from_many_pixels_in_bfloat16():
    torch.manual_seed(0)
    norm, image = ChannelNorm(6), torch.randn(4, 6, 30, 30)
    direction = torch.rand(4, 6, 30, 30)
    own = list(norm.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        low = norm(image.bfloat16())
    for mine, other in zip(gradients(low, direction, own), gradients(norm(image), direction, own), strict=True):
        assert ((mine - other).norm() / other.norm()).item() < 0.05
