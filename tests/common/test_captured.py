"""Captured graphs and the feed, as far as they go without a GPU: with stand-ins that replay by calling again."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import numpy as np
import pytest
import torch

from xrl.common import accelerate
from xrl.common.accelerate import Captured, Feed, captured


class Pair(NamedTuple):
    left: torch.Tensor
    right: dict


class StandIn:
    """A graph that replays by running its function again on the same tensors, into the same results."""

    def __init__(self):
        self.generators, self.replays, self.rerun = [], 0, None

    def register_generator_state(self, generator):
        self.generators.append(generator)

    def replay(self):
        self.replays += 1
        self.rerun()


@pytest.fixture
def graphs(monkeypatch):
    made = []

    def make():
        made.append(StandIn())
        return made[-1]

    @contextmanager
    def recording(graph, capture_error_mode):
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", make)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(accelerate, "_on_side_stream", lambda function, arguments: function(*arguments))
    return made


def test_every_call_works_once_and_results_outlive_the_next(graphs):
    total = torch.zeros(3)
    calls = []

    def function(pair, scale):
        calls.append(pair.left.data_ptr())
        total.add_(pair.left)
        return {"sum": total * scale, "both": [pair.left + pair.right["x"]]}

    generator = torch.Generator()
    fast = Captured(function, generator)

    def capture(given, structure):
        """As Captured does, but recording runs the function here; undo that, and replay into the same results."""
        before = total.clone()
        original(given, structure)
        total.copy_(before)
        calls.pop()
        inputs, output = fast._inputs, fast._output

        def rerun():
            again = function(*torch.utils._pytree.tree_unflatten(inputs, structure))
            for old, new in zip(torch.utils._pytree.tree_leaves(output), torch.utils._pytree.tree_leaves(again),
                                strict=True):
                old.copy_(new)

        graphs[-1].rerun = rerun

    original, fast._capture = fast._capture, capture
    results = []
    for n in range(1, 9):
        pair = Pair(torch.full((3,), float(n)), {"x": torch.full((3,), 10.0 * n)})
        results.append(fast(pair, torch.tensor(2.0)))
    assert len(calls) == 8 and len(graphs) == 1 and graphs[0].replays == 8 - Captured.WARM_UP
    assert graphs[0].generators == [generator]
    for n, result in enumerate(results, start=1):
        assert result["sum"].tolist() == [2.0 * n * (n + 1) / 2] * 3, "each call counted once, results kept apart"
        assert result["both"][0].tolist() == [11.0 * n] * 3
    assert len(set(calls[Captured.WARM_UP:])) == 1, "recorded calls read the same memory"
    other = fast(Pair(torch.ones(1), {"x": torch.ones(1)}), torch.tensor(1.0))
    assert other["both"][0].tolist() == [2.0] and graphs[0].replays == 5, "another shape runs as it is"


@pytest.mark.parametrize("setting", ["auto", "off"])
def test_nothing_is_captured_on_a_cpu(setting):
    def function(x):
        return x

    assert captured(function, setting, torch.Generator()) is function


def test_feed_on_a_cpu_hands_the_arrays_on():
    arrays = {"image": np.arange(12, dtype=np.uint8).reshape(3, 4), "flag": np.array([True, False])}
    tensors = Feed(torch.device("cpu"))(arrays)
    assert tensors["image"].dtype == torch.uint8 and tensors["flag"].dtype == torch.bool
    assert tensors["image"].data_ptr() == arrays["image"].ctypes.data


class Stream:
    """A stream that does everything at once, and notes what it waited for."""

    def __init__(self):
        self.waited = []

    def wait_stream(self, other):
        self.waited.append(other)

    def wait_event(self, event):
        self.waited.append(event)


class Event:
    def __init__(self):
        self.recorded = 0

    def record(self):
        self.recorded += 1

    def synchronize(self):
        pass


@pytest.fixture
def feed(monkeypatch):
    """The way to a GPU, walked on a CPU."""
    main = Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
    feed = Feed(torch.device("cpu"))
    feed._stream = Stream()
    return feed


def arrays(number, envs=2):
    return {"image": np.full((envs, 3), number, np.uint8), "flag": np.full(envs, number % 2 == 0)}


def test_feed_keeps_a_batch_until_the_next_call_but_one(feed):
    before = feed(arrays(0))
    for number in range(1, 8):
        batch = feed(arrays(number))
        assert before["image"].tolist() == [[number - 1] * 3] * 2, "still good"
        before = dict(batch)
        assert batch.pop("image").tolist() == [[number] * 3] * 2  # callers take out what they need
        assert batch["flag"].tolist() == [number % 2 == 0] * 2


def test_feed_takes_batches_of_several_shapes(feed):
    """The training environments' rows, and in between those of an evaluation with more of them."""
    for number in range(9):
        envs = 5 if number % 3 == 2 else 1
        assert feed(arrays(number, envs))["image"].tolist() == [[number] * 3] * envs


def test_feed_overwrites_only_what_was_read_and_is_read_only_when_written(feed):
    feed(arrays(0))
    main = torch.cuda.current_stream()
    assert feed._stream.waited == [main] and [type(waited) for waited in main.waited] == [Event]
    assert main.waited[0].recorded == 1
