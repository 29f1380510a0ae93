"""Dreams drawn: sizes, panels, shades and lines, by their pixels."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from xrl.common.inspection import Dream, Look
from xrl.common.row import Row
from xrl.report.drawing import (
    CONTEXT,
    GAP,
    IMAGINED,
    PAPER,
    TRUE,
    Box,
    across,
    chart,
    dream_frames,
    dream_plot,
    enlarged,
    paper,
)

STEPS, SEEN = 12, 5


def dream(shapes, reward=None, imagined=None):
    """``shapes``: of the observations by name; what was dreamed is what came, until a test changes it."""
    rng = np.random.default_rng(0)
    obs = {name: rng.integers(0, 200, (STEPS, *shape), dtype=np.uint8) if len(shape) == 3
           else rng.normal(size=(STEPS, *shape)).astype(np.float32) for name, shape in shapes.items()}
    reward = np.linspace(0, 1, STEPS, dtype=np.float32) if reward is None else reward
    nothing = np.zeros(STEPS, bool)
    first, last = nothing.copy(), nothing.copy()
    first[0] = last[-1] = True
    rows = Row(obs, np.zeros((STEPS, 2), np.float32), reward, first, last, last.copy())
    look = Look({name: value.copy() for name, value in obs.items()}, reward if imagined is None else imagined,
                np.ones(STEPS, np.float32), np.zeros(STEPS), np.zeros((STEPS, 2)), np.zeros(STEPS))
    return Dream(SEEN, rows, look, reward)


def about(picture, color):
    """Where that colour is, as far as smooth edges let it be."""
    return (np.abs(picture.astype(int) - np.array(color)) < 40).all(-1)


def rows_of(picture, color):
    """Lines of the picture that hold a pixel of that colour."""
    return np.flatnonzero(about(picture, color).any(1))


def columns_of(picture, color):
    return np.flatnonzero(about(picture, color).any(0))


@pytest.mark.parametrize("shapes", [{"image": (64, 64, 1)}, {"image": (64, 64, 3)}, {"image": (21, 33, 3)},
                                    {"camera": (64, 64, 3), "map": (64, 64, 1), "state": (2,)}])
def test_a_film_has_a_frame_for_each_row_and_even_sides(shapes):
    frames = dream_frames(dream(shapes), "Pong, frames 1,000")
    assert len(frames) == STEPS and len({frame.shape for frame in frames}) == 1
    height, width, channels = frames[0].shape
    assert height % 2 == width % 2 == 0 and channels == 3 and all(frame.dtype == np.uint8 for frame in frames)


def test_real_and_dreamed_stand_side_by_side_and_the_error_is_black_where_they_agree():
    one = dream({"image": (20, 30, 3)})
    one.look.obs["image"][7, 5:10, 10:20] = 255  # at row 7, a patch
    frames = dream_frames(one, "t")
    find = lambda frame, film, t: _find(frame, enlarged(film)[t])  # noqa: E731
    for t in (0, 7):
        y, x = find(frames[t], one.rows.obs["image"], t)
        assert _find(frames[t][y:, x + 60:], enlarged(one.look.obs["image"])[t])[0] == 0
        error = frames[t][y:y + 40, -GAP - 60 - frames[t].shape[1] % 2:][:, :60]
        dark = (error.max(-1) < 8)
        assert dark.all() if t == 0 else (not dark[10:20, 20:40].any() and dark[22:].all() and dark[:, :18].all())


def _find(frame, patch):
    """The first place (y, x) of a patch in a frame, pixel for pixel."""
    height, width = patch.shape[:2]
    for y in range(frame.shape[0] - height + 1):
        for x in np.flatnonzero((frame[y, :frame.shape[1] - width + 1] == patch[0, 0]).all(-1)):
            if np.array_equal(frame[y:y + height, x:x + width], patch):
                return y, int(x)
    raise AssertionError("it is not in the frame")


def test_frames_differ_where_the_rows_do_and_tell_how_far_the_dream_is():
    """A cursor moves right; what is written above changes once the rows are no longer seen."""
    still = dream({"image": (16, 16, 1)})
    for obs in (still.rows.obs, still.look.obs):
        obs["image"][:] = 7
    frames = dream_frames(still, "t")
    bottom = [frame[100:] for frame in frames]
    assert np.array_equal(frames[0][:30], frames[SEEN - 1][:30])
    assert not np.array_equal(frames[SEEN - 1][:30], frames[SEEN][:30])
    moved = [np.flatnonzero((one != other).any((0, 2))) for one, other in itertools.pairwise(bottom)]
    assert all(len(columns) == 2 for columns in moved)
    assert [columns[1] for columns in moved] == sorted({columns[1] for columns in moved})


def test_grey_is_grey_and_pixels_stay_sharp():
    film = np.arange(6, dtype=np.uint8).reshape(1, 2, 3, 1)
    large = enlarged(film)
    assert large.shape == (1, 4, 6, 3) and (large == large[..., :1]).all()
    assert large[0, :2, :2, 0].tolist() == [[0, 0], [0, 0]] and large[0, 3, 5, 0] == 5


BOX = Box(10, 20, 110, 60)


def drawn(true, imagined, context=SEEN):
    page = paper(120, 180)
    chart(page, BOX, context, {"true": np.asarray(true, float), "imagined": np.asarray(imagined, float)})
    return page


def test_what_the_model_saw_is_shaded_and_nothing_else():
    page = drawn(np.zeros(12), np.zeros(12))
    inside = page[BOX.y + 3:BOX.y + 20, BOX.x + 1:BOX.x + BOX.width - 1]
    edge = across(BOX, SEEN - 1, 12) - BOX.x - 1
    assert (inside[:, :edge] == CONTEXT).all() and (inside[:, edge + 2:] == PAPER).all()


def test_a_constant_series_is_a_horizontal_line_and_a_larger_one_is_above():
    page = drawn(np.full(12, 2.0), np.full(12, 5.0))[:, BOX.x + 1:BOX.x + BOX.width]
    low, high = rows_of(page[:BOX.y + BOX.height - 1], TRUE), rows_of(page, IMAGINED)
    assert len(low) == 1 and len(high) <= 3 and high.max() < low.min()
    assert BOX.y < high.min() and low.max() < BOX.y + BOX.height


def test_a_line_follows_its_values():
    """A step up in the middle: left of it the line is low, right of it high."""
    page = drawn(np.r_[np.zeros(6), np.ones(6)], np.zeros(12))[BOX.y:BOX.y + BOX.height - 1]
    left, right = rows_of(page[:, BOX.x + 1:BOX.x + 40], TRUE), rows_of(page[:, BOX.x + 70:BOX.x + 108], TRUE)
    assert right.size and right.max() < 10 and (left.size == 0 or left.min() > 45)
    page = drawn(np.zeros(12), np.linspace(0, 1, 12))[BOX.y:BOX.y + BOX.height - 1]
    heights = [rows_of(page[:, x:x + 4], IMAGINED).mean() for x in range(BOX.x + 2, BOX.x + 100, 20)]
    assert heights == sorted(heights, reverse=True) and heights[0] - heights[-1] > 35


def test_no_line_leaves_its_box():
    rng = np.random.default_rng(1)
    page = drawn(rng.normal(size=12) * 1e6, rng.normal(size=12) * 1e6)
    for color in (TRUE, IMAGINED):
        where = about(page, color)
        where[BOX.y + BOX.height + 1:, :BOX.x + BOX.width + 2] = False  # ticks and their numbers
        where[:, BOX.x + BOX.width + 4:] = False  # numbers beside it
        assert where.any()
        ys, xs = np.nonzero(where)
        assert BOX.y <= ys.min() and ys.max() <= BOX.y + BOX.height
        assert BOX.x - 1 <= xs.min() and xs.max() <= BOX.x + BOX.width + 1  # half the line's own width


@pytest.mark.parametrize("steps", [2, 3, 60])
def test_short_and_long_dreams_can_be_drawn(steps):
    one = dream({"state": (2,)})
    pick = np.resize(np.arange(STEPS), steps)
    rows = Row({"state": one.rows.obs["state"][pick]}, one.rows.action[pick], *(
        getattr(one.rows, name)[pick] for name in ("reward", "is_first", "is_last", "is_terminal")))
    look = replace(one.look, obs={"state": one.look.obs["state"][pick]}, reward=one.reward[pick],
                   cont=one.look.cont[pick])
    picture = dream_plot(Dream(1, rows, look, one.reward[pick]), "t")
    assert picture.dtype == np.uint8 and columns_of(picture, IMAGINED).size


def test_vectors_are_a_chart_for_each_entry_and_the_heads():
    few, many = dream_plot(dream({"state": (2,)}), "t"), dream_plot(dream({"state": (7,), "more": (1,)}), "t")
    assert few.shape[0] % 2 == few.shape[1] % 2 == 0
    assert many.shape[0] - few.shape[0] == 2 * 150 and many.shape[1] == few.shape[1]  # four charts in a row
    most = dream_plot(dream({"state": (40,)}), "t")
    assert most.shape[0] - few.shape[0] == 4 * 150  # sixteen entries, reward and probability: five rows


def test_a_dream_that_is_right_has_no_true_line_beside_it_and_a_wrong_one_has():
    """The imagined line is drawn over the true one."""
    right = dream({"state": (1,)})
    wrong = dream({"state": (1,)}, imagined=1 - np.linspace(0, 1, STEPS, dtype=np.float32))
    reward = (slice(76, 170), slice(GAP + 230 + 1, GAP + 230 + 180))  # the second chart
    counts = [about(dream_plot(one, "t")[reward], TRUE).sum() for one in (right, wrong)]
    assert counts[0] < 15 < 60 < counts[1]  # the ticks are of that colour too
