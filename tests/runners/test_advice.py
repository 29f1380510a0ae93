"""Every piece of advice, on tables made up for it: the number that justifies it, the setting to try."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from xrl.common.stopwatch import REST
from xrl.runners.advice import advice
from xrl.runners.profile import Part, Profile

PROFILE = Profile(
    method="M", env_id="E-v0", device="cpu", precision="fp32", compile="off", threads=4, cores=4, parallels=1,
    vectorize="sync", native=False, less_often="updating less often (train_every)",
    peak_gflops=200.0, bf16_speedup=1.0, ms=10.0, launches=None, parts=())


def said(part: str, share: float = 0.8, ms: float = 8.0, operations: float = 100, peak: float = 0.5,
         **keys: Any) -> str:
    """The advice when ``part`` takes ``share``, and two others the rest."""
    def line(name: str, share: float, inside: str = "") -> Part:
        return Part(name, inside, ms, operations, 1.0, peak, share, 1.0)

    others = (1 - share) / 2
    parts = (line("first", others), line(part, share), line("of an update", 1.0, "update"), line("last", others))
    return advice(replace(PROFILE, parts=parts, **keys))


BOUND = {"operations": 4000, "peak": 0.05, "ms": 40.0}


@pytest.mark.parametrize(("keys", "expected"), [
    ({**BOUND, "device": "cuda"}, "The update takes 80% of the time at 5% of the peak, in 4,000 operations of 10 us "
                                  "each: try compile=on, which fuses them."),
    ({**BOUND, "device": "cuda", "compile": "on"}, "of 10 us each: a larger batch_size would cost little more, or "
                                                   "try updating less often (train_every)."),
    ({**BOUND, "peak": 0.004}, "at less than 1% of the peak, in 4,000 operations of 10 us each: a larger batch_size"),
    ({**BOUND, "ms": 400.0, "threads": 1}, "at 5% of the peak: try OMP_NUM_THREADS=4"),  # long ones
    ({"operations": 900, "peak": 0.05}, "at 5% of the peak: use a GPU or a smaller model"),
    ({"operations": 4000, "peak": 0.5, "bf16_speedup": 2.04},  # faster products save a quarter of the time or more
     "The update takes 80% of the time at 50% of the peak: try precision=bf16, whose products are 2.0 times as fast "
     "here."),
    ({"peak": 0.48, "bf16_speedup": 2.04, "threads": 1}, "at 48% of the peak: try OMP_NUM_THREADS=4; 1 is used now."),
    ({"peak": 0.9, "bf16_speedup": 1.2, "threads": 1}, "at 90% of the peak: try OMP_NUM_THREADS=4"),
    ({"peak": 0.9, "bf16_speedup": 0.1, "threads": 1}, "at 90% of the peak: try OMP_NUM_THREADS=4"),
    ({"precision": "bf16", "bf16_speedup": 3.0, "threads": 1}, "try OMP_NUM_THREADS=4"),
    ({"precision": "bf16", "bf16_speedup": 3.0},
     "at 50% of the peak: use a GPU or a smaller model, or try updating less often (train_every)."),
    ({"device": "cuda", "threads": 1}, "at 50% of the peak: use a faster GPU or a smaller model"),
])
def test_when_the_update_dominates(keys, expected):
    assert expected in said("update", **keys)


@pytest.mark.parametrize(("keys", "expected"), [
    ({"native": True}, "The environment step takes 80% of the time (8 ms for each of 1): try vectorize=native "
                       "parallels=4."),
    ({"native": True, "vectorize": "async", "parallels": 16}, "(0.5 ms for each of 16): try vectorize=native "
                                                              "parallels=16."),
    ({}, "(8 ms for each of 1): try vectorize=async parallels=4."),
    ({"ms": 0.9}, "(0.9 ms for each of 1): the environment itself would have to be faster."),  # less than a process
    ({"cores": 1, "threads": 1}, "the environment itself"),
    ({"vectorize": "async", "parallels": 2}, "(4 ms for each of 2): try parallels=4, one for each core."),
    ({"native": True, "vectorize": "native", "parallels": 2}, "try parallels=4, one for each core."),
    ({"native": True, "vectorize": "native", "parallels": 4}, "the environment itself"),
])
def test_when_the_environment_dominates(keys, expected):
    assert expected in said("environment step", **keys)


@pytest.mark.parametrize(("part", "keys", "expected"), [
    ("policy", {}, "The policy takes 80% of the time, 8 ms a call, which serves all 1 environments at once: try "
                   "parallels=8."),
    ("policy", {"parallels": 8}, "which serves all 8 environments at once: try parallels=16."),
    ("replay insert", {"parallels": 3}, "The replay insert takes 80% of the time, 8 ms a row: try parallels=6"),
    ("replay sampling", {}, "The replay sampling takes 80% of the time, 8 ms a batch: check that the replay fits"),
    ("to the device", {}, "8 ms a batch: networks this small may run faster with device=cpu."),
    (REST, {}, "The rest of the loop takes 80% of the time, 8 ms a step for counting and logging: try parallels=2"),
])
def test_when_another_part_dominates(part, keys, expected):
    assert expected in said(part, **keys)


def test_the_largest_part_of_the_loop_is_meant():
    assert said("policy", share=0.32).startswith("The first takes 34% of the time")
    assert said("policy", share=0.36).startswith("The policy takes 36% of the time")
