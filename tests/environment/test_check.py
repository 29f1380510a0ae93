"""check_env on environments that keep their promises, and on some that break one each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import xrl.environment
from tests.environment.examples import Misbehaving, config
from xrl.common.errors import ConfigError
from xrl.environment import RawEnvironment, check_env, make_envs

STATUS = ("spaces", "observations", "rewards", "episodes", "speed", "same seed", "saving", "rendering")


class Good(gymnasium.Env):
    """Keeps every promise: episodes of 5 steps, reward 1 in the last, all drawn from its own generator."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space, self.action_space = spaces.Box(0, 1, (2,), np.float32), spaces.Discrete(2)
        self.at = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.at = 0
        return self.seen(), {}

    def step(self, action: int) -> Any:
        self.at += 1
        return self.seen(), float(self.at == 5), self.at == 5, False, {}

    def seen(self) -> np.ndarray:
        return self.np_random.random(2, np.float32)

    def render(self) -> Any:
        return np.zeros((4, 6, 3), np.uint8)

    def get_state(self) -> dict[str, Any]:
        return {"at": self.at}

    def set_state(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


class TooLarge(Good):
    def seen(self) -> np.ndarray:
        return super().seen() + np.array([0, 1.5], np.float32)


class Unseeded(Good):
    def seen(self) -> np.ndarray:
        return np.random.random(2).astype(np.float32)


class Forgetful(Good):
    """Its episodes grow, which its saved state does not say."""

    longer = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        self.longer += 1
        return super().reset(seed=seed)

    def step(self, action: int) -> Any:
        obs, reward, _, _, info = super().step(action)
        return obs, reward, self.at >= self.longer, False, info


class Endless(Good):
    def step(self, action: int) -> Any:
        return self.seen(), 0.0, False, False, {}


class NoState(Good):
    get_state = set_state = None  # type: ignore[assignment]


class WrongState(Good):
    def get_state(self) -> dict[str, Any]:
        raise OSError("no state today")


class FloatFrames(Good):
    def render(self) -> Any:
        return np.zeros((4, 6, 3))


class DrawsBadly(Good):
    def render(self) -> Any:
        raise OSError("no paint")


class NeverDraws(Good):
    def render(self) -> Any:
        raise NotImplementedError


class Exits(Good):
    def step(self, action: int) -> Any:
        sys.exit(3)


class ReadsNothing(Good):
    """What raises lies in the standard library; what is to be mended lies here."""

    def step(self, action: int) -> Any:
        return json.loads("")


@pytest.fixture
def checked(registered):
    """Findings of an environment by name."""
    def check(make, steps=40):
        registered["Mine"] = make
        findings = check_env(config("Mine"), steps)
        assert len({finding.name for finding in findings}) == len(findings)
        return {finding.name: finding for finding in findings}

    return check


def test_a_good_environment_is_good_in_everything(checked):
    findings = checked(Good)
    assert tuple(findings) == STATUS
    assert {finding.status for finding in findings.values()} == {"ok"} and not any(f.fix for f in findings.values())
    assert findings["spaces"].found == "'vector': vector (2,) of float32; 2 discrete actions"
    # 41 rows of episodes of 5 steps, 6 rows each: 6 whole ones, 5 rows of the 7th
    assert findings["rewards"].found == "finite, from 0 to 1, 6 of 34 not 0"
    assert findings["episodes"].found.startswith("6 ended in 34 random steps, after 5 to 5; 6 of them terminated")
    assert findings["saving"].found == "restored after 20 steps it goes on the same, for 20 steps"
    assert findings["rendering"].found == "a frame (4, 6, 3) of uint8"


@pytest.mark.parametrize(("make", "name", "status", "found", "fix"), [
    (TooLarge, "observations", "warning", "entry 1 of 'vector' was", "widen observation_space"),
    (Unseeded, "same seed", "warning", "differ from row 0 on, in episode 1", "self.np_random"),
    (Forgetful, "saving", "failed", "it goes another way", "get_state must hold all"),
    (WrongState, "same seed", "failed", "get_state raised OSError: no state today", f"mend {__file__}, line"),
    (NoState, "saving", "note", "NoState implements no get_state/set_state", "#saving-its-state"),
    (Endless, "episodes", "note", "none ended in 40 random steps; no limit is known", "environment.time_limit"),
    (Endless, "rewards", "note", "all 0 in 40 random steps", "step()"),
    (FloatFrames, "rendering", "warning", "render() gives float64 (4, 6, 3)", "uint8"),
    (DrawsBadly, "rendering", "failed", "render raised OSError: no paint", f"mend {__file__}, line"),
    (NeverDraws, "rendering", "note", "not supported", "(H, W, 3)"),
    (ReadsNothing, "failure", "failed", "JSONDecodeError", f"mend {__file__}, line"),
    (Exits, "environment", "failed", "SystemExit: 3", f"mend {__file__}, line"),
])
def test_each_broken_promise_is_found(checked, make, name, status, found, fix):
    findings = checked(make)
    assert findings[name].status == status
    assert found in findings[name].found and fix in findings[name].fix
    others = {key for key, finding in findings.items() if finding.status in ("warning", "failed")} - {name}
    assert others <= ({"saving"} if make is Unseeded else set())


@pytest.mark.parametrize(("how", "found"), [
    ("raise", "step raised ZeroDivisionError: 100 % 0"), ("nan", "holds nan at flat index 1"),
    ("reward", "a reward of inf"), ("four values", "ValueError")])
def test_a_failure_in_the_middle_is_told_beside_what_was_seen_before(checked, how, found):
    findings = checked(lambda: Misbehaving(how))
    assert findings["failure"].status == "failed" and found in findings["failure"].found
    assert findings["failure"].fix and findings["spaces"].status == "ok"
    assert "rendering" not in findings
    if how == "raise":
        assert findings["failure"].fix.endswith("(step)") and "examples.py, line" in findings["failure"].fix


def test_of_no_step_nothing_is_told(checked):
    class FailsAtOnce(Good):
        def step(self, action: int) -> Any:
            raise OSError("no step")

    assert set(checked(FailsAtOnce)) == {"spaces", "failure"}


@pytest.mark.parametrize("given", [None, ""])
def test_drawing_without_a_display_is_silent(given):
    code = ("from xrl.environment import make_envs\n"
            "with make_envs({'method': 'DreamerV2', 'env_name': 'classic_control', 'env_id': 'CartPole-v1'},"
            " parallels=1, render_mode='rgb_array') as envs:\n    envs.reset(); envs.picture()")
    hidden = ("XDG_RUNTIME_DIR", "DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    env |= {} if given is None else {"XDG_RUNTIME_DIR": given}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert run.returncode == 0 and "XDG_RUNTIME_DIR" not in run.stderr + run.stdout


def test_what_cannot_be_made_or_begun_is_one_finding(checked):
    def unmade():
        raise KeyError("no level file")

    assert set(checked(lambda: Misbehaving("raise in reset"))) == {"environment"}
    (finding,) = checked(unmade).values()
    assert finding.status == "failed" and "KeyError" in finding.found and finding.fix.endswith("(unmade)")
    unknown = check_env({"method": "DreamerV2", "env_name": "classic_control", "env_id": "CartPol-v1"})
    assert len(unknown) == 1 and "Did you mean 'CartPole-v1'" in unknown[0].found
    tuples = check_env({"method": "DreamerV2", "env_name": "gymnasium", "env_id": "Blackjack-v1"})
    assert tuples[0].fix.startswith("turn it into a Box or a Discrete")


def test_warnings_become_notes(checked):
    def unbounded():
        env = Good()
        env.action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        return env

    findings = checked(unbounded)
    assert findings["warning given"].status == "note" and "infinite bounds" in findings["warning given"].found


def test_a_slow_environment_is_told_what_helps(checked, monkeypatch):
    monkeypatch.setattr("xrl.environment.check.SLOW", 1e9)
    speed = checked(Good)["speed"]
    assert speed.status == "note" and "vectorize=async" in speed.fix


def test_fewer_than_two_steps_are_refused():
    with pytest.raises(ConfigError, match="steps: 1 is too few"):
        check_env(config("toy", "Catch-v0"), steps=1)


@pytest.mark.parametrize(("env", "env_id", "vectorize"), [
    ("toy", "Catch-v0", "async"), ("classic_control", "Pendulum-v1", "sync"), ("atari", "ALE/Pong-v5", "native")])
def test_the_shipped_families_have_no_fault(env, env_id, vectorize):
    findings = check_env(config(env, env_id, vectorize=vectorize), steps=30)
    assert [finding for finding in findings if finding.status in ("warning", "failed")] == []


def test_it_is_found_where_make_envs_is_and_needs_no_torch():
    assert xrl.environment.check_env is check_env
    code = "from xrl.environment import check_env; import sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


# Windows without a display --------------------------------------------------------------------------------------------


class Raw(RawEnvironment):
    """Draws as it likes."""

    def __init__(self, env_config: Any = None) -> None:
        self.observation_space, self.action_space = spaces.Box(0, 1, (1,), np.float32), spaces.Discrete(2)

    def reset(self) -> Any:
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> Any:
        return np.zeros(1, np.float32), 0.0, False, False, {}


@pytest.fixture
def no_display(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("env", "env_id"), [
    ("classic_control", "CartPole-v1"), ("toy", "Catch-v0"), ("atari", "ALE/Pong-v5"), ("Mine", "x"), ("Made", "x")])
def test_a_window_without_a_display_is_refused_before_anything_is_made(no_display, registered, env, env_id):
    made = []

    class Noted(Good):
        def __init__(self, render_mode: str | None = None) -> None:
            made.append(render_mode)
            super().__init__(render_mode)

    registered.update(Mine=Noted, Made=lambda render_mode: Noted(render_mode))
    with pytest.raises(ConfigError, match=r"no display .*render=true.*xvfb-run -a"):
        make_envs(config(env, env_id), render_mode="human")
    assert made == []
    make_envs(config(env, env_id), render_mode="rgb_array").close()


@pytest.mark.parametrize("name", ["DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"])
def test_any_of_these_is_a_way_to_open_one(no_display, monkeypatch, name):
    from xrl.environment.build import has_display

    assert not has_display()
    monkeypatch.setenv(name, "")
    assert not has_display()
    monkeypatch.setenv(name, "dummy")
    assert has_display()


def test_other_systems_always_have_one(no_display, monkeypatch):
    from xrl.environment.build import has_display

    monkeypatch.setattr(sys, "platform", "darwin")
    assert has_display()


def test_a_raw_environment_that_opens_no_window_is_left_alone(no_display, registered):
    registered["Raw"] = Raw
    with make_envs(config("Raw", fps=1000), render_mode="human") as envs:
        envs.reset()
