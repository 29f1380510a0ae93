"""The replay against a plain list of every row ever inserted, and its draws against exact probabilities."""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xrl.common.errors import CheckpointError, ConfigError, EnvironmentFault
from xrl.common.row import ActionSpec, ObsSpec, Row
from xrl.memory import SequenceReplay

OBS = {"id": ObsSpec("vector", (2,)), "screen": ObsSpec("image", (2, 3, 1))}
ACTION = ActionSpec("discrete", 3)
FLAGS = ("is_first", "is_last", "is_terminal")


def make_replay(num_envs=1, capacity=20, seq_len=3, sampling="steps", min_length=1, prioritize_ends=False, **storage):
    return SequenceReplay(OBS, ACTION, num_envs=num_envs, capacity=capacity, seq_len=seq_len, sampling=sampling,
                          min_length=min_length, prioritize_ends=prioritize_ends, **storage)


def make_row(number: int, flags: list[str]) -> Row:
    """Row ``number`` of environments with flags like "f" (first), "l" (last), "t" (terminal), "" (none).

    Every entry differs between rows and environments; ``obs["id"]`` says which they are.
    """
    envs = np.arange(len(flags))
    return Row(
        obs={"id": np.stack([envs, np.full_like(envs, number)], axis=1).astype(np.float32),
             "screen": ((7 * number + 31 * envs)[:, None, None, None] + np.arange(6).reshape(1, 2, 3, 1)
                        ).astype(np.uint8)},
        action=np.eye(3, dtype=np.float32)[(number + envs) % 3],
        reward=(number + envs / 8).astype(np.float32),
        is_first=np.array(["f" in flag for flag in flags]),
        is_last=np.array(["l" in flag for flag in flags]),
        is_terminal=np.array(["t" in flag for flag in flags]))


def fill(replay: SequenceReplay, *streams: str) -> list[Row]:
    """Insert one row per character ("f", "l", "t" for terminal and last, "." for none), one stream per environment."""
    rows = [make_row(number, ["lt" if flag == "t" else flag for flag in flags])
            for number, flags in enumerate(zip(*streams, strict=True))]
    for row in rows:
        replay.insert(row)
    return rows


def episode(steps: int) -> str:
    return "f" + "." * (steps - 1) + "t"


def origins(batch: Row) -> list[tuple[int, int]]:
    """(environment, number of the first row) of each window."""
    return [(int(env), int(number)) for env, number in batch.obs["id"][0]]


def assert_shares(counts: Counter, expected: dict, draws: int) -> None:
    """The draws are those expected, no more and no less, within five standard deviations."""
    assert counts.keys() == expected.keys()
    for outcome, share in expected.items():
        sigma = np.sqrt(draws * share * (1 - share))
        assert abs(counts[outcome] - draws * share) <= 5 * sigma + 1e-9, (outcome, counts[outcome] / draws, share)


def assert_windows_are_as_inserted(batch: Row, rows: list[Row], seq_len: int) -> None:
    env, first = np.array(origins(batch)).T
    numbers = first + np.arange(seq_len)[:, None]
    inserted = [arrays(row) for row in rows]
    for name, drawn in arrays(batch).items():
        truth = np.stack([entries[name] for entries in inserted])[numbers, env]
        if name == "is_first":
            truth[0] = True
        np.testing.assert_array_equal(drawn, truth, err_msg=name)


def arrays(row: Row) -> dict[str, np.ndarray]:
    named = {field.name: getattr(row, field.name) for field in fields(row) if field.name != "obs"}
    return named | {f"obs {name}": value for name, value in row.obs.items()}


