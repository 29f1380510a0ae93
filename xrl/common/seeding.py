"""Randomness has owners: one seed fixes the networks, every sampler holds a generator of its own."""

from __future__ import annotations

import random

import numpy as np
import torch

# Added to env_seed: evaluations during training and the test mode never see an episode that was trained on,
# nor one another's.
EVALUATION_SEED = 1_000_000
TEST_SEED = 2_000_000


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch; network initialisation draws from the latter."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def torch_generator(seed: int, stream: str, device: torch.device) -> torch.Generator:
    """A generator on ``device`` for one named purpose; streams of one seed are independent."""
    generator = torch.Generator(device=device)
    generator.manual_seed(int(_sequence(seed, stream).generate_state(1, np.uint64)[0] >> 1))
    return generator


def numpy_generator(seed: int, stream: str) -> np.random.Generator:
    """As ``torch_generator``, for NumPy."""
    return np.random.default_rng(_sequence(seed, stream))


def _sequence(seed: int, stream: str) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, *stream.encode()])
