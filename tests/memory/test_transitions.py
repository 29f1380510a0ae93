"""Transitions against the list of all rows: which can be drawn, how often, and what comes with them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.memory.test_sequence_replay import ACTION, OBS, arrays, assert_shares, fill, lives, make_row
from xrl.common.errors import ConfigError
from xrl.memory import Priorities, TransitionReplay


def make(num_envs=1, capacity=20, **keys):
    return TransitionReplay(OBS, ACTION, num_envs=num_envs, capacity=capacity, **keys)


def origins(draw, frames=1):
    """(environment, row number) each transition leads from."""
    return [(int(env), int(number)) for env, number in draw.rows.obs["id"][frames - 1]]


def drawable(streams, oldest, n_step, frames):
    """By reading the streams: row t is followed by one of its episode, and the whole window is stored."""
    return {(env, t) for env, stream in enumerate(streams)
            for t in range(oldest + frames - 1, len(stream) - n_step) if stream[t + 1] != "f"}


@settings(max_examples=50, deadline=None)
@given(lives(), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 2**32 - 1))
def test_random_lives(life, n_step, frames, prioritised, seed):
    streams, ring = life
    replay = make(len(streams), ring * len(streams), n_step=n_step, frames=frames,
                  priorities=Priorities(0.6) if prioritised else None)
    rows = fill(replay, *streams)
    possible = drawable(streams, max(0, len(rows) - ring), n_step, frames)
    assert len(replay) == len(possible)
    if not possible:
        return
    draw = replay.sample(64, np.random.default_rng(seed))
    found = origins(draw, frames)
    assert set(found) <= possible and draw.count == len(possible)
    assert draw.probs == pytest.approx(np.full(64, 1 / len(possible)))
    env, t = np.array(found).T
    numbers = t + np.arange(1 - frames, n_step + 1)[:, None]
    for name, drawn in arrays(draw.rows).items():
        truth = np.stack([arrays(row)[name] for row in rows])[numbers, env]
        np.testing.assert_array_equal(drawn, truth, err_msg=name)


def test_uniform_over_transitions_whatever_the_episodes():
    streams = "f.tff..l", "f.......f"[:8]
    replay = make(2, 40)
    fill(replay, *streams)
    expected = drawable(streams, 0, 1, 1)
    draw = replay.sample(20_000, np.random.default_rng(0))
    assert_shares(Counter(origins(draw)), dict.fromkeys(expected, 1 / len(expected)), 20_000)


def test_priorities_decide_the_shares_and_weights_undo_them():
    replay = make(priorities=Priorities(0.5, eps=0.0))
    fill(replay, "f.....")  # transitions from rows 0 to 4
    draw = replay.sample(5, np.random.default_rng(0))
    assert sorted(origins(draw)) == [(0, t) for t in range(5)], "five equal shares, one each"
    errors = {0: 1.0, 1: -4.0, 2: 9.0, 3: 0.0, 4: 16.0}
    replay.reprioritise(draw.places, np.array([errors[t] for _, t in origins(draw)]))
    draw = replay.sample(20_000, np.random.default_rng(1))
    shares = {(0, t): abs(error) ** 0.5 / 10 for t, error in errors.items() if error}
    assert_shares(Counter(origins(draw)), shares, 20_000)
    assert draw.probs == pytest.approx([shares[origin] for origin in origins(draw)])
    by_origin = dict(zip(origins(draw), draw.weights(1.0), strict=True))
    assert by_origin == pytest.approx({origin: 0.1 / share for origin, share in shares.items()})
    assert draw.weights(0.0) == pytest.approx(np.ones(20_000))


def test_a_new_transition_has_the_largest_priority_so_far():
    replay = make(priorities=Priorities(1.0, eps=0.0))
    fill(replay, "f...")
    draw = replay.sample(3, np.random.default_rng(0))
    replay.reprioritise(draw.places, np.array([5.0, 0.5, 0.5]))
    replay.reprioritise(draw.places[:1], np.array([2.0]))
    replay.insert(make_row(4, [""]))
    draw = replay.sample(16_000, np.random.default_rng(1))
    assert Counter(origins(draw))[0, 3] / 16_000 == pytest.approx(5 / 8, abs=0.02)


def test_what_the_ring_has_dropped_is_never_drawn():
    replay = make(capacity=8, priorities=Priorities(1.0))
    rng = np.random.default_rng(0)
    for number in range(60):
        replay.insert(make_row(number, ["f" if number % 6 == 0 else ""]))
        if len(replay):
            draw = replay.sample(4, rng)
            assert min(t for _, t in origins(draw)) > number - 8
            replay.reprioritise(draw.places, rng.random(4))


@pytest.mark.parametrize("prioritised", [False, True])
@pytest.mark.parametrize("storage", ["disk", "memory"])
def test_a_restored_one_draws_and_goes_on_alike(tmp_path, storage, prioritised):
    keys = {"n_step": 2, "frames": 2, "priorities": Priorities(0.7) if prioritised else None,
            "folder": tmp_path if storage == "disk" else None, "keep_files": True}
    one, rng = make(2, 24, **keys), np.random.default_rng(0)
    fill(one, "f...tf...lf....", "f........tf....")
    if prioritised:
        one.reprioritise(one.sample(6, rng).places, rng.random(6))
    other = make(2, 24, **keys)
    other.load(one.save(tmp_path), tmp_path)
    for number in range(15, 40):
        draws = [each.sample(9, np.random.default_rng(number)) for each in (one, other)]
        assert np.array_equal(draws[0].places, draws[1].places) and np.array_equal(draws[0].probs, draws[1].probs)
        for name, drawn in arrays(draws[0].rows).items():
            np.testing.assert_array_equal(drawn, arrays(draws[1].rows)[name])
        for each in (one, other):
            each.insert(make_row(number, ["f" if number % 6 == 0 else "", ""]))
            if prioritised:
                each.reprioritise(draws[0].places[:3], np.arange(3.0))


def test_a_ring_too_small_for_a_window_is_refused():
    with pytest.raises(ConfigError, match=r"buffer_size: 8 gives .* at least 10"):
        make(2, 8, n_step=3, frames=2)
    make(2, 10, n_step=3, frames=2)