def test_shapes_and_types_are_time_first_and_contiguous():
    replay = make_replay(num_envs=2)
    fill(replay, "f....", "f....")
    batch = replay.sample(4, np.random.default_rng(0))
    shapes = {"obs id": (3, 4, 2), "obs screen": (3, 4, 2, 3, 1), "action": (3, 4, 3), "reward": (3, 4)}
    shapes |= {flag: (3, 4) for flag in FLAGS}
    types = {name: np.float32 for name in shapes} | {"obs screen": np.uint8} | {flag: np.bool_ for flag in FLAGS}
    for name, array in arrays(batch).items():
        assert array.shape == shapes[name] and array.dtype == types[name] and array.flags.c_contiguous, name


def test_every_window_around_the_wrap_is_contiguous_reachable_and_equally_likely():
    rows_per_ring, seq_len, draws = 7, 3, 20_000
    replay = make_replay(num_envs=2, capacity=2 * rows_per_ring, seq_len=seq_len)
    rows: list[Row] = []
    rng = np.random.default_rng(1)
    for number in range(3 * rows_per_ring + 2):
        rows.append(make_row(number, ["f" if number % 5 == 0 else "", "f" if number % 4 == 0 else ""]))
        replay.insert(rows[-1])
        stored = min(len(rows), rows_per_ring)
        assert replay.ready == (stored >= seq_len)
        if not replay.ready:
            continue
        starts = range(len(rows) - stored, len(rows) - seq_len + 1)
        expected = {(env, start): 0.5 / len(starts) for env in range(2) for start in starts}
        batch = replay.sample(draws, rng)
        assert_shares(Counter(origins(batch)), expected, draws)
        numbers = batch.obs["id"][:, :, 1]
        assert (np.diff(numbers, axis=0) == 1).all() and (batch.obs["id"][:, :, 0] == batch.obs["id"][0, :, 0]).all()
        assert_windows_are_as_inserted(replay.sample(20, rng), rows, seq_len)


@st.composite
def lives(draw: st.DrawFn) -> tuple[list[str], int]:
    """Flags of several environments, episodes ending or being cut anywhere, and rows per ring."""
    num_envs, length = draw(st.integers(1, 3)), draw(st.integers(6, 60))
    streams = []
    for _ in range(num_envs):
        stream = ""
        while len(stream) < length:
            steps, end = draw(st.integers(0, 14)), draw(st.sampled_from("tl."))
            stream += "f" + "." * steps + (end if end != "." else "")
        streams.append(stream[:length])
    return streams, draw(st.integers(6, 25))


@settings(max_examples=60, deadline=None)
@given(lives(), st.integers(2, 5), st.integers(1, 5), st.booleans(), st.integers(0, 2**32 - 1))
def test_random_lives(life, seq_len, min_length, prioritize_ends, seed):
    streams, ring = life
    rng = np.random.default_rng(seed)
    for sampling in ("steps", "episodes"):
        replay = make_replay(len(streams), ring * len(streams), seq_len, sampling, min_length, prioritize_ends)
        rows = fill(replay, *streams)
        surviving = rows[-ring:]
        assert replay.agent_steps == sum(int((~row.is_first).sum()) for row in surviving)
        assert len(replay) == len(surviving) * len(streams)
        possible = windows_by_search(streams, len(rows) - len(surviving), seq_len, min_length, sampling)
        assert replay.ready == bool(possible)
        if possible:
            batch = replay.sample(64, rng)
            assert set(origins(batch)) <= possible
            assert_windows_are_as_inserted(batch, rows, seq_len)


def windows_by_search(streams: list[str], oldest: int, seq_len: int, min_length: int, sampling: str) -> set:
    """All windows that may be drawn, found by reading the streams from the front each time."""
    def inside(env: int, start: int, end: int) -> set:
        return {(env, first) for first in range(max(start, oldest), end - seq_len + 1)}

    if sampling == "steps":
        return set().union(*(inside(env, 0, len(stream)) for env, stream in enumerate(streams)))
    finished, unfinished = set(), set()
    for env, stream in enumerate(streams):
        starts = [number for number, flag in enumerate(stream) if flag == "f"]
        for start, end in zip(starts, [*starts[1:], len(stream)], strict=True):
            done = end < len(stream) or stream[end - 1] in "tl"
            if not done:
                unfinished |= inside(env, start, end)
            elif end - max(start, oldest) >= max(seq_len, min_length + 1):
                finished |= inside(env, start, end)
    return finished or unfinished


