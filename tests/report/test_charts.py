"""Charts: SVG that has no colours, fonts or names of its own, and shows the numbers that it was given."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from tests.report.runs import health_line, make_full_run, make_run, write_lines
from xrl.common.errors import ConfigError
from xrl.report import charts
from xrl.report.run_files import read_run


def parsed(svg: str) -> ET.Element:
    """As HTML reads it, where these names need no declaration."""
    return ET.fromstring(svg.replace("<svg", '<svg xmlns:xlink="x"', 1))


def words(svg: str) -> list[str]:
    return [element.text or "" for element in parsed(svg).iter("text")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return read_run(make_full_run(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def drawn(run) -> list[str]:
    last = run.health[-1]
    return [charts.returns(run, charts.WIDE), charts.returns(run, charts.SMALL),
            charts.metric(run, {"model/post_entropy": "posterior", "model/prior_entropy": "prior"}, "Entropy"),
            charts.horizon(run.health, "open_loop", "Error", "still"), charts.bars(last.lists["kl"], "KL"),
            charts.against(last.points["reward_calibration"], "predicted", "true", "Reward"),
            charts.against(last.points["values"], "value", "realised", "Value")]


def test_it_is_well_formed_and_says_what_it_shows(drawn):
    for svg in drawn:
        root = parsed(svg)
        assert root.attrib["role"] == "img" and root.attrib["aria-label"]
        assert "width" not in root.attrib and "height" not in root.attrib  # the page decides


def test_every_colour_is_the_pages(drawn):
    for svg in drawn:
        colors = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg))
        assert colors <= {"none", *(f"var({name})" for name in charts.VARIABLES.values())}
        assert len(colors) > 2


def test_it_brings_no_style_fonts_or_addresses(drawn):
    for svg in drawn:
        assert not re.search(r"<style|font-family|font: |http|<metadata|<script|<image", svg)


def test_no_two_charts_share_an_id(drawn):
    ids = [found for svg in drawn for found in re.findall(r' id="([^"]+)"', svg)]
    assert len(ids) == len(set(ids)) > 5
    for svg in drawn:
        used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg))
        assert {a or b for a, b in used} <= set(re.findall(r' id="([^"]+)"', svg))


def test_returns_name_what_they_show(drawn):
    assert {"frames", "return", "evaluation, mean", "training episode", "worst to best episode"} <= set(words(drawn[0]))


@pytest.mark.parametrize(("episodes", "mean"), [(19, False), (20, True)])
def test_few_episodes_have_no_running_mean(tmp_path, episodes, mean):
    folder = make_run(tmp_path)
    write_lines(folder / "metrics.jsonl", *({"frames": at, "episode/return": at % 3} for at in range(episodes)))
    shown = words(charts.returns(read_run(folder), charts.WIDE))
    assert "training episode" in shown and ("running mean of those" in shown) == mean


def test_one_evaluation_has_no_band_and_none_no_chart(tmp_path):
    folder = make_run(tmp_path)
    assert charts.returns(read_run(folder), charts.WIDE) == ""
    write_lines(folder / "metrics.jsonl", {"frames": 1, "eval/return": 3, "eval/return_min": 1, "eval/return_max": 4})
    shown = words(charts.returns(read_run(folder), charts.WIDE))
    assert "evaluation, mean" in shown and "worst to best episode" not in shown


def test_horizons_of_the_first_the_middle_and_the_last_evaluation(run, drawn):
    shown = words(drawn[3])
    assert [word for word in shown if word.endswith("frames")] == ["4000 frames", "12k frames", "16k frames"]
    assert "last frame seen, repeated" in shown
    assert charts.horizon(run.health, "reward_error", "Error").count("repeated") == 0


def test_a_horizon_ends_where_the_numbers_do(tmp_path):
    folder = make_run(tmp_path)
    write_lines(folder / "health.jsonl", health_line(500), health_line(600, open_loop=[None] * 50))
    steps, errors = charts._known(read_run(folder).health[0], "open_loop")
    assert steps == list(range(1, 46)) and errors[-1] == 0.45
    assert "1000 frames" in words(charts.horizon(read_run(folder).health, "open_loop", "Error"))
    assert charts.horizon(read_run(folder).health[1:], "open_loop", "Error") == ""


def test_a_young_models_horizon_leaves_the_newest_one_readable(tmp_path):
    folder = make_run(tmp_path)
    write_lines(folder / "health.jsonl", health_line(500, open_loop=[1e6] * 50), health_line(600))
    shown = words(charts.horizon(read_run(folder).health, "open_loop", "Error", "still"))
    assert {"1.5", "2"} & set(shown) and "1M" not in shown  # the baseline ends at 1


def test_bars_are_sorted_and_of_their_heights():
    svg = charts.bars([0.5, float("nan"), 2.0, 1.0], "KL")
    tops = [[float(y) for _, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)]
            for path in re.findall(r'd="([^"]*)"[^>]*clip-path[^>]*fill: var\(--blue\)', svg)]
    heights = [max(ys) - min(ys) for ys in tops]
    assert np.allclose(np.array(heights) / heights[0], [1, 0.5, 0.25], atol=0.01)


def test_nothing_to_draw_is_no_chart(run):
    assert charts.bars([], "x") == charts.bars([float("nan")], "x") == ""
    assert charts.against([], "a", "b", "c") == ""
    assert charts.metric(run, {"no/such": "x"}, "x") == ""
    assert charts.horizon([], "open_loop", "x") == ""


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e100, -1e100], [1e-300, 2e-300], [7.0]])
def test_odd_values_are_drawn_without_a_warning(values, recwarn):
    parsed(charts.against([(value, value) for value in values], "a", "b", "c"))
    parsed(charts.bars(values, "c"))
    assert [str(warning.message) for warning in recwarn] == []


def test_long_lines_are_thinned_to_means():
    x, y = charts.thinned(range(10_000), np.sin(np.arange(10_000)) + 3)
    assert len(x) == len(y) == charts.MOST_POINTS
    assert x[0] == np.arange(34).mean() and abs(y.mean() - 3) < 0.01
    assert [list(part) for part in charts.thinned([1, 2], [3, 4])] == [[1, 2], [3, 4]]


def test_running_mean():
    values = np.random.default_rng(0).normal(size=57).tolist()
    plain = [np.mean(values[max(0, i - 4):i + 1]) for i in range(57)]  # a tenth: 5
    assert np.allclose(charts.running_mean(values), plain)


@pytest.mark.parametrize(("value", "shown"), [
    (0, "0"), (0.25, "0.25"), (1500, "1500"), (20_000, "20k"), (1.5e6, "1.5M"), (2e9, "2B"), (-3, "\N{MINUS SIGN}3"),
    (-2e5, "\N{MINUS SIGN}200k"), (1e-5, "1e\N{MINUS SIGN}05")])
def test_numbers_on_axes(value, shown):
    assert charts.short(value) == shown


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r'pip install matplotlib scipy'):
        charts.bars([1.0], "x")
