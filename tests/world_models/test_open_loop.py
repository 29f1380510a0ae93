"""Dreams with the true actions, in a world that anybody can follow with a pencil: which action, which row, how long."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.builders import BOTH, generator, tiny_policy
from xrl.world_models.latents import CategoricalLatent
from xrl.world_models.open_loop import Episodes, open_loop, squared_error, starts
from xrl.world_models.rssm import State

LENGTHS = (9, 2, 6)


def img_step(state, action, noise):
    """No two orders of actions lead to the same place."""
    return State(0.5 * state.deter + action[:, :1], state.stoch)


PENCIL = SimpleNamespace(latent=CategoricalLatent(1, 2), rssm=SimpleNamespace(img_step=img_step),
                         reward=lambda feat: 3 * feat[:, -1], decoder=lambda feat: {"x": feat[:, -1:] + 0.25})


def padded(lengths=LENGTHS, seed=0):
    """Episodes of these lengths; their padding holds numbers that nobody may read."""
    rows, count = max(lengths), len(lengths)
    random = generator(seed)
    valid = torch.arange(rows).unsqueeze(1) < torch.tensor(lengths)
    action, x = (torch.randn(rows, count, 1, generator=random).where(valid.unsqueeze(-1), 1e6) for _ in range(2))
    reward = torch.randn(rows, count, generator=random).where(valid, 1e6)
    return Episodes({"x": x}, action, reward, torch.zeros_like(valid), torch.zeros_like(valid), valid)


def post_of(episodes):
    """Whoever sees a row is where it says."""
    deter = episodes.obs["x"].clone()
    return State(deter, torch.zeros(*deter.shape[:2], 2))


def places(episodes, context, most):
    time, episode = starts(episodes, context, most)
    return list(zip(episode.tolist(), time.tolist(), strict=True))


def test_starts_are_every_row_after_the_context_that_another_one_follows():
    """An episode shorter than the context still gives its last row but one."""
    assert places(padded(), 5, 100) == [(0, 4), (0, 5), (0, 6), (0, 7), (1, 0), (2, 4)]
    assert places(padded(), 1, 100)[:9] == [*[(0, t) for t in range(8)], (1, 0)]
    assert places(padded((2,)), 5, 100) == [(0, 0)]


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_fewer_starts_are_spread_evenly_and_the_first_is_the_earliest_of_the_first_episode(most):
    everything = places(padded((30, 2, 25)), 5, 1000)
    some = places(padded((30, 2, 25)), 5, most)
    where = [everything.index(place) for place in some]
    gaps = [right - left for left, right in zip(where, [*where[1:], len(everything)], strict=True)]
    assert len(some) == most and some[0] == (0, 4) and max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("horizon", [1, 3, 8])
def test_step_k_takes_the_action_of_row_t_plus_k_and_is_compared_with_that_row(horizon):
    episodes = padded()
    begin = starts(episodes, 3, 100)
    found = open_loop(PENCIL, post_of(episodes), episodes, begin, horizon, generator())
    assert found.valid.shape == found.error.shape == (horizon, len(begin[0])) and len(found.state) == horizon
    for n, (t, b) in enumerate(zip(*(part.tolist() for part in begin), strict=True)):
        x = episodes.obs["x"][:, b, 0].tolist()
        here = x[t]
        for k in range(1, horizon + 1):
            assert bool(found.valid[k - 1, n]) == (t + k < LENGTHS[b])
            if t + k >= LENGTHS[b]:
                continue
            here = 0.5 * here + float(episodes.action[t + k, b, 0])
            assert found.state[k - 1].deter[n, 0].item() == pytest.approx(here, rel=1e-5)
            assert found.error[k - 1, n].item() == pytest.approx((here + 0.25 - x[t + k]) ** 2, rel=1e-4, abs=1e-6)
            assert found.still[k - 1, n].item() == pytest.approx((x[t] - x[t + k]) ** 2, rel=1e-4, abs=1e-6)
            assert found.reward[k - 1, n].item() == pytest.approx(
                abs(3 * here - float(episodes.reward[t + k, b])), rel=1e-4, abs=1e-6)


def test_a_dream_of_a_real_model_is_its_steps_one_by_one():
    """With the noise in the order in which it is drawn; every start goes its own way."""
    model = tiny_policy(obs=BOTH).world_model
    episodes, horizon = padded((7, 7)), 4
    action = torch.eye(3)[torch.randint(3, (7, 2), generator=generator(3))]
    obs = {name: torch.randn(7, 2, *spec.shape, generator=generator(4)) for name, spec in BOTH.items()}
    episodes = Episodes(obs, action, episodes.reward, episodes.is_first, episodes.is_terminal, episodes.valid)
    post = State(torch.randn(7, 2, 8), torch.randn(7, 2, 16).softmax(-1))
    begin = torch.tensor([1, 2]), torch.tensor([1, 0])
    found = open_loop(model, post, episodes, begin, horizon, generator(9))
    assert not any(state.deter.requires_grad for state in found.state)
    noise = torch.rand(horizon, 2, model.latent.stoch, generator=generator(9))
    for n, (t, b) in enumerate(((1, 1), (2, 0))):
        state = State(post.deter[t, b][None], post.stoch[t, b][None])
        for k in range(horizon):
            with torch.no_grad():
                state = model.rssm.img_step(state, action[t + k + 1, b][None], noise[k, n][None])
                means = model.decoder(state.feat)
            torch.testing.assert_close(found.state[k].stoch[n], state.stoch[0])
            numbers = [(means[name][0] - obs[name][t + k + 1, b]).flatten() for name in BOTH]
            torch.testing.assert_close(found.error[k, n], torch.cat(numbers).square().mean())


def test_the_error_is_the_mean_over_all_numbers_whichever_observation_they_are_of():
    left = {"a": torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), "b": torch.tensor([[10.0]])}
    right = {"a": torch.zeros(1, 2, 2), "b": torch.zeros(1, 1)}
    assert squared_error(left, right).tolist() == [(1 + 4 + 9 + 16 + 100) / 5]
