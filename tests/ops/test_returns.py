"""Lambda-returns and imagined weights: golden numbers, limits, and the n-step mixture they are defined by."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xrl.ops.returns import cumulative_weight, lambda_return

# A three-step example worked by hand: v_1, v_2, v_3 = 20, 30, 40, the last of them the bootstrap.
REWARD, NEXT_VALUE, DISCOUNT = [1.0, 2.0, 3.0], [20.0, 30.0, 40.0], [0.9, 0.8, 0.7]


def column(values, grad=False):
    return torch.tensor(values, dtype=torch.float64).unsqueeze(-1).requires_grad_(grad)


def example(lambda_=0.95, reward=REWARD, next_value=NEXT_VALUE, discount=DISCOUNT):
    return lambda_return(column(reward), column(next_value), column(discount), lambda_).squeeze(-1).tolist()


def mixture(reward, next_value, discount, lambda_):
    """(1 - lambda) sum_n lambda^(n-1) G_n + lambda^(N-1) G_N with every n-step return G_n from its definition."""
    horizon, targets = len(reward), []
    for k in range(horizon):
        steps = []
        for n in range(1, horizon - k + 1):
            total, factor = 0.0, 1.0
            for j in range(k, k + n):
                total += factor * reward[j]
                factor *= discount[j]
            steps.append(total + factor * next_value[k + n - 1])
        blend = sum((1 - lambda_) * lambda_**(n - 1) * g for n, g in enumerate(steps[:-1], start=1))
        targets.append(blend + lambda_**(len(steps) - 1) * steps[-1])
    return targets


def test_hand_worked_example():
    assert example() == pytest.approx([24.7798, 26.76, 31.0], abs=1e-9)


@pytest.mark.parametrize(("lambda_", "expected"), [(0.0, [19, 26, 31]), (1.0, [25.12, 26.8, 31.0])])
def test_lambda_limits(lambda_, expected):
    assert example(lambda_) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("horizon", [1, 2, 15])
def test_equals_mixture_of_n_step_returns(lambda_, horizon):
    rng = np.random.default_rng(horizon)
    reward, value = rng.normal(size=(2, horizon, 4))
    discount = rng.uniform(0, 1, (horizon, 4))
    discount[horizon // 2, 1] = 0.0  # a terminal in the middle
    target = lambda_return(*map(torch.tensor, (reward, value, discount)), lambda_)
    for n in range(4):
        expected = mixture(reward[:, n], value[:, n], discount[:, n], lambda_)
        assert target[:, n].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("horizon", [1, 15])
def test_true_value_of_a_constant_reward_is_a_fixed_point(lambda_, horizon):
    targets = example(lambda_, [1.0] * horizon, [1000.0] * horizon, [0.999] * horizon)
    assert targets == pytest.approx([1000.0] * horizon, abs=1e-8)


def test_terminal_start_is_worth_its_own_reward():
    assert example(discount=[0.0, 0.8, 0.7]) == pytest.approx([1.0, 26.76, 31.0], abs=1e-9)


def test_nothing_counts_after_a_terminal_in_the_middle():
    cut = [0.9, 0.0, 0.7]
    before = example(discount=cut)
    after = example(discount=cut, reward=[1.0, 2.0, -99.0], next_value=[20.0, -99.0, -99.0])
    assert before[:2] == after[:2] == pytest.approx([1 + 0.9 * (0.05 * 20 + 0.95 * 2), 2.0])
    assert before[2] != after[2]


def test_zero_discount_leaves_the_reward():
    assert example(discount=[0.0] * 3) == REWARD


@pytest.mark.parametrize(("reward", "expected"), [([0.0, 0.0, 1.0], [1, 1, 1]), ([1.0, 0.0, 0.0], [1, 0, 0])])
def test_runs_backwards_in_time(reward, expected):
    assert example(1.0, reward, [0.0] * 3, [1.0] * 3) == expected


def test_gradient_of_every_target_by_the_bootstrap():
    for k, expected in enumerate([0.45486, 0.532, 0.7]):
        value = column(NEXT_VALUE, grad=True)
        lambda_return(column(REWARD), value, column(DISCOUNT), 0.95)[k].backward()
        assert value.grad[-1].item() == pytest.approx(expected, abs=1e-12)


def test_differentiable_in_every_input():
    inputs = [torch.rand(4, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda *x: lambda_return(*x, 0.95), inputs)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"reward \(3, 1\), next_value \(2, 1\), discount \(3, 1\)"):
        lambda_return(column(REWARD), column(NEXT_VALUE[:2]), column(DISCOUNT), 0.95)


def test_weight_is_the_product_of_earlier_discounts():
    weight = cumulative_weight(column([0.9, 0.8, 0.7, 0.6]))
    assert weight.shape == (4, 1)
    assert weight.squeeze(-1).tolist() == pytest.approx([1, 0.9, 0.72, 0.504], abs=1e-12)


def test_weight_of_a_terminal_start_is_its_first_step():
    discount = torch.tensor([[0.0, 0.9], [0.8, 0.8], [0.7, 0.7]])
    assert cumulative_weight(discount)[:, 0].tolist() == [1, 0, 0]
    assert cumulative_weight(discount)[:, 1].tolist() == pytest.approx([1, 0.9, 0.72])


def test_weight_has_no_gradient():
    assert not cumulative_weight(column(DISCOUNT, grad=True)).requires_grad
