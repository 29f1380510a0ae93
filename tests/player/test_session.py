"""Where a dream begins, what a step of it does, and that the real environment goes the same way."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from tests.agents.examples import Watched, watched_environments
from xrl.common.errors import ConfigError, ModelFileError
from xrl.common.row import ActionSpec
from xrl.environment import REGISTRY_ENV, make_envs
from xrl.environment.opengl import choose_renderer
from xrl.player import session as module
from xrl.player.buttons import Buttons
from xrl.player.session import PLAYER_SEED, DreamSession, load_player, model_at


@pytest.fixture
def sessions(players):
    made = []

    def opened(env="toy", env_id="Catch-v0", seed=1, **keys):
        made.append(DreamSession(players(env, env_id, **keys), seed))
        return made[-1]

    yield opened
    for session in made:
        session.close()


@pytest.fixture
def watched_switches():
    """An environment of two actions at once, registered."""
    with watched_environments():
        REGISTRY_ENV["switches"] = lambda: Switches()
        yield


class Switches(Watched):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = gymnasium.spaces.MultiDiscrete([2, 3])


def play(session, actions):
    return [session.step(session.read_action(action)) for action in actions]


# Starts ---------------------------------------------------------------------------------------------------------


def test_both_begin_in_the_same_state(sessions):
    """The latent state is the filtered history of exactly the rows that the real environment went through."""
    session = sessions()
    act, rows, noise = session.agent.act, [], []

    def watching(row, state, generator, explore):
        assert not explore
        rows.append(row)
        noise.append(generator.get_state())
        return act(row, state, generator, explore=explore)

    session.agent.act = watching
    frame = session.start()
    begin = max(i for i, row in enumerate(rows) if row.is_first[0])
    generator, state = torch.Generator(), session.agent.initial_state(1)
    generator.set_state(noise[begin])
    for row in rows[begin:]:
        _, state = act(row, state, generator, explore=False)
    assert 1 < len(rows) - begin < 10 and not rows[-1].is_last[0]  # in the middle of an episode of Catch
    assert torch.equal(session.state.deter, state.deter) and torch.equal(session.state.stoch, state.stoch)
    assert np.array_equal(frame.look.obs["image"], session.agent.look(state).obs["image"])
    assert np.array_equal(frame.real.obs["image"], rows[-1].obs["image"][0])


def test_starts_are_random_steps_of_whole_episodes(sessions):
    session = sessions("classic_control", "Pendulum-v1")
    angles = {round(float(session.start().real.obs["vector"][0]), 5) for _ in range(5)}
    assert len(angles) == 5


def test_an_episode_shorter_than_the_lead_is_tried_again(sessions, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_LEAD", 10_000)
    frame = sessions().start()
    assert frame.real.ended == "" and frame.step == 0


def test_the_episodes_are_those_of_no_training_or_evaluation(players):
    with watched_environments() as watched:
        player = players("watched", "any-v0")
        DreamSession(player, 5).close()
        session = DreamSession(player, 5)
        session.start()
        seeds = [seed for env in watched.made for seed in env.seeds if seed is not None]
        session.close()
    assert seeds == [1 + PLAYER_SEED + 5] and PLAYER_SEED == 3_000_000


# Steps ----------------------------------------------------------------------------------------------------------


def test_the_real_environment_is_given_the_same_actions(sessions, monkeypatch):
    """An independent oracle: Gymnasium's own CartPole, put into the start state."""
    monkeypatch.setattr(module, "LONGEST_LEAD", 1)
    session = sessions("classic_control", "CartPole-v1")
    start = session.start()
    oracle = gymnasium.make("CartPole-v1").unwrapped
    oracle.reset()
    oracle.state = start.real.obs["vector"].astype(np.float64)
    for action in [0, 1, 1, 0, 1, 0]:
        frame = session.step(session.read_action(action))
        expected, *_ = oracle.step(action)
        assert np.allclose(frame.real.obs["vector"], expected, atol=1e-5)
        assert frame.action.tolist() == [float(action == 0), float(action == 1)]


def test_the_dream_is_given_the_same_actions(sessions):
    session = sessions()
    session.start()
    session.generator.manual_seed(3)
    state, noise = session.state, torch.Generator().manual_seed(3)
    for action in [0, 2, 2, 1]:
        frame = session.step(session.read_action(action))
        state = session.agent.dream(state, np.eye(3, dtype=np.float32)[[action]], noise)
        assert torch.equal(session.state.deter, state.deter)
        look = session.agent.look(state)
        assert np.array_equal(frame.look.obs["image"], look.obs["image"]) and frame.look.reward == look.reward


