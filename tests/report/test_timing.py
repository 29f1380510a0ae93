"""One sentence about the time: the largest part, what would help, what would not."""

from __future__ import annotations

import pytest

from xrl.report.timing import PARTS, shares, verdict

CONFIG = {"precision": "fp32", "train_every": 5, "env_name": "atari", "vectorize": "sync"}


def test_shares_are_of_the_parts_of_the_loop_largest_first():
    found = shares({"time/fps": 900, "time/update": 6.0, "time/update/actor": 5.0, "time/policy": 1.0,
                    "time/environment": 3.0, "time/gpu_idle": 0.5, "time/launches": 1000, "time/logging": 0.0})
    assert list(found.items()) == [("update", 0.6), ("environment", pytest.approx(0.3)), ("policy", pytest.approx(0.1))]
    assert shares({"update": 1.0}) == {"update": 1.0} and shares({}) == {}


@pytest.mark.parametrize(("changes", "seconds", "sentence"), [
    # 200 updates in 1,000 agent steps.
    ({}, {"update": 940, "environment": 30, "policy": 30},
     "94% in the update: an update takes 4.7 s; precision=bf16 would help; more environments would not."),
    ({"precision": "bf16"}, {"update": 400, "environment": 100},
     "80% in the update: an update takes 2 s; only a faster device or a smaller model would help."),
    ({}, {"update": 8, "environment": 1, "policy": 1},
     "80% in the update: an update takes 40 ms; updating less often (train_every) or a smaller batch would help."),
    ({"train_every": 1}, {"waiting": 4000, "rest": 100},
     "98% in waiting for the update: an update takes 4 s; precision=bf16 would help; more environments would not."),
    ({}, {"environment": 9, "update": 0.5, "policy": 0.5},
     "90% in the environment: vectorize=native with several parallels would help; a faster update would not."),
    ({"vectorize": "native"}, {"environment": 9, "update": 1},
     "90% in the environment: only a faster environment, or more cores for more parallels, would help."),
    ({"env_name": "dmc"}, {"environment": 6, "update": 4},
     "60% in the environment: if a step takes more than a millisecond, vectorize=async with several parallels would "
     "help."),
    ({}, {"policy": 6, "update": 4},
     "60% in the policy: its calls serve all environments at once, so more parallels would help."),
    ({}, {"evaluation": 6, "update": 4},
     "60% in evaluations: a larger eval_interval or fewer test_episode would help."),
    ({}, {"checkpoint": 6, "update": 4}, "60% in checkpoints: a larger checkpoint_every would help."),
    ({}, {"replay_sampling": 6, "update": 4}, "60% in drawing batches: `xrl profile` shows each part of it."),
    ({}, {"environment": 6, "update": 4, "gpu_idle": 0.55},
     "The GPU is idle for 55%, and 60% in the environment: vectorize=native with several parallels would help."),
    ({}, {"update": 6, "environment": 4, "gpu_idle": 0.55},
     "60% in the update: an update takes 30 ms; precision=bf16 would help."),
    ({}, {}, "No time was measured yet."),
])
def test_the_sentence(changes, seconds, sentence):
    config = CONFIG | changes
    assert verdict({f"time/{name}": value for name, value in seconds.items()}, config,
                   1000 / config["train_every"]) == sentence


@pytest.mark.parametrize(("keys", "words"), [
    ({"train_every": 5}, "40 ms; updating less often (train_every) or"),
    ({"train_ratio": 32.0}, "40 ms; updating less often (train_ratio) or"),
    ({"epochs": 4, "batch_size": 2}, "40 ms; learning less from each rollout (epochs) or"),
    ({}, "40 ms; fewer updates or a smaller batch would help")])
def test_a_remedy_has_the_key_of_the_method(keys, words):
    assert words in verdict({"time/update": 8.0}, {"precision": "fp32", **keys}, 200)


def test_an_update_of_many_gradient_steps_is_not_taken_for_a_large_one():
    assert "bf16" in verdict({"time/update": 8000.0}, {"precision": "fp32"}, 1)
    assert "rollout (epochs)" in verdict({"time/update": 8000.0}, {"precision": "fp32", "epochs": 4}, 1)


def test_an_update_that_is_waited_for_would_help_if_it_were_faster():
    assert "a faster update would not" not in verdict({"time/policy": 6.0, "time/waiting": 4.0}, CONFIG, 200)


def test_every_part_has_a_sentence():
    for part, name in PARTS.items():
        said = verdict({f"time/{part}": 2.0}, CONFIG, 200)
        assert said.startswith(f"100% in {name}: ") and said.endswith(".") and said.count(".") <= 2
