"""One seed, many independent streams."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from xrl.common.seeding import EVALUATION_SEED, TEST_SEED, numpy_generator, seed_everything, torch_generator

CPU = torch.device("cpu")


def draw(generator: torch.Generator) -> list[float]:
    return torch.rand(4, generator=generator).tolist()


def test_the_global_generators_follow_the_seed():
    def three(seed):
        seed_everything(seed)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    first = three(3)
    assert three(3) == first
    assert all(one != other for one, other in zip(first, three(4), strict=True))
    three(2**40)  # larger than NumPy's own limit


@pytest.mark.parametrize("make", [lambda seed, stream: torch_generator(seed, stream, CPU).initial_seed(),
                                  lambda seed, stream: float(numpy_generator(seed, stream).random())])
def test_a_stream_is_fixed_by_seed_and_name(make):
    made = {(seed, stream): make(seed, stream) for seed in range(20) for stream in ("acting", "learning", "actinh", "")}
    assert len(set(made.values())) == len(made)
    assert made[3, "acting"] == make(3, "acting")


def test_generators_are_apart_from_the_global_one_and_from_each_other():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, other = torch_generator(1, "acting", CPU), torch_generator(1, "acting", CPU)
    assert draw(one) == draw(other)
    draw(one)
    assert draw(one) != draw(other) and torch.equal(torch.get_rng_state(), before)


def test_no_evaluation_meets_a_training_or_test_seed():
    """Of any run with fewer environments than these lie apart."""
    ranges = [range(offset, offset + 1000) for offset in (0, EVALUATION_SEED, TEST_SEED)]
    assert len(set().union(*ranges)) == 3000
