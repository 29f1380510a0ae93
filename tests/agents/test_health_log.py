"""What a run shows of its world model: files, pictures in the log, films, warnings; and that a full disk costs only
those."""

from __future__ import annotations

import re
from typing import Any

import cv2
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from tests.agents.examples import Watched, records, same, weights
from xrl.agents import evaluation, health_log
from xrl.agents.health_log import film
from xrl.common.errors import ConfigError
from xrl.environment import REGISTRY_ENV
from xrl.report import health
from xrl.runners.runner import get_runner


class Drawn(Watched):
    """Draws its step into every pixel: 10 times it, red; green and blue tell rows from columns."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}

    def __init__(self, length: int = 7, render_mode: str | None = None) -> None:
        super().__init__(length)
        self.render_mode = render_mode

    def render(self) -> np.ndarray:
        picture = np.zeros((40, 60, 3), np.uint8)
        picture[..., 0] = 10 * self.frame
        picture[:20, :, 1] = picture[:, :30, 2] = 200
        return picture


class Both(gymnasium.Env):
    """A picture and a vector, for 8 steps."""

    def __init__(self) -> None:
        self.observation_space = spaces.Dict({"camera": spaces.Box(0, 255, (64, 64, 3), np.uint8),
                                              "joints": spaces.Box(-1, 1, (2,), np.float32)})
        self.action_space, self.frame = spaces.Discrete(2), 0

    def _look(self) -> dict[str, np.ndarray]:
        return {"camera": np.full((64, 64, 3), 20 * self.frame, np.uint8), "joints": np.zeros(2, np.float32)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        self.frame = 0
        return self._look(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.frame += 1
        return self._look(), 1.0, self.frame == 8, False, {}


@pytest.fixture(autouse=True)
def environments(watched):
    REGISTRY_ENV.update(drawn=Drawn, both=Both)


def videos(agent):
    folder = agent.folder / "videos"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def length_of(path):
    count, reader = 0, cv2.VideoCapture(str(path))
    while reader.read()[0]:
        count += 1
    return count


# Dreams ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("env", "env_id", "endings"), [
    ("watched", "a", ["png"]), ("toy", "Catch-v0", ["gif", "mp4"]), ("both", "b", ["gif", "mp4", "png"])])
def test_images_dream_a_film_and_vectors_a_plot(workshop, env, env_id, endings):
    agent = workshop.agent(env=env, env_id=env_id, **{"environment.action_repeat": 1})
    agent.train(30)
    agent.test(2)
    assert videos(agent) == [f"dream_000000000030.{ending}" for ending in endings]
    if "mp4" in endings:
        (line,) = records(agent.folder / "health.jsonl")
        context = 5
        assert length_of(agent.folder / "videos" / "dream_000000000030.mp4") == context + len(line["horizon"])


def test_the_name_of_a_dream_counts_frames(workshop):
    agent = workshop.agent(env_kwargs={"length": 12}, **{"environment.action_repeat": 2})
    agent.train(10)
    agent.test(1)
    assert videos(agent) == ["dream_000000000020.png"]


def test_nothing_is_shown_of_who_does_not_want_it(workshop):
    agent = workshop.agent(inspect=False)
    agent.train(30)
    agent.test(1)
    assert videos(agent) == [] and not (agent.folder / "health.jsonl").exists()
    assert not any(key.startswith("health/") for record in records(agent.folder / "metrics.jsonl") for key in record)


def test_a_full_disk_costs_the_picture_and_not_the_run(workshop, capsys, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(health_log, "write_atomic", full)
    agent = workshop.agent()
    agent.train(25)
    assert len(agent.test(1)) == 1 and videos(agent) == []
    assert "dream: no picture: [Errno 28] No space left on device" in capsys.readouterr().err
    assert any("health/kl" in record for record in records(agent.folder / "metrics.jsonl"))


class Sink:
    """Stands for a log; notes the pictures."""

    def __init__(self):
        self.pictures = []

    def write_picture(self, name, data, size, counters):
        self.pictures.append((name, data, size, counters["frames"]))


@pytest.mark.parametrize(("env", "names"), [
    ("toy", ["dream/gif"]), ("watched", ["dream/png"])])
def test_the_log_is_given_the_picture_with_its_kind_and_size(workshop, env, names):
    agent = workshop.agent(env=env, env_id="Catch-v0")
    agent.train(25)
    sink = Sink()
    dream = agent.inspect(agent.evaluate(1).held_out).dream
    agent.log.opened(agent).sinks.append(sink)
    agent.log.logger.sinks[-1].close = lambda: None
    for shown in health_log.draw_dream(agent, dream, agent.folder):
        shown.log(agent)
    assert [name for name, *_ in sink.pictures] == names
    ((_, data, size, frames),) = sink.pictures
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[:2] == tuple(size) and frames == 25


# Films -------------------------------------------------------------------------------------------------------------


def test_a_film_shows_every_step_of_one_episode_as_the_environment_draws_it(workshop):
    agent = workshop.agent(env="drawn", env_kwargs={"length": 9})
    pictures = agent.film()
    assert [int(picture[0, 0, 0]) for picture in pictures] == [10 * n for n in range(10)]
    assert pictures[3][0, 0].tolist() == [30, 200, 200] and pictures[3][39, 59].tolist() == [30, 0, 0]
    assert all(made.closed for made in Watched.made[1:])


def test_a_film_has_an_end(workshop, monkeypatch):
    monkeypatch.setattr(evaluation, "LONGEST_FILM", 4)
    assert len(workshop.agent(env="drawn", env_kwargs={"length": 1000}).film()) == 4


def test_an_environment_that_fails_while_it_is_filmed_ends_the_film(workshop, watched):
    agent = workshop.agent(env="drawn")
    watched.trouble, watched.trouble_at = lambda env, result: 1 / 0, 3
    assert len(agent.film()) == 3
    assert all(made.closed for made in Watched.made[1:])


def test_with_render_each_evaluation_leaves_a_film_and_learns_the_same(workshop):
    filmed, plain = workshop.agent(env="drawn", render=True), workshop.agent(env="drawn")
    for agent in (filmed, plain):
        agent.train(25)
        agent.test(2)
        agent.train(20)
    assert same(weights(filmed), weights(plain))
    assert {"evaluation_000000000025.gif", "evaluation_000000000025.mp4"} <= set(videos(filmed))
    assert not any(name.startswith("evaluation") for name in videos(plain))
    assert length_of(filmed.folder / "videos/evaluation_000000000025.mp4") == 8


class Nothing(Watched):
    """Is asked to draw, and draws nothing."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}

    def __init__(self, length: int = 7, render_mode: str | None = None) -> None:
        super().__init__(length)

    def render(self) -> Any:
        return None


