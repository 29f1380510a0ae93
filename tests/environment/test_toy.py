from __future__ import annotations

import numpy as np
import pytest

from xrl.common.row import ActionSpec, ObsSpec
from xrl.environment import make_envs
from xrl.environment.toy import Catch

from .examples import config, one_hot


def columns(image):
    """(ball column or None, paddle column), read from the picture alone: brightness 255 and 160, five columns."""
    pixels = [np.argwhere(image[:, :, 0] == value)[:, 1] for value in (255, 160)]
    return [int(each.mean() / 12.8) if len(each) else None for each in pixels]


def play(policy, episodes, seed):
    """Mean return of ``policy(ball, paddle)`` and the set of episode lengths."""
    env, scores, lengths = Catch(), [], set()
    obs, _ = env.reset(seed=seed)
    for _ in range(episodes):
        steps, over = 0, False
        while not over:
            obs, reward, over, truncated, _ = env.step(policy(*columns(obs)))
            steps += 1
            assert not truncated and (over or reward == 0)
        scores.append(reward)
        lengths.add(steps)
        obs, _ = env.reset()
    return np.mean(scores), lengths


def test_the_random_policy_scores_minus_0_6():
    rng = np.random.default_rng(0)
    score, lengths = play(lambda ball, paddle: int(rng.integers(3)), 1000, seed=0)
    assert lengths == {9}
    assert score == pytest.approx(-0.6, abs=0.08)  # 3 standard errors: 0.8 / sqrt(1000) = 0.025


def test_following_the_ball_always_catches_it_and_fleeing_never_does():
    assert play(lambda ball, paddle: 1 + int(np.sign(ball - paddle)), 60, seed=1)[0] == 1
    assert play(lambda ball, paddle: 0 if ball > 2 or (ball == 2 and paddle <= 2) else 2, 60, seed=1)[0] == -1


def test_the_picture():
    env = Catch()
    image, _ = env.reset(seed=0)
    assert image.shape == (64, 64, 1) and image.dtype == np.uint8 and env.observation_space.contains(image)
    ball = np.argwhere(image[:, :, 0] == 255)
    assert ball[:, 0].min() == 0 and ball[:, 0].max() in (5, 6)
    assert (image[:57] == 160).sum() == 0 and (image[58:] == 160).any()
    tops = [np.argwhere(env.step(1)[0][:, :, 0] == 255)[:, 0].min() for _ in range(9)]
    assert np.diff(tops).min() >= 6 and tops[-1] in (57, 58)


def test_seeds_decide_the_column():
    def starts(seed):
        env = Catch()
        return [columns(env.reset(seed=seed if first else None)[0])[0] for first in [True] + [False] * 30]
    assert starts(3) == starts(3) != starts(4)
    assert set(starts(3)) == {0, 1, 2, 3, 4}


def test_the_family():
    with make_envs(config("toy", "Catch-v0", parallels=2)) as envs:
        assert envs.obs_spec == {"image": ObsSpec("image", (64, 64, 1))}
        assert envs.action_spec == ActionSpec("discrete", 3)
        envs.reset()
        rows = [envs.step(one_hot([1, 1], 3)) for _ in range(10)]
    assert rows[8].is_terminal.all() and (np.abs(rows[8].reward) == 1).all() and rows[9].is_first.all()
