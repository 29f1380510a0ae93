"""Baselines: reading, the corrections, normalising."""

from __future__ import annotations

import json

import pytest

from xrl.common.errors import ConfigError
from xrl.report.baselines import read_baselines

PONG = {"random": -20.0, "human_gamer": 10.0, "human_record": 20}
BOND = {"random": 7.0, "human_gamer": 29.0, "human_record": 45550.0}


@pytest.fixture
def baselines(tmp_path):
    def read(**tasks):
        (tmp_path / "baselines.json").write_text(json.dumps(tasks))
        return read_baselines(tmp_path / "baselines.json")
    return read


def test_a_score_is_normalised_between_random_play_and_a_person(baselines):
    read = baselines(atari_pong=PONG)
    assert [read.normalise("atari_pong", score) for score in (-20, -5, 10, 40)] == [0.0, 0.5, 1.0, 2.0]
    assert read.normalise("atari_pong", 0.0, "human_record") == 0.5
    assert read.notes == ()


def test_the_wrong_entries_of_james_bond_are_replaced_and_that_is_said(baselines):
    read = baselines(atari_james_bond=BOND, atari_pong=PONG)
    assert read.normalise("atari_james_bond", 302.8) == 1.0
    assert read.normalise("atari_james_bond", 29.0) == 0.0
    assert read.scores["atari_james_bond"]["human_record"] == 45550.0
    first, second = read.notes
    assert first.startswith("atari_james_bond: random 7.0 in baselines.json is wrong and was replaced by 29.0")
    assert "human_gamer 29.0" in second and "302.8" in second


def test_a_file_that_was_corrected_already_stays_as_it_is(baselines):
    right = {**BOND, "random": 29.0, "human_gamer": 302.8}
    read = baselines(atari_james_bond=right)
    assert read.scores == {"atari_james_bond": right} and read.notes == ()
    assert len(baselines(atari_james_bond={**BOND, "random": 8.0}).notes) == 1


@pytest.mark.parametrize(("content", "message"), [
    ("{", "not JSON"), ("[]", 'must be a JSON object {"atari_pong"'), ("{}", "must be a JSON object"),
    ('{"a": 3}', "'a': is not an object of scores"),
    ('{"a": {"random": "3"}}', "a: 'random' is '3', not a finite number"),
    ('{"a": {"random": NaN}}', "a: 'random' is nan, not a finite number"),
])
def test_a_file_of_the_wrong_form(tmp_path, content, message):
    path = tmp_path / "baselines.json"
    path.write_text(content)
    with pytest.raises(ConfigError) as error:
        read_baselines(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


def test_what_the_file_does_not_say(baselines):
    read = baselines(atari_pong=PONG, atari_venture={"random": 0.0}, flat={"random": 1.0, "human_gamer": 1.0})
    with pytest.raises(ConfigError, match=r"has no task 'atari_pon'\. Did you mean 'atari_pong'"):
        read.normalise("atari_pon", 0.0)
    with pytest.raises(ConfigError, match="atari_venture: has no 'human_gamer', only random"):
        read.normalise("atari_venture", 0.0)
    with pytest.raises(ConfigError, match="flat: 'random' and 'human_gamer' are both 1"):
        read.normalise("flat", 0.0)
