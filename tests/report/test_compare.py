"""Methods beside each other: every number of the table by hand, what is drawn read back from matplotlib's artists."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from tests.report.runs import make_run, write_lines
from xrl.common.errors import ConfigError
from xrl.report import compare as module
from xrl.report.compare import compare, comparison_table, first_reaching, read_levels
from xrl.report.scores import Curve, find_curves, read_scores, run_curve, write_scores


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def curve(method, seed, ys, minutes=None, task="t", step=10):
    xs = tuple(float(step * index) for index in range(len(ys)))
    return Curve(task, method, str(seed), xs, tuple(map(float, ys)), minutes)


FAST = [curve("Fast", 1, [0, 5, 9], (0.1, 1.0, 2.0)), curve("Fast", 2, [0, 2, 3], (0.1, 2.0, 4.0))]
SLOW = [curve("Slow", 1, [1, 8, 7, 9], (1.0, 10.0, 20.0, 30.0))]
PUBLISHED = [curve("Theirs", 1, [2, 9])]


def rows_of(curves, levels):
    table = comparison_table(curves, levels)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_the_table_by_hand():
    fast, slow, theirs = rows_of([*FAST, *SLOW, *PUBLISHED], {"t": 5})
    assert fast == {
        "task": "t", "method": "Fast", "seeds": 2, "best": (9 + 3) / 2, "final": (7 + 2.5) / 2, "worst": 2.5,
        "frames": 20, "minutes": 3.0, "asked for": 5, "reached by": "1 of 2", "after frames": 10, "after minutes": 1.0}
    assert slow == {
        "task": "t", "method": "Slow", "seeds": 1, "best": 9, "final": 8, "worst": 8, "frames": 30, "minutes": 30.0,
        "asked for": 5, "reached by": "1 of 1", "after frames": 10, "after minutes": 10.0}
    assert (theirs["minutes"], theirs["after minutes"], theirs["after frames"]) == (None, None, 10)


def test_nobody_reached_it_and_nothing_was_asked_for():
    (row,) = rows_of(SLOW, {"t": 10})
    assert (row["reached by"], row["after frames"], row["after minutes"]) == ("0 of 1", None, None)
    (row,) = rows_of(SLOW, {})
    assert "reached by" not in row
    first, second = rows_of([*SLOW, curve("Slow", 1, [3, 3], task="u")], {"t": 5})
    assert first["reached by"] == "1 of 1" and second["reached by"] is None


def test_the_first_score_that_is_enough():
    assert first_reaching(FAST[0], 5) == 1 and first_reaching(FAST[0], 5.1) == 2 and first_reaching(FAST[0], 10) is None


@pytest.mark.parametrize(("said", "tasks", "levels"), [
    (None, ["a", "b"], {}), ("475", ["a"], {"a": 475}), (-200.0, ["a"], {"a": -200}),
    ("b=-2,a=1e3", ["a", "b"], {"a": 1000, "b": -2}), ("b=1", ["a", "b"], {"b": 1})])
def test_levels_are_one_or_one_for_each_task(said, tasks, levels):
    assert read_levels(said, tasks) == levels


@pytest.mark.parametrize(("said", "message"), [
    ("475", r"'475' is one score, and there are 2 tasks; give one to each, as in a=100,b=100"),
    ("c=1", "there is no run of 'c'; there are runs of a, b"), ("a=high", "'high' is no score; give a number"),
    ("a=nan", "'nan' is no score"), ("a=", "'' is no score")])
def test_a_level_that_is_none_is_refused(said, message):
    with pytest.raises(ConfigError, match=f"threshold: {message}"):
        read_levels(said, ["a", "b"])


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """What compare drew: the figure, and what it returned."""
    def run(curves, **keys):
        write_scores(tmp_path / "scores.json", curves)
        figures = []
        save = module.save_figure
        monkeypatch.setattr(module, "save_figure", lambda figure, path: (figures.append(figure), save(figure, path)))
        found = compare(tmp_path / "scores.json", out=tmp_path / "c.png", **keys)
        return figures[0], found

    return run


def lines(axis):
    return {line.get_label(): line for line in axis.get_lines() if not line.get_label().startswith("_")}


def test_a_line_of_two_panels_for_each_task(drawn):
    other = [curve("Slow", 1, [3, 4], (5.0, 6.0), task="u")]
    figure, found = drawn([*FAST, *SLOW, *other], threshold="t=5")
    assert [axis.get_title() for axis in figure.axes] == ["t", "t", "u", "u"]
    assert [axis.get_xlabel() for axis in figure.axes] == ["frames", "minutes of training"] * 2
    frames, minutes = lines(figure.axes[0]), lines(figure.axes[1])
    mean = "Fast, 2 seeds: mean, min to max"
    assert frames.keys() == minutes.keys() == {mean, "Slow, seed 1", "asked for"}
    assert list(minutes["Slow, seed 1"].get_xdata()) == [1, 10, 20, 30]
    assert list(frames["Slow, seed 1"].get_xdata()) == [0, 10, 20, 30]
    assert frames["Slow, seed 1"].get_color() == minutes["Slow, seed 1"].get_color() != minutes[mean].get_color()
    # At 1 minute seed 1 has 5, and seed 2 is on its way from 0 at 0.1 to 2 at 2.
    at = list(minutes[mean].get_xdata()).index(1.0)
    assert minutes[mean].get_ydata()[at] == pytest.approx((5 + 2 * 0.9 / 1.9) / 2)
    assert list(frames["asked for"].get_ydata()) == [5, 5] and "asked for" not in lines(figure.axes[2])
    assert found.picture.stat().st_size > 1000 and found.page.read_text() == found.table.markdown()
    assert str(found).startswith("| task") and str(found).endswith(f"{found.picture}\n{found.page}")


def test_an_axis_on_which_one_method_would_be_a_dot_is_logarithmic(drawn):
    long = [curve("Slow", 1, [1, 2, 3], (1.0, 50.0, 101.0), step=15)]
    figure, _ = drawn([curve("Fast", 1, [0, 5, 9], (0.5, 1.0, 5.0)), *long])
    assert [axis.get_xscale() for axis in figure.axes] == ["linear", "log"]
    assert figure.axes[1].get_xlim()[0] == pytest.approx(0.5)


def test_without_a_clock_there_is_no_second_panel(drawn):
    figure, _ = drawn(PUBLISHED)
    assert [text.get_text() for text in figure.axes[1].texts] == ["nobody kept the time of these"]
    assert not lines(figure.axes[1])


def test_places_are_those_of_plot(tmp_path):
    with pytest.raises(ConfigError, match="compare: nothing to draw"):
        compare()
    with pytest.raises(ConfigError, match=r"no such|no run|nothing"):
        compare(tmp_path / "nowhere")
    write_scores(tmp_path / "s.json", SLOW)
    with pytest.raises(ConfigError, match=r"must end in \.png"):
        compare(tmp_path / "s.json", out=tmp_path / "c.txt")


# Where the clock comes from -------------------------------------------------------------------------------------------


def evaluation(frames, score, wall=None):
    clock = {} if wall is None else {"time/wall": wall}
    return {"agent_steps": frames, "frames": frames, "updates": 0, "eval/return": score, **clock}


def test_a_run_s_clock_is_in_its_log(tmp_path):
    run = make_run(tmp_path)
    write_lines(run / "metrics.jsonl", evaluation(10, 1.0, 30), evaluation(20, 2.0, 90))
    assert run_curve(run).minutes == (0.5, 1.5)
    write_scores(run / "curve.json", [Curve("CartPole-v1", "DreamerV2", "1", (20.0,), (2.0,))])
    assert run_curve(run).minutes == (1.5,)


@pytest.mark.parametrize("second", [evaluation(20, 2.0), evaluation(20, 2.0, "late"), evaluation(20, 2.0, 5)])
def test_a_clock_that_lacks_a_point_or_goes_back_is_none(tmp_path, second):
    run = make_run(tmp_path)
    write_lines(run / "metrics.jsonl", evaluation(10, 1.0, 30), second)
    assert run_curve(run).minutes is None and run_curve(run).xs == (10, 20)


def test_a_curve_on_file_needs_no_log_that_can_be_read(tmp_path):
    run = make_run(tmp_path)
    write_scores(run / "curve.json", [Curve("CartPole-v1", "DreamerV2", "1", (20.0,), (2.0,))])
    write_lines(run / "metrics.jsonl", '{"eval/return": broken', evaluation(20, 2.0, 5))
    assert run_curve(run).minutes is None and run_curve(run).ys == (2.0,)


def test_minutes_are_written_where_they_are_known(tmp_path):
    path = tmp_path / "scores.json"
    write_scores(path, [*SLOW, *PUBLISHED])
    slow, theirs = read_scores(path)
    assert slow.minutes == SLOW[0].minutes and theirs.minutes is None
    assert path.read_text().count("minutes") == 1
    assert find_curves(path)[0].minutes == SLOW[0].minutes


@pytest.mark.parametrize(("minutes", "message"), [
    ("[1, 2]", "4 'xs' but 2 'minutes'"), ("[1, 2, 2, 3]", "'minutes' must increase"), ('"long"', "not a list")])
def test_minutes_of_a_stranger_are_checked(tmp_path, minutes, message):
    path = Path(tmp_path / "scores.json")
    write_scores(path, SLOW)
    path.write_text(path.read_text().replace("[1.0, 10.0, 20.0, 30.0]", minutes))
    with pytest.raises(ConfigError, match=message):
        read_scores(path)
