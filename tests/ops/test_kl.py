"""KL divergences against torch.distributions, who is trained by which side, balancing and free nats."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, Normal, kl_divergence

from xrl.ops.kl import balanced_kl, categorical_kl, categorical_kl_each, gaussian_kl, gaussian_kl_each

POST = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
UNIFORM = torch.full((3,), 1 / 3, dtype=torch.float64)


def logits(probs, copies=1):
    """(1, 1, copies, 3): T = B = 1, with an offset, to which a softmax is blind."""
    return (probs.log() + 0.7).expand(1, 1, copies, 3).clone().requires_grad_()


def loss(post, prior, balance=0.8, free_nats=0.0, free_avg=True):
    return balanced_kl(*categorical_kl(post, prior), balance, free_nats, free_avg)


def test_hand_worked_categorical():
    dyn, rep = categorical_kl(logits(POST), logits(UNIFORM))
    assert dyn.item() == pytest.approx(0.296794, abs=1e-6)
    assert rep.item() == pytest.approx(0.296794, abs=1e-6)
    assert categorical_kl(logits(UNIFORM), logits(POST))[0].item() == pytest.approx(0.324287, abs=1e-6)


def test_hand_worked_gradients_of_the_balanced_loss():
    post, prior = logits(POST), logits(UNIFORM)
    loss(post, prior).backward()
    assert prior.grad.flatten().tolist() == pytest.approx([-0.293333, 0.106667, 0.186667], abs=1e-6)
    assert post.grad.flatten().tolist() == pytest.approx([0.062320, -0.032305, -0.030015], abs=1e-6)


@pytest.mark.parametrize("balance", [0.0, 0.5, 0.8, 1.0])
def test_sums_over_variables_and_keeps_its_value_whatever_the_balance(balance):
    assert loss(logits(POST, 32), logits(UNIFORM, 32), balance).item() == pytest.approx(9.497400, abs=1e-6)


def test_categorical_equals_torch_distributions():
    torch.manual_seed(0)
    post, prior = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    expected = kl_divergence(Categorical(logits=post), Categorical(logits=prior)).sum(-1)
    for kl in categorical_kl(post, prior):
        assert kl.shape == (3, 4)
        torch.testing.assert_close(kl, expected)


def test_of_each_variable_equals_torch_distributions():
    torch.manual_seed(0)
    post, prior = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    each = categorical_kl_each(post, prior)
    assert each.shape == (3, 4, 5)
    torch.testing.assert_close(each, kl_divergence(Categorical(logits=post), Categorical(logits=prior)))
    torch.testing.assert_close(each.sum(-1), categorical_kl(post, prior)[0])
    laws = [(torch.randn(3, 4, 5).double(), torch.rand(3, 4, 5).double() + 0.1) for _ in range(2)]
    torch.testing.assert_close(gaussian_kl_each(*laws), kl_divergence(*(Normal(*law) for law in laws)))


def test_gaussian_equals_torch_distributions():
    torch.manual_seed(0)
    post, prior = ((torch.randn(3, 4, 5).double(), torch.rand(3, 4, 5).double() + 0.1) for _ in range(2))
    expected = kl_divergence(Normal(*post), Normal(*prior)).sum(-1)
    for kl in gaussian_kl(post, prior):
        torch.testing.assert_close(kl, expected)


def test_dyn_trains_the_prior_and_rep_the_posterior():
    post, prior = logits(POST), logits(UNIFORM)
    dyn, rep = categorical_kl(post, prior)
    assert torch.autograd.grad(dyn.sum(), [post, prior], allow_unused=True)[0] is None
    assert torch.autograd.grad(rep.sum(), [post, prior], allow_unused=True)[1] is None


def test_gaussian_dyn_trains_the_prior_and_rep_the_posterior():
    laws = [torch.rand(2, 3).add(0.1).requires_grad_() for _ in range(4)]
    dyn, rep = gaussian_kl((laws[0], laws[1]), (laws[2], laws[3]))
    received = [grad is not None for grad in torch.autograd.grad(dyn.sum(), laws, allow_unused=True)]
    assert received == [False, False, True, True]
    received = [grad is not None for grad in torch.autograd.grad(rep.sum(), laws, allow_unused=True)]
    assert received == [True, True, False, False]


@pytest.mark.parametrize(("balance", "trains_post", "trains_prior"), [(1.0, False, True), (0.0, True, False)])
def test_balance_limits(balance, trains_post, trains_prior):
    post, prior = logits(POST), logits(UNIFORM)
    loss(post, prior, balance).backward()
    assert (bool(post.grad.any()), bool(prior.grad.any())) == (trains_post, trains_prior)


def test_balance_weighs_the_dynamics_side():
    assert balanced_kl(torch.tensor([[1.0]]), torch.tensor([[2.0]]), 0.8, 0.0, True).item() == pytest.approx(1.2)


@pytest.mark.parametrize(("kl", "free_avg", "expected", "gradient"), [
    ([0.5, 2.5], True, 1.5, [0.5, 0.5]),    # the mean is above
    ([0.5, 2.5], False, 1.75, [0.0, 0.5]),  # (1 + 2.5) / 2
    ([0.2, 0.4], True, 1.0, [0.0, 0.0]),
    ([0.2, 0.4], False, 1.0, [0.0, 0.0]),
])
def test_free_nats(kl, free_avg, expected, gradient):
    values = torch.tensor([kl], requires_grad=True)
    clipped = balanced_kl(values, values, 0.8, 1.0, free_avg)
    clipped.backward()
    assert clipped.item() == pytest.approx(expected)
    assert values.grad.flatten().tolist() == pytest.approx(gradient)


def test_free_nats_are_taken_from_each_side_before_mixing():
    dyn, rep = torch.tensor([[3.0]]), torch.tensor([[0.0]])
    assert balanced_kl(dyn, rep, 0.8, 1.0, True).item() == pytest.approx(0.8 * 3 + 0.2 * 1)


def test_equal_laws_have_no_divergence_and_no_gradient():
    torch.manual_seed(0)
    post = torch.randn(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    prior = post.detach().clone().requires_grad_()
    value = loss(post, prior)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert post.grad.abs().max() < 1e-12 and prior.grad.abs().max() < 1e-12


def test_divergence_from_uniform_is_the_missing_entropy():
    peak = torch.tensor([100.0, 0.0, 0.0])
    assert categorical_kl(peak.expand(1, 3), torch.zeros(1, 3))[0].item() == pytest.approx(math.log(3), abs=1e-6)


def test_extreme_logits_stay_finite():
    post, prior = torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])
    assert all(kl.isfinite() for kl in categorical_kl(post, prior))