def test_sampling_leaves_the_stored_rows_as_they_are():
    replay = make_replay(seq_len=3)
    rows = fill(replay, "f.....")
    for seed in range(5):
        batch = replay.sample(4, np.random.default_rng(seed))
        for array in arrays(batch).values():
            array[...] = 0
    assert_windows_are_as_inserted(replay.sample(20, np.random.default_rng(9)), rows, 3)


def test_steps_windows_cross_episode_ends_and_keep_the_flags_inside():
    replay = make_replay(seq_len=4)
    fill(replay, "f.tf..")
    batch = replay.sample(200, np.random.default_rng(0))
    assert set(origins(batch)) == {(0, 0), (0, 1), (0, 2)}  # the last reaches into the unfinished episode
    crossing = origins(batch).index((0, 1))
    np.testing.assert_array_equal(batch.is_first[:, crossing], [True, False, True, False])
    np.testing.assert_array_equal(batch.is_terminal[:, crossing], [False, True, False, False])


def test_batches_mix_environments():
    replay = make_replay(num_envs=4, capacity=80)
    fill(replay, *["f" + "." * 9] * 4)
    assert {env for env, _ in origins(replay.sample(32, np.random.default_rng(0)))} == {0, 1, 2, 3}


@pytest.mark.parametrize(("steps", "ends", "last_share", "other_share"), [
    (100, True, 0.5, 1 / 102),
    (100, False, 1 / 52, 1 / 52),
    (1000, True, 51 / 1002, 1 / 1002),
])
def test_prioritized_ends(steps, ends, last_share, other_share):
    """R rows, T = 50: the official code's start = min(randint(0, R - T + 1 [+ T]), R - T)."""
    replay = make_replay(capacity=2000, seq_len=50, sampling="episodes", min_length=50, prioritize_ends=ends)
    fill(replay, episode(steps))
    draws = 100_000
    last = steps + 1 - 50
    numbers = Counter()
    rng = np.random.default_rng(2)
    for _ in range(20):
        numbers.update(first for _, first in origins(replay.sample(draws // 20, rng)))
    assert_shares(numbers, {start: last_share if start == last else other_share for start in range(last + 1)}, draws)


def test_the_extra_chances_are_seq_len_whatever_min_length_is():
    replay = make_replay(seq_len=3, sampling="episodes", min_length=5, prioritize_ends=True)
    fill(replay, episode(5))  # six rows, starts 0 to 3: randint(0, 4 + 3), clipped to 3
    batch = replay.sample(10_000, np.random.default_rng(2))
    assert_shares(Counter(origins(batch)), {(0, 0): 1 / 7, (0, 1): 1 / 7, (0, 2): 1 / 7, (0, 3): 4 / 7}, 10_000)


def test_episodes_are_equally_likely_whatever_their_length_and_too_short_ones_are_never_drawn():
    streams = episode(50) + episode(49) + episode(5000)
    replay = make_replay(capacity=6000, seq_len=50, sampling="episodes", min_length=50, prioritize_ends=True)
    rows = fill(replay, streams)
    batch = replay.sample(4000, np.random.default_rng(3))
    starts = [start for start, flag in enumerate(streams) if flag == "f"]
    picked = Counter(sum(first >= start for start in starts) for _, first in origins(batch))
    assert_shares(picked, {1: 0.5, 3: 0.5}, 4000)
    assert batch.is_first[0].all() and not batch.is_first[1:].any()
    assert not batch.is_last[:-1].any()  # an end inside would mean that the window goes on into the next episode
    assert_windows_are_as_inserted(replay.sample(4, np.random.default_rng(4)), rows, 50)


def test_episodes_of_all_environments_are_one_pool():
    """Environment 0 finished three episodes, environment 1 only one: a quarter each."""
    replay = make_replay(num_envs=2, capacity=100, sampling="episodes", min_length=2)
    fill(replay, "f.tf.tf.tf", "f........t")
    batch = replay.sample(8000, np.random.default_rng(5))
    shares = {(0, 0): 0.25, (0, 3): 0.25, (0, 6): 0.25} | {(1, start): 0.25 / 8 for start in range(8)}
    assert_shares(Counter(origins(batch)), shares, 8000)


def test_a_cut_episode_is_finished_by_the_next_reset_row():
    replay = make_replay(seq_len=3, sampling="episodes", min_length=3)
    rows = fill(replay, "f....")
    assert replay.sampling_unfinished
    replay.insert(make_row(len(rows), ["f"]))
    assert not replay.sampling_unfinished
    assert set(origins(replay.sample(200, np.random.default_rng(6)))) == {(0, 0), (0, 1), (0, 2)}


def test_unfinished_episodes_are_drawn_only_while_there_is_no_other():
    replay = make_replay(num_envs=2, capacity=40, seq_len=3, sampling="episodes", min_length=4, prioritize_ends=True)
    fill(replay, "f.tf", "f...")  # the finished episode is too short, environment 0's new one has a single row
    assert replay.ready and replay.sampling_unfinished
    batch = replay.sample(4000, np.random.default_rng(7))
    assert_shares(Counter(origins(batch)), {(1, 0): 0.5, (1, 1): 0.5}, 4000)  # its end is none: no extra chance
    replay.insert(make_row(4, ["", "l"]))
    assert not replay.sampling_unfinished
    assert {env for env, _ in origins(replay.sample(100, np.random.default_rng(8)))} == {1}


def test_a_partly_overwritten_episode_shrinks_until_it_is_too_short():
    replay = make_replay(capacity=8, seq_len=3, sampling="episodes", min_length=4)
    rows = fill(replay, "f.....tf")  # rows 0 to 6, and the ring is full
    for oldest in (1, 2):
        replay.insert(make_row(len(rows) + oldest - 1, [""]))
        found = set(origins(replay.sample(300, np.random.default_rng(9))))
        assert found == {(0, first) for first in range(oldest, 5)}
    replay.insert(make_row(len(rows) + 2, [""]))  # four rows survive, min_length + 1 = 5 are needed
    assert replay.sampling_unfinished
    assert set(origins(replay.sample(300, np.random.default_rng(9)))) == {(0, 7), (0, 8)}


def test_an_episode_longer_than_the_ring_counts_from_its_oldest_surviving_row():
    replay = make_replay(capacity=6, seq_len=3, sampling="episodes", min_length=4)
    fill(replay, episode(20))
    assert not replay.sampling_unfinished
    assert set(origins(replay.sample(300, np.random.default_rng(10)))) == {(0, first) for first in range(15, 19)}


def test_not_ready_says_what_to_change():
    replay = make_replay(seq_len=5)
    fill(replay, "f...")
    with pytest.raises(ConfigError, match=r"4 rows per environment.*seq_len = 5; raise start_training"):
        replay.sample(1, np.random.default_rng(0))
    replay = make_replay(seq_len=4, sampling="episodes", min_length=9)
    fill(replay, "f..tf..tf")
    assert not replay.ready and not replay.sampling_unfinished
    with pytest.raises(ConfigError, match=r"replay\.min_length: 9 .*replay\.sampling=steps"):
        replay.sample(1, np.random.default_rng(0))


def test_capacity_counts_agent_steps_and_reset_rows_take_a_place():
    replay = make_replay(num_envs=2, capacity=21)  # ten rows each: never more than the capacity
    fill(replay, "f" + "." * 7, "f" + "." * 7)
    assert len(replay) == 16 and replay.agent_steps == 14
    for number in range(8, 40):
        replay.insert(make_row(number, ["", ""]))
    assert len(replay) == replay.agent_steps == 20


def test_a_ring_too_small_for_a_draw_is_refused_and_the_size_named_is_enough():
    with pytest.raises(ConfigError, match=r"buffer_size: 11 gives each of the 2 .* 5 rows.* at least 12"):
        make_replay(num_envs=2, capacity=11, seq_len=6)
    make_replay(num_envs=2, capacity=12, seq_len=6)
    with pytest.raises(ConfigError, match="at least 10"):
        make_replay(capacity=9, seq_len=3, sampling="episodes", min_length=9)
    make_replay(capacity=10, seq_len=3, sampling="episodes", min_length=9)


def test_bytes_are_known_beforehand_and_images_cost_one_byte_per_pixel():
    spec = {"image": ObsSpec("image", (64, 64, 1))}
    needed = SequenceReplay.nbytes_needed(spec, ActionSpec("discrete", 6), 1001, 4)
    assert needed == 1000 * (64 * 64 + 6 * 4 + 4 + 3)
    assert SequenceReplay.nbytes_needed(OBS, ACTION, 100, 3) == 99 * (8 + 6 + 12 + 4 + 3)


@pytest.mark.parametrize("sampling", ["steps", "episodes"])
@pytest.mark.parametrize("stream", ["f...tf", "f....tf...f.....tf....tf...tf......"])
@pytest.mark.parametrize(("before", "after"), [("disk", "disk"), ("memory", "memory"), ("disk", "memory")])
def test_a_restored_replay_draws_and_goes_on_alike(tmp_path, sampling, stream, before, after):
    def make(storage):
        folder = tmp_path if storage == "disk" else None
        return make_replay(capacity=16, sampling=sampling, min_length=3, folder=folder, keep_files=True, segment_rows=5)

    original, restored = make(before), make(after)
    fill(original, stream)
    restored.load(original.save(tmp_path), tmp_path)
    for number in range(len(stream), len(stream) + 20):
        assert_alike(original, restored, number)
        for replay in (original, restored):
            replay.insert(make_row(number, ["f" if number % 6 == 0 else ""]))


def test_where_rows_are_kept_changes_nothing(tmp_path):
    """Segments of every size, in memory and on disk, against one segment that holds everything."""
    plain = make_replay(num_envs=2, capacity=26)
    others = [make_replay(num_envs=2, capacity=26, folder=folder, mapped=mapped, segment_rows=rows)
              for rows in (1, 2, 3, 7, 13, 40)
              for folder, mapped in ((None, True), (tmp_path / f"m{rows}", True), (tmp_path / str(rows), False))]
    for number in range(60):
        row = make_row(number, ["f" if number % 5 == 0 else "", "f" if number % 7 == 0 else ""])
        for replay in (plain, *others):
            replay.insert(row)
        for other in others if plain.ready else ():
            assert_alike(plain, other, number)


def test_files_of_forgotten_rows_go_unless_a_checkpoint_may_count_on_them(tmp_path):
    for keep in (False, True):
        folder = tmp_path / str(keep)
        replay = make_replay(capacity=8, folder=folder, keep_files=keep, segment_rows=3)
        fill(replay, "f" + "." * 29)
        assert len(list(folder.iterdir())) == (9 if keep else 2)


def test_a_checkpoint_writes_only_what_is_new(tmp_path):
    replay = make_replay(capacity=100, segment_rows=10)
    fill(replay, "f" + "." * 24)
    first = replay.save(tmp_path)["files"]
    stamps = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    for number in range(25, 30):
        replay.insert(make_row(number, [""]))
    second = replay.save(tmp_path)["files"]
    assert second[:3] == first and [file["rows"] for file in second] == [10, 10, 5, 5]
    assert all((tmp_path / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items())
    assert replay.save(tmp_path)["files"] == second, "nothing new, nothing written"


def test_while_the_disk_is_full_rows_stay_in_memory(tmp_path, monkeypatch, capsys):
    plain, replay = make_replay(capacity=100), make_replay(capacity=100, folder=tmp_path, segment_rows=4)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("xrl.memory.segments.write_arrays", full)
    for number in range(20):
        for each in (plain, replay):
            each.insert(make_row(number, ["f" if number == 0 else ""]))
    assert capsys.readouterr().err.count("No space left") == 1
    assert list(tmp_path.iterdir()) == []
    assert_alike(plain, replay, 1)
    with pytest.raises(OSError, match="No space"):
        replay.save(tmp_path)
    monkeypatch.undo()
    state = replay.save(tmp_path)
    assert_alike(plain, replay, 2)
    restored = make_replay(capacity=100, folder=tmp_path, segment_rows=4)
    restored.load(state, tmp_path)
    assert_alike(plain, restored, 3)


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(tmp_path):
    replay = make_replay(segment_rows=2)
    fill(replay, "f....")
    state = replay.save(tmp_path)
    for other in (make_replay(capacity=30), make_replay(seq_len=4)):
        with pytest.raises(CheckpointError, match="it was made with"):
            other.load(state, tmp_path)
        assert len(other) == 0
    name = state["files"][1]["name"]
    gap = [state["files"][0], state["files"][2]]
    for broken, message in ((gap, "rows before number 4 are missing"),
                            ([{**state["files"][0], "rows": 3}], r"of shape \[2, 1.*not .*\[3, 1")):
        other = make_replay()
        with pytest.raises(CheckpointError, match=message):
            other.load({**state, "files": broken}, tmp_path)
        assert len(other) == 0
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: .*No such file"):
        make_replay().load(state, tmp_path)


def assert_alike(one: SequenceReplay, other: SequenceReplay, seed: int) -> None:
    assert one.agent_steps == other.agent_steps and len(one) == len(other)
    ours, theirs = (arrays(replay.sample(8, np.random.default_rng(seed))) for replay in (one, other))
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize(("change", "message"), [
    ({"reward": np.zeros((2, 1), np.float32)}, r"reward: expected float32 of shape \(2,\), got .*\(2, 1\)"),
    ({"action": np.zeros((1, 3), np.float32)}, r"action: .*\(2, 3\)"),
    ({"is_last": np.zeros(2, np.float32)}, "is_last: expected bool"),
    ({"screen": np.zeros((2, 2, 3, 1), np.float32)}, r"obs\.screen: expected uint8 .* got float32"),
    ({"screen": np.zeros((2, 4, 3, 1), np.uint8)}, r"obs\.screen: .*\(2, 2, 3, 1\)"),
    ({"extra": np.zeros((2, 1), np.float32)}, r"row has entries .*obs\.extra"),
])
def test_a_row_that_breaks_the_contract_is_refused_and_not_stored(change, message):
    replay = make_replay(num_envs=2)
    row = make_row(0, ["f", "f"])
    for name, value in change.items():
        if name in ("screen", "extra"):
            row.obs[name] = value
        else:
            setattr(row, name, value)
    with pytest.raises(EnvironmentFault, match=message):
        replay.insert(row)
    assert len(replay) == 0


def test_an_episode_must_open_with_is_first():
    replay = make_replay(num_envs=2)
    with pytest.raises(EnvironmentFault, match=r"environment 1: .*must be is_first"):
        replay.insert(make_row(0, ["f", ""]))
    fill(replay, "f.t", "f..")
    with pytest.raises(EnvironmentFault, match="environment 0"):
        replay.insert(make_row(3, ["", ""]))
    replay.insert(make_row(3, ["f", ""]))
    assert len(replay) == 8


def test_float64_rows_are_stored_as_float32():
    replay = make_replay(seq_len=2)
    for number, flag in enumerate(["f", ""]):
        row = make_row(number, [flag])
        row.reward = row.reward + np.float64(0.1)
        replay.insert(row)
    batch = replay.sample(1, np.random.default_rng(0))
    np.testing.assert_array_equal(batch.reward[:, 0], np.float32([0.1, 1.1]))
