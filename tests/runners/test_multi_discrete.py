"""Several discrete actions at once, from a Gymnasium environment through training, resuming, saving and playing."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from tests.agents.examples import stored_rows
from tests.runners.test_resume import SMALL, Cut, Keep, Lost, outcome
from xrl.common.files import read_metadata
from xrl.environment import REGISTRY_ENV, check_env
from xrl.runners.runner import get_runner

CHOICES = (3, 2, 4)


class Dials(gymnasium.Env):
    """Each of three dials is worth its distance from a random goal, which is seen. Episodes of 6 steps."""

    def __init__(self) -> None:
        self.action_space = spaces.MultiDiscrete(CHOICES, start=[0, 5, -1])
        self.observation_space = spaces.MultiDiscrete(CHOICES)
        self.given: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.goal, self.steps = self.np_random.integers(CHOICES), 0
        return self.goal, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        self.given.append(action - self.action_space.start)
        self.steps += 1
        return self.goal, -float(np.abs(self.given[-1] - self.goal).sum()), self.steps == 6, False, {}

    def get_state(self) -> dict[str, Any]:
        return {"goal": self.goal, "steps": self.steps}

    def set_state(self, state: dict[str, Any]) -> None:
        self.goal, self.steps = state["goal"], state["steps"]


@pytest.fixture
def run(tmp_path):
    """Runs DreamerV2 on Dials; returns the folder, what kept the agent, and the environments made."""
    made: list[Dials] = []

    def dials() -> Dials:
        made.append(Dials())
        return made[-1]

    def runner(name: str, *callbacks: Any, resume: bool = False, **keys: Any):
        made.clear()
        keep = Keep()
        folder = get_runner("DreamerV2", "Dials", "dials-v0", callbacks=[keep, *callbacks],
                            **{**SMALL, "model_dir": str(tmp_path / name), **keys}).run(resume=resume)
        return folder, keep, list(made)

    before = dict(REGISTRY_ENV)
    REGISTRY_ENV["Dials"] = dials
    yield runner
    REGISTRY_ENV.clear()
    REGISTRY_ENV.update(before)


def parts(action: np.ndarray) -> list[np.ndarray]:
    return np.split(action, np.cumsum(CHOICES)[:-1], axis=-1)


def test_the_replay_holds_what_the_environment_was_given(run):
    folder, keep, made = run("models", buffer_size=1000, eval_interval=0)
    rows = stored_rows(keep.agent.replay)
    action = rows["action"][~rows["is_first"]]
    assert action.shape == (150, 9) and all((part.sum(-1) == 1).all() for part in parts(action))
    np.testing.assert_array_equal(np.stack([part.argmax(-1) for part in parts(action)], -1), made[0].given)
    assert {tuple(each) for each in made[0].given} > {(0, 0, 0), (2, 1, 3)}  # random at first
    assert read_metadata(folder / "final_train_model.pth")["spaces"]["action"] == ["multi_discrete", 9, [3, 2, 4]]
    scores = get_runner("DreamerV2", "Dials", "dials-v0", is_test=True, model_dir=str(folder.parents[2]), device="cpu",
                        test_episode=3).run()
    assert len(scores) == 3


def test_a_resumed_run_is_the_run(run):
    folder, keep, _ = run("whole")
    with pytest.raises(Lost):
        run("cut", Cut(100))
    again, kept, _ = run("cut", resume=True)
    assert outcome(folder, keep) == outcome(again, kept)


def test_a_look_shows_the_law_of_every_action(run):
    _, keep, _ = run("models", eval_interval=0)
    agent = keep.agent
    look = agent.look(agent.state)
    logits = agent.policy.actor(agent.state.feat).parts
    assert all(np.allclose(shown.sum(-1), 1) for shown in parts(look.action))
    for shown, part in zip(parts(look.action), logits, strict=True):
        np.testing.assert_allclose(shown, torch.softmax(part.logits, -1).detach(), rtol=1e-6)


def test_the_doctor_knows_them(run):
    findings = {each.name: each for each in check_env(
        {"method": "DreamerV2", "env_name": "Dials", "env_id": "dials-v0"}, steps=30)}
    assert findings["spaces"].found == ("'vector': vector (9,) of float32; 3 discrete actions at once, of 3, 2, 4 "
                                        "choices")
    assert not [each for each in findings.values() if each.status in ("failed", "warning")]
