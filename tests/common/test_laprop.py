"""LaProp and adaptive clipping against numbers worked out by hand, and a NumPy loop."""

import numpy as np
import pytest
import torch
from torch import nn

from xrl.common.optimizer import LaProp


def laprop(*values, **keys):
    named = [(f"w{i}", nn.Parameter(torch.tensor(value))) for i, value in enumerate(values)]
    return LaProp(named, **{"lr": 1.0, "clip": 0.3, "warmup": 1, **keys})


@pytest.mark.parametrize(("weight", "gradient", "clipped"), [
    ([3.0, 4.0], [3.0, 4.0], [0.9, 1.2]), ([3.0, 4.0], [0.3, 0.4], [0.3, 0.4]),
    ([0.0, 0.0], [0.6, 0.8], [1.8e-4, 2.4e-4])])
def test_a_gradient_is_clipped_by_the_norm_of_its_weights(weight, gradient, clipped):
    optimizer = laprop(weight, [100.0])
    optimizer.step([torch.tensor(gradient), torch.tensor([1.0])])
    assert (optimizer.square[:2] / 0.001).sqrt().tolist() == pytest.approx(clipped, rel=1e-4)
    assert float((optimizer.square[2] / 0.001).sqrt()) == pytest.approx(1.0, rel=1e-4)  # each tensor by its own norm


def test_momentum_is_of_normalised_gradients():
    optimizer, moved = laprop([0.0], clip=1e9), []
    for gradient in (1.0, 0.1, 10.0):
        optimizer.weights.zero_()
        optimizer.step([torch.tensor([gradient])])
        moved.append(-float(optimizer.weights))
    assert moved == pytest.approx([0.0, 0.5477653, 0.9812560], rel=1e-5)  # the first step only fills the moments


def test_learning_rate_rises_from_zero():
    optimizer, rates = laprop([1e6], lr=4e-5, warmup=1000, clip=1e9), {}
    for t in range(1, 1102):
        before = optimizer.weights.double().clone()
        optimizer.weights.zero_()
        optimizer.step([torch.tensor([1.0])])  # normalised: exactly 1, and so is its momentum
        rates[t] = -float(optimizer.weights)
        optimizer.weights.copy_(before)
    expected = [0, 4e-8, 2e-5, 4e-5, 4e-5]
    assert [rates[t] for t in (1, 2, 501, 1001, 1101)] == pytest.approx(expected, rel=1e-3, abs=1e-12)


def test_many_steps_are_those_of_a_numpy_loop():
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(3, 2)), rng.normal(size=4)]
    optimizer = laprop(*[weight.astype(np.float32).tolist() for weight in weights], lr=0.05, warmup=5)
    v, m = [0.0 * weight for weight in weights], [0.0 * weight for weight in weights]
    for t in range(1, 20):
        gradients = [rng.normal(size=weight.shape) for weight in weights]
        optimizer.step([torch.tensor(gradient, dtype=torch.float32) for gradient in gradients])
        for i, g in enumerate(gradients):
            g = g / max(1.0, np.linalg.norm(g) / (0.3 * max(1e-3, np.linalg.norm(weights[i]))))
            v[i] = 0.999 * v[i] + 0.001 * g**2
            m[i] = 0.9 * m[i] + 0.1 * g / (np.sqrt(v[i] / (1 - 0.999**t)) + 1e-20)
            weights[i] = weights[i] - 0.05 * min(1, (t - 1) / 5) * m[i] / (1 - 0.9**t)
    for parameter, expected in zip(optimizer.parameters, weights, strict=True):
        assert parameter.detach().numpy() == pytest.approx(expected, rel=2e-4, abs=1e-5)


def test_a_gradient_of_zero_and_one_that_is_not_finite_change_nothing():
    optimizer = laprop([1.0, 2.0])
    for _ in range(3):
        optimizer.step([torch.zeros(2)])
    assert optimizer.weights.tolist() == [1, 2]
    before = [tensor.clone() for tensor in (optimizer.weights, optimizer.mean, optimizer.square, optimizer.steps)]
    optimizer.step([torch.tensor([1.0, float("nan")])])
    after = (optimizer.weights, optimizer.mean, optimizer.square, optimizer.steps)
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert not bool(optimizer.healthy) and optimizer.culprit() == "w0"
