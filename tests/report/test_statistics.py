"""Statistics against numbers by hand, an oracle in NumPy, and the published table."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest

from xrl.common.errors import ConfigError
from xrl.report.baselines import Baselines, read_baselines
from xrl.report.scores import Curve, read_scores
from xrl.report.statistics import Estimate, final_score, final_scores, human_scores, summarise

REFERENCE = Path(__file__).parents[2] / "../shared/reference/scores"


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def curve(*ys: float, task: str = "t", method: str = "m", seed: str = "1") -> Curve:
    return Curve(task, method, seed, tuple(10.0 * (i + 1) for i in range(len(ys))), tuple(ys))


def test_the_final_score_is_the_mean_of_the_last_points():
    assert final_score(curve(100, 100, 1, 2, 3, 4, 10)) == 4.0
    assert final_score(curve(1, 2)) == 1.5
    assert final_score(curve(1, 2, 3), last=1) == 3.0


def test_the_untrained_policy_does_not_count():
    begun = Curve("t", "m", "1", (0.0, 10.0, 20.0), (-90.0, 1.0, 2.0))
    assert final_score(begun) == 1.5 and final_score(begun, frames=10) == 1.0
    assert final_score(begun, frames=9) == -90.0  # all there is


def test_the_final_score_at_some_frames():
    assert final_score(curve(1, 2, 9), frames=20) == 1.5  # the point at these very frames counts
    assert final_score(curve(1, 2, 9), frames=19.9) == 1.0
    with pytest.raises(ConfigError, match=r"t, m, seed 1: has no score at or before 9 frames, the first is at 10"):
        final_score(curve(1, 2), frames=9)
    assert final_scores([curve(1), curve(3, task="u"), curve(5, 7)], frames=10) == {"t": [1.0, 5.0], "u": [3.0]}


def test_aggregates_by_hand():
    """rliable's definitions: the IQM drops the lowest and the highest quarter of all scores, here 2 of 8 each."""
    summary = summarise({"a": [0, 1, 2, 100], "b": [3, 4, 5, 50], "c": [7, 7]})
    assert summary.mean.value == pytest.approx((103 / 4 + 62 / 4 + 7) / 3)
    assert summary.median.value == 62 / 4
    assert summarise({"a": [0, 1, 2, 100], "b": [3, 4, 5, 50]}).iqm.value == (2 + 3 + 4 + 5) / 4


def test_of_one_task_the_median_is_that_of_its_seeds():
    summary = summarise({"a": [1, 2, 30]})
    assert (summary.mean.value, summary.median.value) == (11.0, 2.0)


def oracle(scores: dict[str, list[float]], draws: int) -> np.ndarray:
    """(mean, median, IQM) of ``draws`` resamplings within tasks, in a plain loop; rows of (draws, 3)."""
    rng, rows = np.random.default_rng(123), []
    for _ in range(draws):
        drawn = [rng.choice(values, len(values)) for values in scores.values()]
        means = [sum(values) / len(values) for values in drawn]
        pooled = sorted(np.concatenate(drawn))
        cut = len(pooled) // 4
        middle = pooled[cut:len(pooled) - cut]
        rows.append((sum(means) / len(means), np.median(means), sum(middle) / len(middle)))
    return np.array(rows)


def test_intervals_against_a_plain_loop():
    rng = np.random.default_rng(0)
    scores = {task: list(rng.normal(scale, scale, 6)) for task, scale in (("a", 1.0), ("b", 2.0), ("c", 5.0))}
    expected = np.percentile(oracle(scores, 4000), [5, 95], axis=0)
    summary = summarise(scores, confidence=0.9, resamples=4000)
    for estimate, (low, high) in zip(astuple(summary), expected.T, strict=True):
        # The resamplings differ; of 4000 the percentiles are known to some hundredths of the width.
        assert estimate[1:] == pytest.approx((low, high), abs=0.06 * (high - low))


