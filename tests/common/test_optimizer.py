"""Adam with TensorFlow's epsilon, clipping, and decay free of the learning rate."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from xrl.common.optimizer import Adam


def scalar_adam(value=0.0, lr=2e-4, eps=1e-5, clip=100.0, weight_decay=0.0):
    parameter = nn.Parameter(torch.tensor([value], dtype=torch.float64))
    return parameter, Adam([("w", parameter)], lr=lr, eps=eps, clip=clip, weight_decay=weight_decay)


def reference(weights, gradients, lr, eps, clip, decay):
    """The four lines of the update, in NumPy, over a list of arrays; returns the weights after every step."""
    weights = [w.copy() for w in weights]
    m, v, history = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights], []
    for t, grads in enumerate(gradients, start=1):
        norm = math.sqrt(sum((g**2).sum() for g in grads))
        for i, g in enumerate(grads):
            g = g * min(1.0, clip / norm)
            weights[i] = (1 - decay) * weights[i]
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g**2
            rate = lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            weights[i] = weights[i] - rate * m[i] / (np.sqrt(v[i]) + eps)
        history.append([w.copy() for w in weights])
    return history


@pytest.mark.parametrize(("gradient", "expected"), [(1e-3, 1.519494e-4), (1.0, 1.999368e-4), (1e-5, 6.130686e-6)])
def test_first_step_meets_the_uncorrected_square_root(gradient, expected):
    parameter, adam = scalar_adam()
    adam.step([torch.tensor([gradient], dtype=torch.float64)])
    assert -parameter.item() == pytest.approx(expected, rel=1e-6)


def test_three_equal_steps():
    parameter, adam = scalar_adam()
    for _ in range(3):
        adam.step([torch.tensor([1e-3], dtype=torch.float64)])
    assert -parameter.item() == pytest.approx(4.845026e-4, rel=1e-6)


@pytest.mark.parametrize(("eps", "clip", "decay"), [(1e-5, 100.0, 1e-6), (1e-2, 0.7, 0.03), (1e-8, 1e9, 0.0)])
def test_equals_its_equations_over_many_steps(eps, clip, decay):
    rng = np.random.default_rng(0)
    shapes = [(3, 2), (4,), ()]
    weights = [rng.normal(size=shape) for shape in shapes]
    gradients = [[np.asarray(rng.normal(size=shape)) for shape in shapes] for _ in range(20)]
    parameters = [nn.Parameter(torch.tensor(w)) for w in weights]
    adam = Adam(((str(i), p) for i, p in enumerate(parameters)), lr=0.01, eps=eps, clip=clip, weight_decay=decay)
    expected = reference(weights, gradients, 0.01, eps, clip, decay)
    for grads, after in zip(gradients, expected, strict=True):
        norm = adam.step([torch.tensor(g) for g in grads])
        assert norm.item() == pytest.approx(math.sqrt(sum((g**2).sum() for g in grads)))
        for parameter, value in zip(parameters, after, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=1e-6, atol=1e-9)


def test_equals_torch_adam_with_the_corrected_epsilon():
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(5, dtype=torch.float64))
    theirs = nn.Parameter(ours.detach().clone())
    adam = Adam([("w", ours)], lr=0.01, eps=1e-3, clip=1e9, weight_decay=0.0)
    other = torch.optim.Adam([theirs], lr=0.01)
    for t in range(1, 11):
        theirs.grad = torch.randn(5, dtype=torch.float64)
        adam.step([theirs.grad])
        other.param_groups[0]["eps"] = 1e-3 / math.sqrt(1 - 0.999**t)
        other.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("lr", [1e-4, 1.0])
def test_decay_is_free_of_the_learning_rate_and_spares_no_parameter(lr):
    layer = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)).double()
    for parameter in layer.parameters():
        nn.init.ones_(parameter)
    adam = Adam(layer.named_parameters(), lr=lr, eps=1e-5, clip=100.0, weight_decay=1e-6)
    adam.step([torch.zeros_like(p) for p in layer.parameters()])
    for parameter in layer.parameters():
        assert parameter.flatten().tolist() == pytest.approx([0.999999] * parameter.numel(), abs=1e-12)


@pytest.mark.parametrize(("norm", "scale"), [(200.0, 0.5), (50.0, 1.0), (100.0, 1.0)])
def test_clip_is_by_the_global_norm(norm, scale):
    parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1, 1))]
    adam = Adam(zip("ab", parameters, strict=True), lr=1e-3, eps=1e-5, clip=100.0, weight_decay=0.0)
    gradients = [torch.tensor([0.6 * norm]), torch.tensor([[0.8 * norm]])]
    assert adam.step(gradients).item() == pytest.approx(norm)
    assert adam.mean.tolist() == pytest.approx([0.1 * 0.6 * norm * scale, 0.1 * 0.8 * norm * scale], rel=1e-5)


def test_parameters_become_views_and_keep_their_values():
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    before, x = [p.detach().clone() for p in layer.parameters()], torch.randn(4, 3)
    output = layer(x)
    adam = Adam(layer.named_parameters(), lr=1e-3, eps=1e-5, clip=100.0, weight_decay=0.0)
    assert all(torch.equal(p, b) for p, b in zip(layer.parameters(), before, strict=True))
    assert torch.equal(layer(x), output)
    with torch.no_grad():
        layer.bias.fill_(7.0)
    assert adam.weights[-2:].tolist() == [7.0, 7.0]
    layer.load_state_dict({"weight": torch.ones(2, 3), "bias": torch.zeros(2)})
    assert adam.weights.tolist() == [1.0] * 6 + [0.0] * 2


def test_minimize_differentiates_its_own_parameters_only():
    own, other = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([2.0]))
    adam = Adam([("own", own)], lr=0.1, eps=1e-5, clip=100.0, weight_decay=0.0)
    norm = adam.minimize((own * other).square().sum())
    assert norm.item() == pytest.approx(8.0)
    assert own.item() < 1.0 and other.item() == 2.0
    assert own.grad is None and other.grad is None
    assert not norm.requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_gradient_changes_nothing_and_is_remembered(bad):
    layer = nn.Linear(3, 2)
    adam = Adam(((f"layer.{n}", p) for n, p in layer.named_parameters()), lr=0.1, eps=1e-5, clip=1.0, weight_decay=0.1)
    good = [torch.ones(2, 3), torch.ones(2)]
    adam.step(good)
    before = [tensor.clone() for tensor in (adam.weights, adam.mean, adam.square, adam.steps)]
    assert adam.healthy and adam.culprit() is None
    adam.step([torch.ones(2, 3), torch.tensor([0.0, bad])])
    assert all(torch.equal(now, then) for now, then in zip(
        (adam.weights, adam.mean, adam.square, adam.steps), before, strict=True))
    assert not adam.healthy and adam.culprit() == "layer.bias"
    adam.step(good)
    assert not adam.healthy and adam.culprit() == "layer.bias", "once ill it stays ill, until somebody looks"
    assert adam.weights.isfinite().all() and adam.steps == 2


def test_a_gradient_whose_norm_overflows_is_as_bad():
    layer = nn.Linear(3, 2)
    adam = Adam(layer.named_parameters(), lr=0.1, eps=1e-5, clip=1.0, weight_decay=0.0)
    before = adam.weights.clone()
    adam.step([torch.zeros(2, 3), torch.full((2,), 1e30)])
    assert torch.equal(adam.weights, before) and not adam.healthy and adam.culprit() == "bias"


def test_a_bad_very_first_gradient():
    parameter, adam = scalar_adam(1.0, weight_decay=0.5)
    adam.step([torch.tensor([float("nan")], dtype=torch.float64)])
    assert parameter.item() == 1.0 and not adam.mean.any() and not adam.steps.any()


def test_a_bad_weight_is_the_culprit():
    layer = nn.Linear(3, 2)
    adam = Adam(layer.named_parameters(), lr=0.1, eps=1e-5, clip=1.0, weight_decay=0.0)
    with torch.no_grad():
        layer.bias[1] = torch.inf
    adam.step([torch.full((2, 3), torch.nan), torch.full((2,), torch.nan)])
    assert adam.culprit() == "bias", "the cause, before the gradients it spoils"


def test_state_continues_bit_for_bit():
    torch.manual_seed(0)
    first, adam = scalar_adam(1.0, weight_decay=1e-3)
    gradients = [torch.randn(1, dtype=torch.float64) for _ in range(6)]
    for gradient in gradients[:3]:
        adam.step([gradient])
    second, restored = scalar_adam(first.item(), weight_decay=1e-3)
    restored.load_state_dict({name: tensor.clone() for name, tensor in adam.state_dict().items()})
    for gradient in gradients[3:]:
        adam.step([gradient])
        restored.step([gradient])
    assert torch.equal(first, second)


def test_an_infinite_loss_with_a_finite_gradient_changes_nothing():
    """The mean of squares overflows although every derivative is representable."""
    parameter = nn.Parameter(torch.zeros(512))
    adam = Adam([("w", parameter)], lr=1.0, eps=1e-5, clip=100.0, weight_decay=0.0)
    target = torch.zeros(512)
    target[0] = 3e19
    loss = (parameter - target).square().mean()
    adam.minimize(loss)
    assert loss.isinf() and not adam.healthy and not parameter.any() and adam.culprit() is None


def test_a_loaded_state_is_healthy_again():
    _, adam = scalar_adam()
    state = {name: tensor.clone() for name, tensor in adam.state_dict().items()}
    adam.step([torch.tensor([math.nan], dtype=torch.float64)])
    assert not adam.healthy and adam.culprit() == "w"
    adam.load_state_dict(state)
    assert adam.healthy and adam.culprit() is None


# Memory layouts --------------------------------------------------------------------------------------------------

LAYOUTS = {
    "contiguous": lambda weight: weight.contiguous(),
    "transposed": lambda weight: weight.transpose(0, 1).contiguous().transpose(0, 1) if weight.dim() > 1 else weight,
    "channels-last": lambda weight: (weight.contiguous(memory_format=torch.channels_last) if weight.dim() == 4
                                     else weight),
}
SHAPES = [(3, 2), (2, 3, 4, 4), (4,), (), (1, 5), (5, 1, 2, 2)]
SETTINGS = {"lr": 0.01, "eps": 1e-3, "clip": 2.0, "weight_decay": 0.01}


def laid_out(layout, weights):
    return [nn.Parameter(LAYOUTS[layout](torch.tensor(weight))) for weight in weights]


def numbers(count=1):
    rng = np.random.default_rng(0)
    return [[np.asarray(rng.normal(size=shape)) for shape in SHAPES] for _ in range(count)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gradient_layout", LAYOUTS)
def test_a_step_is_the_same_in_every_memory_layout(layout, gradient_layout):
    weights, *gradients = numbers(6)
    parameters = laid_out(layout, weights)
    strides = [parameter.stride() for parameter in parameters]
    adam = Adam(((str(i), p) for i, p in enumerate(parameters)), **SETTINGS)
    assert [parameter.stride() for parameter in parameters] == strides, "layouts are kept"
    expected = reference(weights, gradients, SETTINGS["lr"], SETTINGS["eps"], SETTINGS["clip"],
                         SETTINGS["weight_decay"])
    for grads, after in zip(gradients, expected, strict=True):
        adam.step([LAYOUTS[gradient_layout](torch.tensor(g)) for g in grads])
        for parameter, value in zip(parameters, after, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("saved", "loaded"), [("contiguous", "transposed"), ("channels-last", "contiguous"),
                                               ("transposed", "channels-last")])
def test_a_state_continues_bit_for_bit_in_another_memory_layout(saved, loaded):
    weights, *gradients = numbers(7)
    gradients = [[torch.tensor(g) for g in grads] for grads in gradients]
    first = laid_out(saved, weights)
    adam = Adam(((str(i), p) for i, p in enumerate(first)), **SETTINGS)
    for grads in gradients[:3]:
        adam.step(grads)
    second = laid_out(loaded, [parameter.detach().numpy() for parameter in first])
    restored = Adam(((str(i), p) for i, p in enumerate(second)), **SETTINGS)
    restored.load_state_dict({name: tensor.clone() for name, tensor in adam.state_dict().items()})
    for grads in gradients[3:]:
        adam.step(grads)
        restored.step(grads)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, second, strict=True))
    for name, tensor in adam.state_dict().items():
        assert torch.equal(tensor, restored.state_dict()[name]), name


def test_moments_are_saved_in_the_order_of_the_axes():
    """The order that a file had before layouts mattered: every gradient flattened, one after the other."""
    weights, grads = numbers(2)
    saved = []
    for layout in LAYOUTS:
        adam = Adam(((str(i), p) for i, p in enumerate(laid_out(layout, weights))), **{**SETTINGS, "clip": 1e9})
        adam.step([torch.tensor(g) for g in grads])
        saved.append(adam.state_dict()["mean"].numpy())
    flat = 0.1 * np.concatenate([g.reshape(-1) for g in grads])
    for mean in saved:
        np.testing.assert_allclose(mean, flat, rtol=1e-6)
