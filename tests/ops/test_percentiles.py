"""Percentiles are NumPy's."""

import numpy as np
import pytest
import torch

from xrl.ops.percentiles import percentiles


@pytest.mark.parametrize("values", [np.arange(101.0), np.array([1.0, 2, 3, 4]), np.array([0.0, 10]), np.array([7.0]),
                                    np.random.default_rng(0).normal(size=(15, 40))])
def test_percentiles_are_numpys(values):
    shares = (0.0, 0.05, 0.5, 0.95, 1.0)
    found = percentiles(torch.tensor(values), shares)
    assert found.numpy() == pytest.approx(np.percentile(values, [100 * share for share in shares]))