class Letters(Nothing):
    def render(self) -> Any:
        return "a | b"


@pytest.mark.parametrize("env", [Nothing, Letters, "watched_raw", Watched])
def test_an_environment_that_draws_nothing_is_told_what_to_do(workshop, env):
    if not isinstance(env, str):
        REGISTRY_ENV["blank"] = env
    agent = workshop.agent(env=env if isinstance(env, str) else "blank", env_kwargs={"length": 5})
    with pytest.raises(ConfigError, match=r"render: .*; leave render out, or"):
        film(agent, agent.folder, 0)


def test_the_test_mode_films_an_episode_and_a_dream(tmp_path, capsys):
    keys = {"preset": "debug", "device": "cpu", "logger": "none", "model_dir": str(tmp_path), "start_training": 20,
            "running_steps": 30, "test_episode": 2}
    folder = get_runner("dreamerv2", "drawn", "any-v0", **keys).run()
    scores = get_runner("dreamerv2", "drawn", "any-v0", is_test=True, render=True, **keys).run()
    said = capsys.readouterr().out
    assert len(scores) == 2
    assert {path.name for path in (folder / "videos").glob("test*")} == {
        "test_000000000030.gif", "test_000000000030.mp4", "test-dream_000000000030.png"}
    assert re.search(r"^health/kl +\d", said, re.M) and f"{folder / 'videos' / 'test_000000000030.mp4'}" in said
    assert not any((folder / "videos").glob("evaluation*"))


# Warnings ----------------------------------------------------------------------------------------------------------


def warnings_in(text):
    return re.findall(r"^health, frames ([\d,]+): (.+)$", text.replace("\r", "\n"), re.M)


@pytest.fixture
def band(monkeypatch):
    """One that no run is in."""
    monkeypatch.setattr(health, "YOUNG", 1)
    monkeypatch.setattr(health, "bands", lambda: {"any-v0": {"health/realised_return": [[0, 1e6, 2e6]]}})
    monkeypatch.setattr(health_log, "task_of", lambda config: config["env_id"])


def test_what_leaves_its_band_twice_is_said_once(workshop, capsys, band):
    agent = workshop.agent()
    agent.train(30)
    for _ in range(3):
        agent.test(2)
        agent.train(10)
    ((frames, warning),) = warnings_in(capsys.readouterr().err)
    assert frames == "40" and warning.startswith("health/realised_return = ")
    assert "the band of our runs of any-v0 at these frames" in warning


def test_of_many_warnings_a_few_are_said(workshop, capsys, band, monkeypatch):
    names = ("realised_return", "kl", "value", "value_bias", "imagined_return", "reward_bias")
    monkeypatch.setattr(health, "bands", lambda: {"any-v0": {f"health/{name}": [[0, 1e6, 2e6]] for name in names}})
    agent = workshop.agent()
    agent.train(30)
    agent.test(2)
    agent.test(2)
    said = [warning for _, warning in warnings_in(capsys.readouterr().err)]
    assert len(said) == 4 and said[-1] == f"3 more numbers are off; `xrl report {agent.folder}` shows them"


def test_a_loss_that_does_not_fall_is_said_while_training(workshop, capsys, monkeypatch):
    monkeypatch.setattr(health, "FLAT", 8)
    agent = workshop.agent(log_interval=10, train_every=2, start_training=20, **{"model_opt.lr": 1e-9})
    agent.train(60)
    assert warnings_in(capsys.readouterr().err) == [
        ("50", "vector loss flat since frame 30: check input normalisation (obs_scale), check model_opt.lr")]


def test_what_was_warned_of_is_part_of_the_run(workshop, band, capsys):
    agents = workshop.agent(), workshop.agent()
    for agent in agents:
        agent.train(30)
    agents[0].test(2)
    agents[0].test(2)
    state = agents[0].callbacks[2].state_dict(agents[0])
    assert "health/realised_return" in state["warned"] and "model/vector_loss" in state["first"]
    capsys.readouterr()
    agents[1].callbacks[2].load_state_dict(agents[1], state)
    agents[1].test(2)
    assert warnings_in(capsys.readouterr().err) == []
    agents[1].callbacks[2].load_state_dict(agents[1], {})  # a run that begins again from its start
    assert agents[1].callbacks[2].state_dict(agents[1])


def test_training_ends_with_a_sentence_about_its_time(workshop, capsys):
    agent = workshop.agent()
    agent.train(40)
    assert re.search(r"^time: \d+% in [a-z ]+: .+\.$", capsys.readouterr().err, re.M)


def test_a_run_without_updates_says_nothing_about_its_time(workshop, capsys):
    workshop.agent(start_training=1000).train(30)
    assert "time: " not in capsys.readouterr().err
