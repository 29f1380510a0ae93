"""Tables of scores."""

from __future__ import annotations

import csv
import io
import json

import pytest

from xrl.common.errors import ConfigError
from xrl.report.baselines import Baselines
from xrl.report.scores import Curve
from xrl.report.statistics import Estimate
from xrl.report.tables import Table, score_table


def curve(task: str, seed: int, *ys: float, method: str = "m") -> Curve:
    return Curve(task, method, str(seed), tuple(1e6 * (i + 1) for i in range(len(ys))), ys)


CURVES = [curve("x", 1, 5, 10), curve("x", 2, 10, 20, 30), curve("y", 1, 3)]
BASELINES = Baselines("b.json", {"x": {"random": 0.0, "human_gamer": 10.0, "human_record": 100.0},
                                 "y": {"random": 1.0, "human_gamer": 2.0, "human_record": 2.0}}, ("x was corrected.",))


def test_markdown():
    table = Table(("task", "mean", "n"), (("a|b", Estimate(0.5, 0.25, 0.75), 1234), ("c", Estimate(-0.0001), None)),
                  ("A note.",))
    assert table.markdown() == (
        "| task |                 mean |     n |\n"
        "| ---- | -------------------: | ----: |\n"
        "| a\\|b | 0.500 [0.250, 0.750] | 1,234 |\n"
        "| c    |                0.000 |       |\n"
        "\nA note.\n")


@pytest.mark.parametrize(("value", "shown"), [
    (12345.6, "12,346"), (999.5, "1,000"), (123.4, "123"), (19.36, "19.4"), (9.9999, "10.000"), (-20.55, "-20.6"),
    (2.1588, "2.159"), (0.0, "0.000")])
def test_numbers_have_as_many_digits_as_they_need(value, shown):
    assert Table(("v",), ((value,),)).markdown().splitlines()[2].strip("| ") == shown


def test_csv_and_json_have_every_digit():
    table = Table(("task", "mean", "n"), (("a,b", Estimate(0.123456789, 0.1, 0.2), 1234), ("c", None, 2)), ("A note.",))
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    assert rows[0] == {"task": "a,b", "mean": "0.123456789", "mean_low": "0.1", "mean_high": "0.2", "n": "1234"}
    assert rows[1] == {"task": "c", "mean": "", "mean_low": "", "mean_high": "", "n": "2"}
    assert json.loads(json.dumps(table.json())) == {"notes": ["A note."], "rows": [
        {"task": "a,b", "mean": 0.123456789, "mean_low": 0.1, "mean_high": 0.2, "n": 1234},
        {"task": "c", "mean": None, "mean_low": None, "mean_high": None, "n": 2}]}


def test_the_row_of_a_task():
    x, y = score_table(CURVES).json()["rows"]
    assert {key: x[key] for key in ("task", "method", "seeds", "mean", "median", "min", "max", "frames")} == {
        "task": "x", "method": "m", "seeds": 2, "mean": 13.75, "median": 13.75, "min": 7.5, "max": 20.0,
        "frames": 2_000_000}
    assert (x["mean_low"], x["mean_high"]) == (7.5, 20.0)  # of two seeds all that a bootstrap can say
    assert (y["mean"], y["mean_low"], y["frames"]) == (3.0, None, 1_000_000)


def test_a_table_at_some_frames():
    x, y = score_table(CURVES, frames=1.5e6).json()["rows"]
    assert (x["mean"], x["frames"], y["mean"]) == (7.5, 1_000_000, 3.0)
    with pytest.raises(ConfigError, match="no score at or before 10 frames"):
        score_table(CURVES, frames=10)


def test_methods_have_rows_of_their_own():
    rows = score_table([*CURVES, curve("x", 1, 7, method="other")]).json()["rows"]
    assert [(row["task"], row["method"], row["mean"]) for row in rows] == [
        ("x", "m", 13.75), ("y", "m", 3.0), ("x", "other", 7.0)]


def test_against_people():
    table = score_table([*CURVES, curve("x", 1, 7, method="other")], baselines=BASELINES)
    rows = table.json()["rows"]
    assert (rows[0]["gamer"], rows[0]["record"]) == (1.375, 0.1375)
    assert (rows[1]["gamer"], rows[1]["record"]) == (2.0, 2.0)
    over = {row["task"]: (row["gamer"], row["record"]) for row in rows[3:7]}
    assert over["2 games: median of games"] == over["2 games: mean of games"] == (1.6875, 1.06875)
    assert over["2 games: interquartile mean"] == pytest.approx(((0.75 + 2.0 + 2.0) / 3, (0.075 + 0.2 + 2.0) / 3))
    assert over["2 games: mean of games, each clipped at 1"] == (None, 0.56875)
    assert [(row["task"], row["gamer"]) for row in rows[7:8]] == [("1 game: median of games", 0.7)]
    assert "\nx was corrected.\n" in table.markdown()
