"""Speed that the mathematics does not see: precision, compilation, CUDA graphs, and the allocator's settings.

Learners and agents ask here; losses, networks and distributions know nothing of it (but that distribution
parameters, KL, returns and reductions are float32 whatever the precision of the products around them).
"""

from __future__ import annotations

import ctypes
import sys
from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # glibc, malloc.h


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """A context in which matrix products and convolutions take ``precision``; weights and their gradients stay float32.

    It must not enclose both a pass without gradients and one with: PyTorch keeps the weights cast for the first,
    and they have no gradient.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def keep_memory() -> bool:
    """Let this process keep the memory it frees (glibc only; True where it took effect).

    An update allocates and frees gigabytes of activations. By default malloc hands every large block back to the
    system, which maps and clears it again, page by page, in the next operation: a tenth of an update on a CPU, and
    ten times the duration of the first convolution. The price is that memory once used stays with the process.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    # Large blocks from the heap too, which never shrinks and grows by 64 MiB at a time.
    return all([mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1), mallopt(_M_TOP_PAD, 64 * 2**20)])
