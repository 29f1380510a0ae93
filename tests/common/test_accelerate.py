"""Precision, and the memory that a process keeps."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest
import torch
from torch import nn

from xrl.common.accelerate import autocast, keep_memory, set_deterministic

# How many pages must the system map for 256 MiB that were used and freed before? By default all, kept none.
FAULTS = """
import resource
import numpy as np
from xrl.common.accelerate import keep_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(2**28, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
assert keep_memory() is True
faults()
print(faults())
"""


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_that_of_products_and_not_of_weights_and_gradients(precision, dtype):
    layer, conv = nn.Linear(3, 2), nn.Conv2d(1, 2, 3)
    with autocast(precision, torch.device("cpu")):
        product, image = layer(torch.randn(4, 3)), conv(torch.randn(1, 1, 5, 5))
        assert product.dtype == image.dtype == dtype
        assert (torch.randn(3) + 1).dtype == torch.float32
        assert torch.is_autocast_enabled("cpu") == (precision == "bf16")
    grads = torch.autograd.grad(product.float().sum() + image.float().sum(), [*layer.parameters(), *conv.parameters()])
    assert all(grad.dtype == torch.float32 for grad in grads)
    assert not torch.is_autocast_enabled("cpu")


def has_glibc() -> bool:
    return sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


@pytest.mark.skipif(not has_glibc(), reason="mallopt is glibc's")
def test_freed_memory_is_used_again_without_asking_the_system():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, timeout=60)
    default, kept = map(int, done.stdout.split())
    assert kept < 64 < default, "at least 128 pages, if they are huge ones"


@pytest.mark.parametrize("system", ["darwin", "musl"])
def test_elsewhere_the_allocator_is_left_alone(system, monkeypatch):
    if system == "musl":
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    else:
        monkeypatch.setattr(sys, "platform", system)
    assert keep_memory() is False


def test_determinism_is_for_cpus_unless_said_otherwise():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    before = torch.are_deterministic_algorithms_enabled()
    try:
        for wanted, device, expected in ((None, cpu, True), (None, cuda, False), (False, cpu, False),
                                         (True, cpu, True)):
            set_deterministic(wanted, device)
            assert torch.are_deterministic_algorithms_enabled() == expected
            assert torch.backends.cudnn.benchmark != expected == torch.backends.cudnn.deterministic
    finally:
        torch.use_deterministic_algorithms(before)