def test_seeds_are_resampled_within_their_task():
    """Between tasks that differ by 1000 an unstratified bootstrap would be unsure by hundreds."""
    found = summarise({"a": [0, 1, 2, 3], "b": [1000, 1001, 1002, 1003]}).mean
    assert 500 < found.low < found.value < found.high < 503


def test_the_same_seed_gives_the_same_interval():
    scores = {"a": [1.0, 5.0, 3.0], "b": [2.0, 8.0, 4.0]}
    assert summarise(scores, seed=1) == summarise(scores, seed=1) != summarise(scores, seed=2)


def test_one_seed_has_no_interval():
    assert summarise({"a": [3.0]}).iqm == Estimate(3.0, None, None)
    assert summarise({"a": [3.0], "b": [1.0, 2.0]}).mean == Estimate(2.25, None, None)


def test_seeds_that_agree_leave_nothing_open():
    for estimate in astuple(summarise({"a": [0.1] * 5, "b": [0.1] * 3})):
        assert estimate == pytest.approx((0.1, 0.1, 0.1), abs=1e-15)


def test_no_scores():
    with pytest.raises(ConfigError, match="there is no score of any task"):
        summarise({})
    with pytest.raises(ConfigError, match="there is no score of b"):
        summarise({"a": [1.0], "b": []})


def test_without_scipy_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ConfigError, match=r'pip install matplotlib scipy'):
        summarise({"a": [1.0]})


# Against people ------------------------------------------------------------------------------------------------------

BASELINES = Baselines("b.json", {task: {"random": 0.0, "human_gamer": gamer, "human_record": record}
                                 for task, gamer, record in (("x", 10.0, 100.0), ("y", 1.0, 2.0), ("z", 4.0, 8.0))})


def test_human_scores_by_hand():
    curves = [curve(20, task="x"), curve(40, task="x", seed="2"), curve(8, task="y"), curve(2, task="z")]
    found = human_scores(curves, BASELINES)
    assert astuple(found.games["x"]) == (30.0, 3.0, 0.3)
    assert found.gamer_median == 3.0  # of 3, 8, 0.5
    assert found.gamer_mean == pytest.approx(11.5 / 3)
    assert found.record_mean == pytest.approx((0.3 + 4.0 + 0.25) / 3)
    assert found.clipped_record_mean == pytest.approx((0.3 + 1.0 + 0.25) / 3)
    with pytest.raises(ConfigError, match="are of one method, not of m, other"):
        human_scores([*curves, curve(1, task="x", method="other")], BASELINES)
    with pytest.raises(ConfigError, match=r"b\.json: has no task 'w'"):
        human_scores([curve(1, task="w")], BASELINES)


@pytest.fixture(scope="module")
def published() -> list[Curve]:
    if not REFERENCE.exists():
        pytest.skip(f"the published scores are not here: {REFERENCE}")
    return [curve for curve in read_scores(REFERENCE / "atari-dreamerv2.json") if curve.method == "dreamerv2"]


def test_the_published_numbers_come_back(published):
    """The paper prints 2.15, 11.33, 0.44 and 0.28."""
    assert len(published) == 55 * 8
    baselines = read_baselines(REFERENCE / "baselines.json")
    found = human_scores(published, baselines)
    assert found.gamer_median == pytest.approx(2.159, abs=5e-4)
    assert found.gamer_mean == pytest.approx(11.636, abs=5e-4)
    assert found.record_mean == pytest.approx(0.436, abs=5e-4)
    assert found.clipped_record_mean == pytest.approx(0.278, abs=5e-4)
    assert len(baselines.notes) == 2


def test_without_the_corrections_james_bond_makes_the_mean_four_times_as_large(published):
    scores = json.loads((REFERENCE / "baselines.json").read_text())
    found = human_scores(published, replace(read_baselines(REFERENCE / "baselines.json"), scores=scores))
    assert found.gamer_mean == pytest.approx(41.39, abs=5e-3)
    assert found.gamer_median == pytest.approx(2.159, abs=5e-4)
