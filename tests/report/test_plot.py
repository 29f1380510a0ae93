"""Plots: what is drawn, read back from matplotlib's artists, and the pictures' files."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from xrl.common.errors import ConfigError
from xrl.report.plot import COLORS, add_legend, draw_curves, mean_curve, plot
from xrl.report.scores import Curve, write_scores


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def curve(xs, ys, task: str = "t", method: str = "m", seed: int | str = 1) -> Curve:
    return Curve(task, method, str(seed), tuple(map(float, xs)), tuple(map(float, ys)))


def drawn(curves, reference=()):
    """An axis with the curves, and its labelled lines by label."""
    figure = Figure(layout="constrained")
    axis = figure.subplots()
    draw_curves(axis, curves, reference)
    return axis, {line.get_label(): line for line in axis.get_lines() if not line.get_label().startswith("_")}


def test_the_mean_of_seeds_that_were_evaluated_at_other_frames():
    """By hand: seed 1 goes 0, 10, 20 at 0, 10, 20; seed 2 goes 10, 30 at 5, 25."""
    mean = mean_curve([curve([0, 10, 20], [0, 10, 20]), curve([5, 25], [10, 30])])
    np.testing.assert_allclose(mean.xs, [5, 10, 20])  # where both are
    np.testing.assert_allclose(mean.mean, [(5 + 10) / 2, (10 + 15) / 2, (20 + 25) / 2])
    np.testing.assert_allclose(mean.low, [5, 10, 20])
    np.testing.assert_allclose(mean.high, [10, 15, 25])


def test_the_mean_may_go_on_with_half_of_the_seeds():
    curves = [curve([1, 2], [0, 0]), curve([1, 2, 3], [3, 3, 3]), curve([1, 2, 3, 4], [6, 6, 6, 6])]
    np.testing.assert_allclose(mean_curve(curves).xs, [1, 2])
    mean = mean_curve(curves, share=0.5)  # two of three
    np.testing.assert_allclose(mean.xs, [1, 2, 3])
    np.testing.assert_allclose(mean.mean, [3, 3, 4.5])
    np.testing.assert_allclose(mean.low, [0, 0, 3])


def test_seeds_that_share_no_frames_have_no_mean():
    apart = [curve([1, 2], [0, 0]), curve([3, 4], [1, 1], seed=2)]
    assert mean_curve(apart) is None
    assert list(drawn(apart)[1]) == ["m, 2 seeds, which share no frames"]


def test_seeds_are_thin_their_mean_is_thick_and_the_band_spans_them():
    axis, lines = drawn([curve([0, 10], [1, 3], seed=1), curve([0, 10], [3, 5], seed=2)])
    (label, mean), = lines.items()
    assert label == "m, 2 seeds: mean, min to max"
    np.testing.assert_allclose(mean.get_xydata(), [[0, 2], [10, 4]])
    thin = [line for line in axis.get_lines() if line is not mean]
    assert [line.get_ydata().tolist() for line in thin] == [[1, 3], [3, 5]]
    assert max(line.get_linewidth() for line in thin) < mean.get_linewidth()
    (band,) = axis.collections
    box = band.get_paths()[0].get_extents()
    assert (box.x0, box.x1, box.y0, box.y1) == (0, 10, 1, 5)
    assert (axis.get_title(), axis.get_xlabel()) == ("t", "frames")
    assert [axis.xaxis.get_major_formatter()(x) for x in (0, 2e5, 5e7)] == ["0", "200k", "50M"]


def test_a_seed_alone_is_a_line_and_a_point_alone_is_seen():
    axis, lines = drawn([curve([0, 10], [1, 3], seed=7)])
    assert list(lines) == ["m, seed 7"] and len(axis.get_lines()) == 1 and not axis.collections
    assert lines["m, seed 7"].get_marker() == ""
    _, lines = drawn([curve([0], [1])])
    assert lines["m, seed 1"].get_marker() == "o"


def test_methods_differ_in_colour():
    _, lines = drawn([curve([0, 1], [0, 1]), curve([0, 1], [0, 2], method="other")])
    assert [to_hex(line.get_color()) for line in lines.values()] == list(COLORS[:2])


def test_published_curves_lie_beneath():
    reference = [curve(range(11), np.full(11, score), seed=seed, method=method) for seed in (1, 2)
                 for method, score in (("nosched", 8), ("dreamerv2", 3))]
    reference += [curve([0, 1], [0, 1], task="another")]
    ours = [curve([0, 2], [5, 5], seed=seed) for seed in (1, 2)]
    axis, lines = drawn(ours, reference)
    assert list(lines) == ["m, 2 seeds: mean, min to max", "published, 2 seeds: mean, min to max"]
    mean, published = lines.values()
    assert published.get_zorder() < mean.get_zorder() and published.get_color() == "gray"
    assert published.get_xydata().tolist() == [[x, 3] for x in range(5)]  # twice as far as ours go
    assert axis.get_xlim() == (0, 4)


def test_published_curves_that_begin_after_ours_end_are_seen_all_the_same():
    _, lines = drawn([curve([0, 2], [5, 5])], [curve([100, 200, 300], [1, 2, 3])])
    assert lines["published, seed 1"].get_xdata().tolist() == [100, 200]


def test_another_method_is_published_where_the_usual_one_is_not():
    _, lines = drawn([curve([0, 9], [5, 5])], [curve([1, 2], [1, 2], method="rainbow")])
    assert lines["published, seed 1"].get_ydata().tolist() == [1, 2]


def test_our_own_method_is_compared_with_its_namesake():
    reference = [curve([1, 2], [score, score], method=method) for method, score in (("dreamerv2", 1), ("dqn", 2))]
    for method, score in (("DQN", 2), ("DQN (models/a)", 2), ("PPO", 1), ("DreamerV2", 1)):
        _, lines = drawn([curve([0, 9], [5, 5], method=method)], reference)
        assert lines["published, seed 1"].get_ydata().tolist() == [score, score], method
    _, lines = drawn([curve([0, 9], [5, 5], method=method) for method in ("DQN", "DreamerV2")], reference)
    assert lines["published, seed 1"].get_ydata().tolist() == [1, 1]  # of both only the usual one


def test_text_keeps_the_colours_of_its_axis():
    import matplotlib
    with matplotlib.rc_context({"text.color": "#abcdef", "axes.labelcolor": "#abcdef", "xtick.color": "#abcdef"}):
        axis, _ = drawn([curve([0, 1], [0, 1])])
        add_legend(axis.figure)
    texts = [axis.title, axis.xaxis.label, *axis.figure.legends[0].get_texts(), axis.get_xticklabels()[0]]
    assert {to_hex(text.get_color()) for text in texts} == {"#abcdef"}


def test_the_legend_covers_no_curve():
    axis, _ = drawn([curve([0, 1], [0, 1], method=f"a method with a long name {i}") for i in range(4)])
    add_legend(axis.figure)
    axis.figure.draw_without_rendering()
    legend = axis.figure.legends[0].get_window_extent()
    assert legend.y1 <= axis.get_tightbbox().y0
    assert legend.x0 >= 0 and legend.x1 <= axis.figure.bbox.x1


# Files ---------------------------------------------------------------------------------------------------------------

@pytest.fixture
def saved(tmp_path):
    def save(*curves: Curve, name: str = "scores.json") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        write_scores(path, curves)
        return path
    return save


@pytest.fixture
def figures(monkeypatch):
    """The figures that `plot` makes, which are not written to a file: that is what takes the time."""
    made = []
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **kwargs: made.append(self))
    return made


def labels(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize(("ending", "head"), [(".png", b"\x89PNG"), (".SVG", b"<?xml"), (".pdf", b"%PDF")])
def test_pictures(saved, tmp_path, ending, head):
    out = tmp_path / f"curves{ending}"
    assert plot(saved(curve([0, 1], [0, 1])), out=out) == out
    assert out.read_bytes().startswith(head)


def test_a_panel_for_each_task(saved, figures, tmp_path):
    curves = [curve([0, 1], [0, 1], task=task, method=method)
              for task, method in (("a", "one"), ("b", "two"), ("b", "one"), ("c", "one"), ("d", "two"), ("e", "two"))]
    plot(saved(*curves), out=tmp_path / "c.png", panels=True)
    (figure,) = figures
    assert [axis.get_title() for axis in figure.axes] == list("abcde")
    assert labels(figure) == ["one, seed 1", "two, seed 1"]
    by_label = {(axis.get_title(), line.get_label()): to_hex(line.get_color())
                for axis in figure.axes for line in axis.get_lines()}
    assert by_label["b", "two, seed 1"] == by_label["d", "two, seed 1"] == COLORS[1]  # one colour in all panels


def test_tasks_do_not_share_a_panel(saved, tmp_path):
    path = saved(curve([0, 1], [0, 1], task="Catch-v0"), curve([0, 1], [0, 1], task="CartPole-v1"))
    with pytest.raises(ConfigError, match=r"different tasks, Catch-v0, CartPole-v1, .*\(panels=True, --panels\)"):
        plot(path, out=tmp_path / "c.png")


def test_places_are_seeds_of_one_experiment_unless_a_seed_occurs_twice(saved, figures, tmp_path):
    first = saved(curve([0, 1], [0, 1], seed=1), name="first/scores.json")
    second = saved(curve([0, 1], [0, 1], seed=2), name="second/scores.json")
    plot(first, second, out=tmp_path / "c.png")
    third = saved(curve([0, 1], [0, 1], seed=1), name="third$x$/scores.json")
    plot(first, third, out=tmp_path / "c.png")
    plot(first, first, out=tmp_path / "c.png")  # which is one place
    assert [labels(figure) for figure in figures] == [
        ["m, 2 seeds: mean, min to max"], [f"m ({first}), seed 1", f"m ({third}), seed 1"], ["m, seed 1"]]


def test_dollars_are_no_mathematics(saved, tmp_path):
    plot(saved(curve([0, 1], [0, 1], task=r"$\x$", method=r"$\y$")), out=tmp_path / "c.png")


def test_a_reference(saved, figures, tmp_path):
    ours, theirs = saved(curve([0, 1], [0, 1])), saved(curve([0, 1], [0, 1]), name="theirs.json")
    plot(ours, reference=theirs, out=tmp_path / "c.png")
    assert labels(figures[0]) == ["m, seed 1", "published, seed 1"]
    other = saved(curve([0, 1], [0, 1], task="u"), name="theirs.json")
    with pytest.raises(ConfigError, match=r"theirs.json: has no curve of t; it has u. Leave the reference out"):
        plot(ours, reference=other, out=tmp_path / "c.png")


@pytest.mark.parametrize(("out", "message"), [
    ("curves.gif", r"curves.gif' must end in .png, .svg, .pdf"), ("curves", "must end in"),
    ("nowhere/curves.png", "there is no folder .*nowhere'; make it first")])
def test_a_picture_that_cannot_be_made(saved, tmp_path, out, message):
    with pytest.raises(ConfigError, match=message):
        plot(saved(curve([0, 1], [0, 1])), out=tmp_path / out)


def test_a_picture_that_cannot_be_written(saved, figures, tmp_path):
    (tmp_path / "c.png").mkdir()
    with pytest.raises(ConfigError, match=r"out: .*c\.png': cannot be written: Is a directory; name another place"):
        plot(saved(curve([0, 1], [0, 1])), out=tmp_path / "c.png")


def test_runs_of_one_seed_are_not_averaged(figures, tmp_path):
    for name in ("seed_1_a", "seed_1_b"):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("{method: m, env_name: e, env_id: t, seed: 1}")
        (folder / "metrics.jsonl").write_text('{"frames": 1, "eval/return": 2}')
    plot(tmp_path / "models", out=tmp_path / "c.png")
    assert labels(figures[0]) == ["m (seed_1_a), seed 1", "m (seed_1_b), seed 1"]


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ConfigError, match="name at least one run folder"):
        plot(out=tmp_path / "c.png")


def test_without_matplotlib_the_error_says_what_to_install(saved, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r'pip install matplotlib scipy'):
        plot(saved(curve([0, 1], [0, 1])), out=tmp_path / "c.png")


def test_a_list_is_no_place(tmp_path):
    with pytest.raises(ConfigError, match=r"plot: \['a', 'b'\] is no place; .* plot\(\*places\)$"):
        plot(["a", "b"], out=tmp_path / "c.png")


def test_a_picture_is_no_file_of_scores(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    with pytest.raises(ConfigError, match=r"picture.png: is no file of scores; .* \.json of scores$"):
        plot(tmp_path / "picture.png", out=tmp_path / "c.png")


def test_a_folder_is_no_reference(saved, tmp_path):
    with pytest.raises(ConfigError, match="is a folder; name a file: a JSON list of"):
        plot(saved(curve([0, 1], [0, 1])), reference=tmp_path, out=tmp_path / "c.png")
