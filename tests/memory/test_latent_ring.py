"""Latent states beside the rows: what is put is got, what is gone stays gone; new windows come once."""

import numpy as np
import pytest

from xrl.common.errors import CheckpointError
from xrl.memory.latent_ring import LatentRing, OnlineQueue


def test_states_come_back_by_row_and_environment():
    ring, expected, rng = LatentRing(10, 3, 4, 2, 300), {}, np.random.default_rng(0)
    for number in range(25):
        deter, stoch = rng.uniform(-1, 1, (3, 4)), rng.integers(0, 300, (3, 2))
        ring.put(np.array(number), np.arange(3), deter, stoch, oldest=max(0, number - 9))
        expected |= {(number, env): (deter[env], stoch[env]) for env in range(3)}
    numbers, envs = np.array([[15, 24], [20, 17]]), np.array([2, 0])
    deter, stoch = ring.get(numbers, np.broadcast_to(envs, (2, 2)))
    for place in np.ndindex(2, 2):
        wanted = expected[int(numbers[place]), int(envs[place[1]])]
        assert deter[place] == pytest.approx(wanted[0], abs=1e-3) and stoch[place].tolist() == wanted[1].tolist()


def test_an_update_writes_its_window_but_not_over_newer_rows():
    ring = LatentRing(5, 2, 1, 1, 4)
    for number in range(8):  # rows 3..7 survive
        ring.put(np.array(number), np.arange(2), np.full((2, 1), number / 10), np.zeros((2, 1)), oldest=0)
    numbers = np.arange(1, 5)[:, None] + np.array([0, 2])  # rows 1..4 of environment 0, rows 3..6 of environment 1
    ring.put(numbers, np.array([0, 1]), np.full((4, 2, 1), 0.9), np.ones((4, 2, 1)), oldest=3)
    deter = np.stack([ring.get(np.arange(3, 8), np.full(5, env))[0][:, 0] for env in range(2)])
    assert deter == pytest.approx(np.array([[0.9, 0.9, 0.5, 0.6, 0.7], [0.9, 0.9, 0.9, 0.9, 0.7]]), abs=1e-3)


def test_a_state_that_is_not_finite_is_not_kept():
    ring = LatentRing(5, 1, 2, 1, 4)
    ring.put(np.arange(3)[:, None], np.arange(1), np.full((3, 1, 2), 0.5), np.ones((3, 1, 1)), oldest=0)
    bad = np.full((3, 1, 2), 0.25)
    bad[1, 0, 1] = np.nan
    ring.put(np.arange(3)[:, None], np.arange(1), bad, np.zeros((3, 1, 1)), oldest=0)
    deter, stoch = ring.get(np.arange(3), np.zeros(3, int))
    assert deter[:, 0].tolist() == [0.25, 0.5, 0.25] and stoch[:, 0].tolist() == [0, 1, 0]


def test_state_dict_comes_back_and_another_shape_is_refused():
    ring, fresh = LatentRing(6, 1, 2, 2, 4), LatentRing(6, 1, 2, 2, 4)
    for number in range(4):
        ring.put(np.array(number), np.arange(1), np.full((1, 2), number / 4), np.full((1, 2), number), oldest=0)
    state = ring.state_dict(end=4)
    assert len(state["deter"]) == 4  # no more than there is
    fresh.load_state_dict(state)
    assert np.array_equal(fresh.get(np.arange(4), np.zeros(4, int)), ring.get(np.arange(4), np.zeros(4, int)))
    with pytest.raises(CheckpointError, match="use the size and buffer_size"):
        LatentRing(6, 1, 3, 2, 4).load_state_dict(state)


def test_bytes_are_known_before():
    ring = LatentRing(7, 3, 5, 2, 257)
    assert LatentRing.nbytes_needed(7, 3, 5, 2, 257) == ring._deter.nbytes + ring._stoch.nbytes
    assert LatentRing.nbytes_needed(7, 3, 5, 2, 256) == 7 * 3 * (10 + 2)


def test_new_windows_come_once_and_do_not_overlap():
    queue, firsts = OnlineQueue(1, 65), []
    for number in range(400):
        queue.inserted(number)
        firsts += queue.take(16, oldest=0)[1].tolist()
    assert firsts == [1, 66, 131, 196, 261, 326]


def test_windows_of_several_environments_wait_and_old_ones_are_dropped():
    queue = OnlineQueue(3, 4)
    for number in range(13):  # windows begin at 1, 5 and 9
        queue.inserted(number)
    envs, firsts = queue.take(4, oldest=0)
    assert list(zip(firsts.tolist(), envs.tolist(), strict=True)) == [(1, 0), (1, 1), (1, 2), (5, 0)]
    fresh = OnlineQueue(3, 4)
    fresh.load_state_dict(queue.state_dict())
    for either in (queue, fresh):
        envs, firsts = either.take(9, oldest=6)
        assert list(zip(firsts.tolist(), envs.tolist(), strict=True)) == [(9, 0), (9, 1), (9, 2)]
