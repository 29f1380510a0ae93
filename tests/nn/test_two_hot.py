"""Two-hot codes against values computed apart, in float64 NumPy, from DreamerV3's description."""

import math

import numpy as np
import pytest
import torch

from xrl.nn.two_hot import TwoHot, TwoHotHead, make_bins, symexp, symlog

BINS = make_bins(255)


def code(target, bins=BINS):
    """The two-hot code, read off the gradient of the loss: softmax - code."""
    logits = torch.zeros(len(bins), requires_grad=True)
    TwoHot(logits, bins).loss(torch.tensor(float(target))).backward()
    return {i: round(w, 5) for i, w in enumerate((1 / len(bins) - logits.grad).tolist()) if abs(w) > 1e-6}


def test_symlog_and_its_inverse():
    x = torch.tensor([0, 1, -1, math.e - 1, 1000], dtype=torch.float64)
    assert symlog(x).tolist() == pytest.approx([0, 0.6931472, -0.6931472, 1, 6.9087548], rel=1e-6)
    assert symexp(torch.tensor([2.0, -2.0])).tolist() == pytest.approx([6.3890561, -6.3890561])
    assert torch.allclose(symexp(symlog(x)), x)


def test_bins():
    assert len(BINS) == 255 and BINS[127] == 0
    expected = {0: -485165194.4098, 128: 0.1705577, 131: 0.8774627, 132: 1.1976785, 254: 485165194.4098}
    for index, value in expected.items():
        assert float(BINS[index]) == pytest.approx(value, rel=1e-6)
    assert torch.equal(BINS, -BINS.flip(0))
    assert make_bins(5).tolist() == pytest.approx([-485165194.41, -22025.466, 0, 22025.466, 485165194.41])


@pytest.mark.parametrize(("target", "expected"), [
    (1.0, {131: 0.6173291, 132: 0.3826709}), (0.1, {127: 0.4136882, 128: 0.5863118}),
    (-3.7, {117: 0.8155677, 118: 0.1844323}), (250.0, {162: 0.9194678, 163: 0.0805322}),
    (0.0, {127: 1.0}), (float(BINS[130]), {130: 1.0}), (1e10, {254: 1.0}), (-1e10, {0: 1.0})])
def test_code_of_a_number(target, expected):
    found = code(target)
    assert found.keys() == expected.keys()
    assert list(found.values()) == pytest.approx(list(expected.values()), abs=1e-5)


def test_the_code_means_the_number():
    for target in (0.3, -17.0, 4321.0):
        assert sum(weight * float(BINS[i]) for i, weight in code(target).items()) == pytest.approx(target, rel=1e-4)


def test_prediction_is_the_mean_in_raw_space():
    logits = torch.full((255,), -1e9)
    logits[[127, 200]] = 0.0
    assert float(TwoHot(logits, BINS).mean()) == pytest.approx(49163.445174, rel=1e-5)


def test_uniform_law_predicts_exactly_zero_and_pays_the_same_for_every_target():
    law = TwoHot(torch.zeros(3, 255), BINS)
    assert law.mean().tolist() == [0, 0, 0]
    assert law.loss(torch.tensor([0.0, 1e6, -3.0])).tolist() == pytest.approx([5.5412635] * 3)


def test_gradient_at_a_uniform_law():
    logits = torch.zeros(255, requires_grad=True)
    TwoHot(logits, BINS).loss(torch.tensor(1.0)).backward()
    assert logits.grad[[131, 132, 0]].tolist() == pytest.approx([-0.6134075, -0.3787494, 0.0039216], abs=1e-6)


def test_five_bins():
    law = TwoHot(torch.tensor([0.0, 1, 2, 1, 0]), make_bins(5))
    assert code(10000.0, make_bins(5)) == pytest.approx({2: 0.5459801, 3: 0.4540199}, abs=1e-5)
    assert float(law.loss(torch.tensor(10000.0))) == pytest.approx(1.1503767) and float(law.mean()) == 0


def test_head_begins_at_zero_and_learns_a_large_number():
    torch.manual_seed(0)
    head, feat = TwoHotHead(3, 1, 16), torch.randn(8, 3)
    assert head(feat).tolist() == [0] * 8
    optimizer = torch.optim.Adam(head.parameters(), lr=0.03)
    target = torch.linspace(-2000, 5000, 8)
    for _ in range(300):
        optimizer.zero_grad()
        head.loss(feat, target).mean().backward()
        optimizer.step()
    assert np.abs(head(feat).detach().numpy() - target.numpy()).max() < 400
