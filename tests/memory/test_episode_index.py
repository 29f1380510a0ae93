"""The queue of finished episodes, against a search through everything that was added."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xrl.memory.episode_index import EpisodeIndex


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=60))
@example(rows=1, min_rows=2, events=[(2, 0), (1, 0)])  # long enough, but not what survives of it
@example(rows=4, min_rows=4, events=[(2, 2), (0, 0), (0, 0), (0, 0), (2, 1), (0, 2)])  # cut as it loses its first
def test_queue_holds_exactly_the_long_enough_survivors(rows, min_rows, events):
    """Bit 0 of an event: is_last; bit 1: is_first. Even episodes of a single row, cut or not, are kept in order."""
    index = EpisodeIndex(num_envs=2, rows=rows, min_rows=min_rows)
    running, finished = [None, None], []
    for number, event in enumerate(events):
        is_first = np.array([bool(bits & 2) or running[env] is None for env, bits in enumerate(event)])
        is_last = np.array([bool(bits & 1) for bits in event])
        oldest = max(0, number + 1 - rows)
        assert index.astray(np.zeros(2, bool)).tolist() == [env for env in range(2) if running[env] is None]
        index.add(number, oldest, is_first, is_last)
        for env in range(2):
            if is_first[env]:
                finished += [(env, running[env], number)] if running[env] is not None else []
                running[env] = number
            if is_last[env]:
                finished.append((env, running[env], number + 1))
                running[env] = None
        expected = sorted(e for e in finished if e[2] - max(e[1], oldest) >= min_rows)
        assert sorted(map(tuple, index.state_dict()["finished"].tolist())) == expected
        assert len(index) == len(expected)
        unfinished = [(env, start, number + 1) for env, start in enumerate(running) if start is not None]
        assert list(map(tuple, index.unfinished(number + 1).tolist())) == unfinished
        if expected:
            assert set(map(tuple, index.draw(20, np.random.default_rng(0)).tolist())) <= set(expected)