def test_sums_of_rewards(sessions, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_LEAD", 1)
    session = sessions("classic_control", "CartPole-v1", **{"world_model.reward_transform": "tanh"})
    session.start()
    frames = play(session, [0, 1, 0])
    assert frames[-1].total == pytest.approx(sum(float(frame.look.reward[0]) for frame in frames))
    assert frames[-1].real.reward == pytest.approx(np.tanh(1.0))
    assert frames[-1].real.total == pytest.approx(3 * np.tanh(1.0))
    assert session.start().total == 0


def test_the_dream_goes_on_when_the_real_episode_has_ended(sessions):
    session = sessions()
    session.start()
    frames = play(session, [1] * 12)
    ended = [bool(frame.real.ended) for frame in frames]
    last = ended.index(True)
    assert last < 9 and all(ended[last:]) and frames[last].real.ended == "the episode ended"
    assert abs(frames[last].real.reward) == pytest.approx(abs(frames[-1].real.total))
    assert [frame.real.reward for frame in frames[last + 1:]] == [0] * (11 - last)
    assert len({frame.real.obs["image"].tobytes() for frame in frames[last:]}) == 1
    assert len({frame.look.obs["image"].tobytes() for frame in frames[last:]}) > 1
    assert session.start().real.ended == ""


def test_a_time_limit_is_told_from_an_end(sessions):
    session = sessions("classic_control", "Pendulum-v1", **{"environment.time_limit": 3})  # no lead is longer
    session.start()
    frame = play(session, [[0.0]] * 3)[-1]
    assert frame.real.ended == "the episode was cut at its time limit"


def test_a_failure_of_the_environment_is_told(players):
    def raising(env, result):
        raise OSError("no more")

    with watched_environments():
        session = DreamSession(players("watched", "any-v0"), 1)
        session.start()
        Watched.trouble = raising
        assert session.step(None).real.ended == "the environment failed and was restarted"
        session.close()


def test_the_real_environment_catches_up(sessions, monkeypatch):
    """Steps without it are made up for, so that it is always where the same actions lead."""
    monkeypatch.setattr(module, "LONGEST_LEAD", 1)
    frames = []
    for real in ([True] * 4, [False, False, False, True]):
        session = sessions("classic_control", "CartPole-v1", seed=2)
        session.start()
        steps = [session.step(session.read_action(action), each)
                 for action, each in zip([0, 1, 1, 0], real, strict=True)]
        assert [frame.real is not None for frame in steps] == real
        frames.append(steps[-1])
    assert np.array_equal(frames[0].real.obs["vector"], frames[1].real.obs["vector"])
    assert frames[0].real.total == frames[1].real.total


def test_the_agent_plays_its_mode(sessions):
    session = sessions()
    session.start()
    for _ in range(4):
        best = session.look.action[0].argmax()
        assert session.step(None).action.tolist() == np.eye(3)[best].tolist()
    session = sessions("classic_control", "Pendulum-v1")
    session.start()
    mode = session.look.action[0].copy()
    assert np.array_equal(session.step(None).action, mode)


@pytest.mark.parametrize(("env", "env_id", "actions"), [
    ("toy", "Catch-v0", [0, 2, "agent", 1]), ("classic_control", "CartPole-v1", [0, "agent", 1, 1]),
    ("classic_control", "Pendulum-v1", [[0.5], "agent", [-1], [0]])])
def test_the_same_seed_is_the_same_session(sessions, env, env_id, actions):
    def told(seed):
        session = sessions(env, env_id, seed=seed)
        frames = [session.start(), *play(session, actions), session.start()]
        return [(next(iter(frame.look.obs.values())).tobytes(), next(iter(frame.real.obs.values())).tobytes(),
                 frame.total) for frame in frames]

    assert told(7) == told(7)
    assert told(7) != told(8)


@pytest.mark.parametrize("value", [3, -1, 1.0, True, "left", None, [1, 0, 0]])
def test_what_is_no_discrete_action(sessions, value):
    with pytest.raises(ConfigError, match=r"action: .*use 0 to 2, or agent"):
        sessions().read_action(value)


@pytest.mark.parametrize("value", [0, [], [0, 0], [1.5], [float("nan")], ["0"]])
def test_what_is_no_continuous_action(sessions, value):
    with pytest.raises(ConfigError, match=r"use 1 numbers from -1 to 1"):
        sessions("classic_control", "Pendulum-v1").read_action(value)


# What is loaded -------------------------------------------------------------------------------------------------


def test_names_of_actions(players):
    assert players("toy", "Catch-v0").names == ["LEFT", "NOOP", "RIGHT"]
    assert players("gymnasium", "FrozenLake-v1").names == ["1", "2", "3", "4"]
    assert players("classic_control", "Pendulum-v1").names == []
    assert players("box2d", "LunarLander-v3").names == ["NOOP", "LEFT", "MAIN (UP)", "RIGHT"]
    assert players("minigrid", "MiniGrid-Empty-5x5-v0").names[2:6] == [
        "FORWARD (UP)", "TAKE", "DROP", "TOGGLE (FIRE)"]
    pong = players("atari", "ALE/Pong-v5", **{"environment.action_repeat": 4})
    assert pong.names == ["NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE"]
    assert pong.agent.frames == 123 * 4


def test_several_actions_at_once_are_one_button_for_each_combination(sessions, watched_switches):
    session = sessions("switches", "any-v0")
    start = session.start()
    assert session.player.names == ["1 1", "1 2", "1 3", "2 1", "2 2", "2 3"]
    law = start.look.action[0]  # of two and of three
    np.testing.assert_allclose(start.policy, np.outer(law[:2], law[2:]).ravel(), rtol=1e-5)
    assert start.taken.tolist() == [0] * 6
    frame = session.step(session.read_action(4))
    assert frame.action.tolist() == [0, 1, 0, 1, 0] and frame.taken.tolist() == [0, 0, 0, 0, 1, 0]
    chosen = session.step(None).action
    assert chosen.tolist() == [*np.eye(2)[frame.look.action[0, :2].argmax()],
                               *np.eye(3)[frame.look.action[0, 2:].argmax()]]
    with pytest.raises(ConfigError, match="use 0 to 5, or agent"):
        session.read_action(6)
    with pytest.raises(ConfigError, match=r"3 actions at once, in 100 combinations.*at most 64"):
        Buttons(ActionSpec("multi_discrete", 15, (5, 5, 4)))


def test_a_picture_of_what_is_no_picture(sessions):
    assert sessions("classic_control", "CartPole-v1").start().real.picture.shape == (400, 600, 3)
    assert sessions().start().real.picture is None


def test_pictures_of_mujoco_are_drawn_in_the_thread_of_the_session(players):
    """OpenGL belongs to a thread; the page's session lives in another one than the player was loaded in."""
    vision = choose_renderer()
    player = players("dmc", "cartpole_swingup", **{"env_kwargs.vision": vision, "environment.action_repeat": 2})
    sessions = [DreamSession(player, seed) for seed in (1, 2)]
    with ThreadPoolExecutor(1) as thread:
        for session in sessions:
            assert thread.submit(session.start).result().real is not None
        for session in sessions:
            real = thread.submit(session.step, None).result().real
            assert not vision or real.obs["image"].std() > 1
        for session in sessions:
            thread.submit(session.close).result()


def test_how_the_run_was_made_does_not_matter(players):
    """Its environments side by side, its second policy: here is one player."""
    player = players("toy", "Catch-v0", parallels=3, vectorize="async", policy_lag=1)
    assert player.agent.envs.num_envs == 1 and player.agent.background is None


def test_a_run_a_folder_of_runs_and_a_file(save, tmp_path):
    old = save("toy", "Catch-v0")
    new = save("classic_control", "CartPole-v1", name="best_model.pth")
    (new / "final_train_model.pth").write_bytes((new / "best_model.pth").read_bytes())
    os.utime(old / "final_train_model.pth", (time.time() - 60,) * 2)
    assert model_at(old) == old / "final_train_model.pth"
    assert model_at(tmp_path / "models") == new / "best_model.pth"
    assert model_at(new.parent) == new / "best_model.pth"
    assert model_at(new / "final_train_model.pth") == new / "final_train_model.pth"
    assert model_at(tmp_path / "models/DreamerV2/Catch-v0") == old / "final_train_model.pth"


def test_no_model(save, tmp_path):
    with pytest.raises(ConfigError, match="no such file or folder"):
        model_at(tmp_path / "nowhere")
    with pytest.raises(ModelFileError, match="no run and no model here"):
        model_at(tmp_path)
    run = save("toy", "Catch-v0")
    (run / "final_train_model.pth").unlink()
    for place in (run, tmp_path / "models"):
        with pytest.raises(ModelFileError, match="still being written perhaps: a run saves its first model at"):
            model_at(place)
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(ModelFileError, match="not a readable xrl model"):
        load_player(tmp_path / "notes.txt")


def test_a_method_without_a_world_model(save, monkeypatch):
    monkeypatch.delattr("xrl.agents.dreamer_v2.DreamerV2Agent.look")
    closed = []
    monkeypatch.setattr(module, "make_envs", lambda *args, **keys: _noting(make_envs(*args, **keys), closed))
    with pytest.raises(ConfigError, match="has no world model to look into"):
        load_player(Path(save("toy", "Catch-v0")))
    assert closed == [True]


def _noting(envs, closed):
    close = envs.close
    envs.close = lambda: (closed.append(True), close())
    return envs
