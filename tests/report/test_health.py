"""When a number of a world model is a warning: its band, its limit, its direction; and warnings that come once."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from xrl.common.config import as_dict, load_config
from xrl.common.config_keys import flatten, keys_of
from xrl.common.registry import load
from xrl.methods import METHODS
from xrl.report import health
from xrl.report.health import (
    FLAT,
    NUMBERS,
    UNSETTLED,
    YOUNG,
    Watcher,
    band_of,
    explain,
    fitting,
    judge,
    settings_of,
    task_of,
)

TASK = "Game-v0"
FLOOR = 0.918939
KEYS = {"high": "health/reward_calibration", "low": "health/policy_entropy", "both": "health/value_bias"}


@pytest.fixture
def bands(monkeypatch):
    """Sets the bands of TASK: metric -> points."""
    def put(**points):
        named = {f"health/{name}": value for name, value in points.items()}
        monkeypatch.setattr(health, "bands", lambda: {TASK: named})

    put()
    return put


def at(frames, updates=100_000):
    return {"agent_steps": frames, "frames": frames, "updates": updates}


def test_a_band_is_that_of_the_last_evaluation_of_ours_and_has_room(bands):
    """Half of its width and a tenth of its larger end, to either side."""
    bands(value=[[0, 0.0, 1.0], [1000, 4.0, 6.0], [2000, -6.0, -4.0]])
    key = "health/value"
    assert band_of(TASK, key, 0) == band_of(TASK, key, 999) == pytest.approx((-0.6, 1.6))
    assert band_of(TASK, key, 1000) == pytest.approx((4 - 1 - 0.6, 6 + 1 + 0.6))
    assert band_of(TASK, key, 10**9) == pytest.approx((-6 - 1 - 0.6, -4 + 1 + 0.6))
    assert band_of("Other-v0", key, 1000) is None and band_of(TASK, "health/kl", 1000) is None


def test_before_our_first_evaluation_there_is_no_band(bands):
    bands(value=[[1000, 0.0, 1.0]])
    assert band_of(TASK, "health/value", 999) is None


@pytest.mark.parametrize(("direction", "below", "above"), [
    ("high", False, True), ("low", True, False), ("both", True, True)])
def test_only_the_bad_side_of_a_band_is_a_warning(bands, direction, below, above):
    """The band 1 to 2 has room from 0.3 to 2.7."""
    key = KEYS[direction]
    assert NUMBERS[key.removeprefix("health/")].bad == direction
    bands(**{key.removeprefix("health/"): [[0, 1.0, 2.0]]})
    warned = [judge(TASK, key, 50, value) is not None for value in (0.29, 0.31, 1.5, 2.69, 2.71)]
    assert warned == [below, False, False, False, above]


def test_a_warning_names_number_band_task_and_remedy(bands):
    bands(reward_calibration=[[0, 1.0, 2.0]])
    assert judge(TASK, "health/reward_calibration", 50, 7.1234) == (
        f"health/reward_calibration = 7.12 is above 2.7, the top of the band of our runs of {TASK} at these frames: "
        f"{NUMBERS['reward_calibration'].remedy}")
    bands(value_bias=[[0, 1.0, 2.0]], policy_entropy=[[0, 1.0, 2.0]])
    assert "is outside 0.3 to 2.7, the band of" in judge(TASK, "health/value_bias", 50, 7.0)
    assert "is below 0.3, the bottom of the band" in judge(TASK, "health/policy_entropy", 50, 0.1)


@pytest.mark.parametrize(("name", "fine", "bad", "side"), [
    ("latents_alive", 1.0, 0.0, "below 1"), ("categories", 1.1, 1.0, "below 1.05"),
    ("discount_calibration", 0.2, 0.21, "above 0.2")])
def test_without_a_band_only_a_limit_counts(bands, name, fine, bad, side):
    assert judge(TASK, f"health/{name}", 0, fine) is None
    assert f"is {side}: {NUMBERS[name].remedy}" in judge(TASK, f"health/{name}", 0, bad)


def test_a_band_that_allows_more_than_the_limit_is_the_one_that_counts(bands):
    bands(discount_calibration=[[0, 1.0, 2.0]])
    assert judge(TASK, "health/discount_calibration", 0, 2.5) is None
    assert judge(TASK, "health/discount_calibration", 0, 2.8) is not None


def test_numbers_without_a_limit_or_of_another_kind_are_never_a_warning(bands):
    for key in ("health/open_loop_1", "health/kl", "health/value", "model/kl", "eval/return"):
        assert judge(TASK, key, 0, 1e9) is judge(TASK, key, 0, -1e9) is None


def test_every_number_has_a_sentence_and_a_remedy_and_stands_in_the_docs():
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "metrics.md").read_text(encoding="utf-8")
    for name in NUMBERS:
        assert explain(f"health/{name}") and NUMBERS[name].remedy and f"`health/{name}`" in page
    with pytest.raises(KeyError):
        explain("model/kl")


def test_bands_are_read_from_their_file(tmp_path, monkeypatch):
    points = {"CartPole-v1": {"health/kl": [[0, 1.0, 2.0]]}}
    (tmp_path / "bands.json").write_text(json.dumps({"made_by": "hand", "bands": points}))
    monkeypatch.setattr(health, "BANDS", tmp_path / "bands.json")
    health._file.cache_clear()
    try:
        assert health.bands() == points
        health._file.cache_clear()
        monkeypatch.setattr(health, "BANDS", tmp_path / "absent.json")
        assert health.bands() == {}
    finally:
        health._file.cache_clear()


def test_bands_are_for_runs_with_the_settings_they_were_made_with(monkeypatch):
    config = as_dict(load_config("DreamerV2", "classic_control", "CartPole-v1").config)
    other = {**config, "world_model": {**config["world_model"], "reward_scale": 2.0}}
    monkeypatch.setattr(health, "_file", lambda: {"made_of": {"CartPole-v1": {"settings": settings_of(config)}}})
    assert task_of(config) == task_of(load_config("DreamerV2", "classic_control", "CartPole-v1").config.model_dump())
    assert task_of(flatten(load_config("DreamerV2", "classic_control", "CartPole-v1").config)) == "CartPole-v1"
    assert task_of(config) == "CartPole-v1" and task_of(other) == task_of({**config, "gamma": 0.9}) == ""
    assert task_of({**config, "env_id": "Acrobot-v1"}) == "" and task_of({}) == ""


def test_the_bands_that_are_shipped_are_of_known_numbers_in_order():
    assert {"CartPole-v1", "Pendulum-v1", "Catch-v0"} <= health.bands().keys()
    for env, env_id in (("classic_control", "CartPole-v1"), ("classic_control", "Pendulum-v1"), ("toy", "Catch-v0")):
        assert task_of(as_dict(load_config("DreamerV2", env, env_id).config)) == env_id
    for task, numbers in health.bands().items():
        for key, points in numbers.items():
            assert key.removeprefix("health/") in NUMBERS, (task, key)
            assert [frames for frames, *_ in points] == sorted({frames for frames, *_ in points})
            assert all(low <= high for _, low, high in points)


# Watching a run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "first"), [("health/kl", YOUNG), ("health/latents_alive", UNSETTLED)])
def test_young_runs_are_not_judged(bands, key, first):
    """By a band; and by a limit later still."""
    bands(kl=[[0, 1.0, 2.0]])
    watcher, record = Watcher({}), {key: 0.0}
    assert [watcher.see(TASK, at(10, first - 1), record) for _ in range(2)] == [[], []]
    assert [len(watcher.see(TASK, at(10, first), record)) for _ in range(2)] == [0, 1]


def test_a_warning_comes_at_the_second_time_and_once_until_its_cause_has_gone(bands):
    watcher, other = Watcher({}), {"eval/return": 3.0}
    bad, good, dead = {"health/categories": 1.0}, {"health/categories": 9.0}, {"health/latents_alive": 0.0}
    found = [len(watcher.see(TASK, at(n), record)) for n, record in enumerate((
        bad, good, bad, other, bad, bad, good, bad | dead, bad | dead, dead))]
    assert found == [0, 0, 0, 0, 1, 0, 0, 0, 2, 0]


IMAGE = {"model/image_loss": 4096}


def loss(per_number):
    """Of an image: the floor of a unit normal, and so much above it for each number."""
    return {"model/image_loss": 4096 * (FLOOR + per_number)}


def flat(*points, sizes=IMAGE):
    """Warnings at each (frames, updates, loss above the floor)."""
    watcher = Watcher(sizes)
    return [watcher.see(TASK, at(frames, updates), loss(above)) for frames, updates, above in points]


def test_an_image_loss_that_never_fell_is_flat_since_its_first_record(bands):
    found = flat((30_000, 10, 0.1), (35_000, FLAT + 9, 0.1), (40_000, FLAT + 10, 0.0901), (50_000, 2 * FLAT, 0.1))
    assert found == [[], [], ["image loss flat since frame 30,000: check input normalisation (obs_scale), "
                              "check model_opt.lr"], []]


def test_one_that_has_fallen_by_a_tenth_of_its_way_may_stay_there_or_rise_again(bands):
    assert flat((0, 1, 0.1), (1, 500, 0.0899), (2, FLAT, 0.0899), (3, 5 * FLAT, 0.2)) == [[]] * 4


def test_one_that_falls_late_is_warned_of_no_more(bands):
    assert [len(some) for some in flat((0, 1, 0.1), (1, FLAT + 1, 0.1), (2, 2 * FLAT, 0.05), (3, 3 * FLAT, 0.1))] == [
        0, 1, 0, 0]


def test_one_that_begins_at_its_floor_need_not_fall(bands):
    assert flat((0, 1, 0.0049), (1, FLAT + 1, 0.0049)) == [[], []]
    assert flat((0, 1, 0.0051), (1, FLAT + 1, 0.0051))[1]


def test_vectors_have_a_loss_of_their_own(bands):
    watcher = Watcher({"model/vector_loss": 3, **IMAGE})
    record = {"model/vector_loss": 3 * (FLOOR + 0.5), **loss(0.0)}
    assert watcher.see(TASK, at(0, 1), record) == []
    assert [warning.split(":")[0] for warning in watcher.see(TASK, at(9, FLAT + 1), record)] == [
        "vector loss flat since frame 0"]


def test_a_watcher_goes_on_from_its_state(bands):
    """What it warned of, and what it has seen fall, through JSON."""
    first = Watcher(IMAGE)
    alive = {"health/latents_alive": 0.0}
    for n, (record, updates) in enumerate(((loss(0.1), 1), (loss(0.01), 400), (alive, UNSETTLED), (alive, UNSETTLED))):
        first.see(TASK, at(n, updates), record)
    again, fresh = Watcher(IMAGE), Watcher(IMAGE)
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert again.state_dict() == first.state_dict() != fresh.state_dict()
    record, late = loss(0.1) | alive, at(5, UNSETTLED)
    assert again.see(TASK, late, record) == [] and fresh.see(TASK, late, record) == []
    assert len(fresh.see(TASK, at(6, UNSETTLED + FLAT), record)) == 2


def test_a_model_that_comes_with_updates_is_given_time(bands):
    """One that was loaded, or whose run went on without this watcher."""
    assert flat((400_000, 100_000, 0.1), (401_000, 100_000 + FLAT - 1, 0.1)) == [[], []]


# Other methods -------------------------------------------------------------------------------------------------------


def test_a_remedy_is_in_the_keys_of_the_run_and_leaves_out_what_it_has_not():
    theirs = {"opt.lr": 1, "loss.reward": 1, "loss.dyn": 1, "horizon": 15}
    assert fitting(NUMBERS["open_loop_5"].remedy, theirs) == (
        "train longer, raise opt.lr, check that actions matter")
    assert fitting(NUMBERS["reward_bias"].remedy, theirs) == "raise loss.reward"
    assert fitting(NUMBERS["categories"].remedy, theirs) == "near 1 the latents are constants: lower loss.dyn"
    assert fitting(NUMBERS["realised_return"].remedy, {"train_ratio": 1}) == (
        "more updates of the model (train_ratio) or a shorter horizon")
    assert fitting(NUMBERS["discount_calibration"].remedy, {}) == "see docs/health.md"


@pytest.mark.parametrize("method", METHODS)
def test_no_remedy_names_a_key_that_the_method_lacks(method):
    keys = keys_of(load(METHODS[method].schema)).leaves
    for number in NUMBERS.values():
        for name in re.findall(r"\b[a-z]+(?:_[a-z]+)*\.[a-z_]+", fitting(number.remedy, keys)):
            assert name == "health.md" or any(key == name or key.endswith(f".{name}") for key in keys), name
    if method == "DreamerV2":
        assert all(fitting(number.remedy, keys) == number.remedy for number in NUMBERS.values())


@pytest.mark.parametrize("method", [method for method in METHODS if method != "DreamerV2"])
def test_the_bands_of_our_runs_are_not_those_of_other_methods(method):
    for task in ("CartPole-v1", "Pendulum-v1", "Catch-v0"):
        env = "toy" if task == "Catch-v0" else "classic_control"
        assert task_of(flatten(load_config("DreamerV2", env, task).config)) == task
        assert task_of(flatten(load_config(method, env, task).config)) == ""


def test_warnings_carry_the_keys_of_the_run(bands):
    watcher = Watcher({"model/vector_loss": 1})
    for frames, updates in ((0, 1), (1, FLAT)):
        assert watcher.see("", {"frames": frames, "updates": updates}, {"model/vector_loss": 5.0}, {"opt.lr": 1}) == []
    (warning,) = watcher.see("", {"frames": 2, "updates": 2 * FLAT}, {"model/vector_loss": 5.0}, {"opt.lr": 1})
    assert warning == "vector loss flat since frame 0: check opt.lr"
