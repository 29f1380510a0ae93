"""What is said about a world model, against loops over single episodes: a world small enough for a pencil, and the
real networks where only they will do. And that looking changes nothing."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.agents.examples import records, same, untimed, weights
from tests.builders import BOTH, CONTINUOUS, DISCRETE, IMAGE, VECTOR, generator, random_row, tiny_learner, tiny_policy
from xrl.agents import inspection
from xrl.agents.evaluation import joined, one_of
from xrl.agents.inspection import Inspector, calibration, miss, pairs, slice_rows, stacked
from xrl.common.row import Row
from xrl.world_models.latents import CategoricalLatent, GaussianLatent
from xrl.world_models.rssm import State

GAMMA = 0.9


# A world for the pencil --------------------------------------------------------------------------------------------
# The state is one number. Who sees a row is where its observation says; imagining adds the action to half of it.


def step(here: float, action: float) -> float:
    return 0.5 * here + action


def reward_of(here: float) -> float:
    return 2 * here + 0.125


def cont_of(here: float) -> float:
    return 1 / (1 + math.exp(-here))


def value_of(here: float) -> float:
    return 3 * here - 1


def mode_of(here: float) -> float:
    return 0.25 - here / 8


def entropy_of(here: float) -> float:
    return 0.5 + here * here


class Pencil:
    """Stands for a policy; ``stats``: posterior and prior of every row, (T, B, stats)."""

    def __init__(self, latent=None, stats=None):
        self.gamma = GAMMA
        latent = latent or CategoricalLatent(2, 3)
        self.stats = stats

        def observe(embed, action, is_first, noise):
            post, prior = (torch.zeros(*embed.shape[:2], latent.stats_size),) * 2 if stats is None else stats
            assert noise.shape[:2] == is_first.shape
            return State(embed, torch.zeros(*embed.shape[:2], latent.size)), post, prior

        def img_step(state, action, noise):
            return State(0.5 * state.deter + action[:, :1], state.stoch)

        self.world_model = SimpleNamespace(
            latent=latent, preprocess=lambda obs: obs, encoder=lambda obs: obs["x"],
            rssm=SimpleNamespace(observe=observe, img_step=img_step), decoder=lambda feat: {"x": feat[..., -1:] + 0.25},
            reward=lambda feat: 2 * feat[..., -1] + 0.125)

    def cont(self, feat):
        return torch.sigmoid(feat[..., -1])

    def value(self, feat):
        return 3 * feat[..., -1] - 1

    def actor(self, feat):
        return SimpleNamespace(mode=lambda: 0.25 - feat[..., -1:] / 8, entropy=lambda: 0.5 + feat[..., -1].square())

    def dream(self, state, action, generator):
        return self.world_model.rssm.img_step(state, action, None)

    def look(self, state):
        return state


def episode(length, end, seed):
    """``length`` rows; ``end``: how the last one ends, "terminal", "truncated" or "open"."""
    rng = np.random.default_rng(seed)
    first, last = np.zeros(length, bool), np.zeros(length, bool)
    first[0], last[-1] = True, end != "open"
    action, reward = rng.normal(size=(length, 1)).astype(np.float32), rng.normal(size=length).astype(np.float32)
    action[0] = reward[0] = 0
    return Row({"x": rng.normal(size=(length, 1)).astype(np.float32)}, action, reward, first, last,
               last & (end == "terminal"))


EPISODES = (episode(9, "terminal", 1), episode(2, "terminal", 2), episode(30, "truncated", 3), episode(8, "open", 4),
            episode(2, "truncated", 5))


def inspector(episodes=EPISODES, horizon=4, policy=None):
    return Inspector(policy or Pencil(), episodes, lambda reward: 0.5 * reward, horizon, generator())


@pytest.fixture
def found():
    return inspector().inspect()


def starts_of(episodes=EPISODES):
    """(episode, row) of every dream: after 5 rows, or as many as leave one."""
    return [(rows, t) for rows in episodes for t in range(min(5, len(rows.reward) - 1) - 1, len(rows.reward) - 1)]


def dreamt(rows, t, steps):
    """Where the dream from row ``t`` is after 1 to ``steps`` steps with the true actions."""
    here, places = float(rows.obs["x"][t, 0]), []
    for k in range(1, steps + 1):
        here = step(here, float(rows.action[t + k, 0]))
        places.append(here)
    return places


def errors_at(k):
    """Of all dreams that have a row to be compared with after ``k`` steps: error, error of standing still, reward."""
    some = [(rows, t, dreamt(rows, t, k)[-1]) for rows, t in starts_of() if t + k < len(rows.reward)]
    x = [rows.obs["x"][:, 0] for rows, _, _ in some]
    return (np.mean([(here + 0.25 - x[i][t + k]) ** 2 for i, (_, t, here) in enumerate(some)]),
            np.mean([(x[i][t] - x[i][t + k]) ** 2 for i, (_, t, _) in enumerate(some)]),
            np.mean([abs(reward_of(here) - 0.5 * rows.reward[t + k]) for rows, t, here in some]))


def test_errors_against_the_horizon(found):
    """No more steps than an episode gives, none of its padding, and each dream counts once."""
    longest = 30 - 5
    assert found.curves["horizon"] == list(range(1, longest + 1))
    for name in ("open_loop", "still", "reward_error"):
        assert len(found.curves[name]) == longest and None not in found.curves[name]
    for k in (1, 2, 5, 15, longest):
        error, still, reward = errors_at(k)
        assert found.curves["open_loop"][k - 1] == pytest.approx(error, rel=1e-3)
        assert found.curves["still"][k - 1] == pytest.approx(still, rel=1e-3)
        assert found.curves["reward_error"][k - 1] == pytest.approx(reward, rel=1e-3)
        if k in (1, 5, 15):
            assert found.metrics[f"health/open_loop_{k}"] == pytest.approx(error / still, rel=1e-4)
            assert found.metrics[f"health/reward_error_{k}"] == pytest.approx(reward, rel=1e-4)
    assert not any(name.endswith("_50") for name in found.metrics)  # no episode is that long


def test_reconstruction_is_of_rows_that_were_seen(found):
    """The decoder misses by a quarter, whatever it sees."""
    assert found.metrics["health/reconstruction"] == pytest.approx(0.0625, rel=1e-5)


def test_episodes_of_two_rows_alone_say_what_they_can():
    short = (episode(2, "truncated", 1), episode(2, "open", 2))
    found = inspector(short).inspect()
    assert found.curves["horizon"] == [1] and found.dream.context == 1
    assert {"health/open_loop_1", "health/value_bias", "health/kl"} <= found.metrics.keys()
    assert not {"health/open_loop_5", "health/open_loop_50"} & found.metrics.keys()
    assert all(math.isfinite(value) for value in found.metrics.values())


def realised(rows):
    """Discounted sum of what the episode pays from each row on, its reward included; beyond a cut, the value of the
    row where it was cut. Where that row is itself, nothing is known."""
    known, reward = [], 0.5 * rows.reward.astype(float)
    for t in range(len(reward)):
        if t == len(reward) - 1 and not rows.is_terminal[-1]:
            continue
        total = sum(GAMMA ** (i - t) * reward[i] for i in range(t, len(reward)))
        if not rows.is_terminal[-1]:
            last = len(reward) - 1
            total += GAMMA ** (last - t) * (value_of(float(rows.obs["x"][last, 0])) - reward[last])
        known.append((value_of(float(rows.obs["x"][t, 0])), total))
    return known


@pytest.mark.parametrize("rows", [EPISODES, EPISODES[:1], EPISODES[2:3], EPISODES[3:4], EPISODES[4:]])
def test_values_beside_what_the_episodes_paid(rows):
    """Terminal ends pay nothing more; cut ones go on with the value of where they were cut."""
    found = inspector(rows).inspect()
    known = np.array([pair for one in rows for pair in realised(one)])
    assert found.metrics["health/value"] == pytest.approx(known[:, 0].mean(), rel=1e-4)
    assert found.metrics["health/value_bias"] == pytest.approx((known[:, 0] - known[:, 1]).mean(), rel=1e-3, abs=1e-5)
    if len(known) <= 64:
        shown = np.array(found.curves["values"])
        assert shown.shape == known.shape
        assert all(np.isclose(shown, pair, rtol=1e-3, atol=1e-4).all(-1).any() for pair in known)


@pytest.mark.parametrize("horizon", [1, 4, 100])
def test_imagined_and_realised_returns_of_the_same_steps(horizon):
    """The dream acts by itself and counts what comes after its likely end less; a window that a cut ends is left out,
    one that a terminal row ends is not."""
    found = inspector(horizon=horizon).inspect()
    some = []
    for rows, t in starts_of():
        left = len(rows.reward) - 1 - t
        if left < horizon and not rows.is_terminal[-1]:
            continue
        here, total, goes_on = float(rows.obs["x"][t, 0]), 0.0, 1.0
        for _ in range(horizon):
            here = step(here, mode_of(here))
            total, goes_on = total + goes_on * reward_of(here), goes_on * cont_of(here)
        some.append((total, 0.5 * rows.reward[t + 1:t + 1 + horizon].sum()))
    assert some
    assert found.metrics["health/imagined_return"] == pytest.approx(np.mean([pair[0] for pair in some]), rel=1e-4)
    assert found.metrics["health/realised_return"] == pytest.approx(np.mean([pair[1] for pair in some]), rel=1e-3)
    assert len(found.curves["returns"]) == len(some) <= 64


def test_returns_that_no_window_gives_are_not_said():
    found = inspector((episode(6, "truncated", 1), episode(3, "open", 2)), horizon=4).inspect()
    assert not {"health/imagined_return", "health/realised_return"} & found.metrics.keys()
    assert found.curves["returns"] == []


def test_heads_are_compared_with_the_rows_they_have_seen(found):
    seen = [(float(x[0]), 0.5 * float(reward), not terminal, True) for rows in EPISODES
            for x, reward, terminal in zip(rows.obs["x"], rows.reward, rows.is_terminal, strict=True)]
    predicted = [reward_of(here) for here, *_ in seen]
    assert found.metrics["health/reward_bias"] == pytest.approx(
        np.mean([guess - true for guess, (_, true, *_) in zip(predicted, seen, strict=True)]), rel=1e-4)
    assert found.metrics["health/policy_entropy"] == pytest.approx(
        np.mean([entropy_of(here) for here, *_ in seen]), rel=1e-5)
    bins = found.curves["discount_calibration"]
    assert sum(count for *_, count in bins) == len(seen) == 51
    assert sum(true * count for _, true, count in bins) == pytest.approx(51 - 2)  # two terminal rows
    assert sum(guess * count for guess, _, count in bins) == pytest.approx(sum(cont_of(here) for here, *_ in seen))
    assert sum(guess * count for guess, _, count in found.curves["reward_calibration"]) == pytest.approx(
        sum(predicted), rel=1e-4)


# Bins --------------------------------------------------------------------------------------------------------------


def test_calibrated_predictions_miss_by_nothing_and_bins_are_of_about_equal_size():
    rng = np.random.default_rng(0)
    predicted = rng.uniform(size=20_000)
    bins = calibration(predicted, (rng.uniform(size=20_000) < predicted).astype(float))
    assert len(bins) == 10 and {round(count, -2) for *_, count in bins} == {2000}
    assert miss(bins) < 0.02 and [guess for guess, *_ in bins] == sorted(guess for guess, *_ in bins)
    assert miss(calibration(predicted, predicted - 0.3)) == pytest.approx(0.3)


def test_equal_predictions_share_a_bin():
    assert calibration(np.full(7, 0.5), np.arange(7.0)) == [[0.5, 3.0, 7]]
    two = calibration(np.array([0.0] * 90 + [1.0] * 10), np.array([0.0] * 90 + [1.0] * 5 + [0.0] * 5))
    assert two == [[0.0, 0.0, 90], [1.0, 0.5, 10]] and miss(two) == pytest.approx(0.05)


def test_a_miss_weighs_bins_by_their_count():
    assert miss([[0.0, 1.0, 1], [0.5, 0.4, 9]]) == pytest.approx((1 + 0.9) / 10)


def test_points_of_a_scatter_plot_are_spread_evenly_and_few():
    left = np.arange(1000.0)
    some = pairs(left, -left)
    assert len(some) == inspection.PAIRS and some[0] == [0, 0] and some[-1] == [999, -999]
    assert all(x == -y for x, y in some) and max(np.diff([x for x, _ in some])) <= 17
    assert pairs(np.array([]), np.array([])) == []
    assert pairs(np.array([np.nan]), np.array([1.0])) == [[None, 1.0]]


# Latents -----------------------------------------------------------------------------------------------------------


def softmax(logits):
    exps = np.exp(logits - logits.max(-1, keepdims=True))
    return exps / exps.sum(-1, keepdims=True)


def test_each_latent_and_its_categories_against_loops_over_the_rows():
    """The third latent says nothing and uses one category; padding would change every number."""
    latent, lengths = CategoricalLatent(3, 4), [len(rows.reward) for rows in EPISODES]
    post, prior = torch.randn(2, max(lengths), len(lengths), 12, generator=generator(1)) * 2
    post[..., 8:] = prior[..., 8:] = torch.tensor([9.0, 0, 0, 0])
    for b, length in enumerate(lengths):
        post[length:, b] = 9 * torch.eye(12)[10] - prior[length:, b]
    policy = Pencil(latent, (post, prior))
    found = inspector(policy=policy).inspect()
    kls, probs = [], []
    for b, length in enumerate(lengths):
        for t in range(length):
            q, p = (softmax(side[t, b].double().numpy().reshape(3, 4)) for side in (post, prior))
            kls.append((q * np.log(q / p)).sum(-1))
            probs.append(q)
    kl, used = np.mean(kls, 0), (np.mean(probs, 0) > 0.01).sum(-1)
    assert used.tolist() == [4, 4, 1]
    assert found.curves["kl"] == pytest.approx(kl.tolist(), rel=1e-3, abs=1e-6)
    assert found.curves["categories"] == used.tolist() and found.curves["classes"] == 4
    assert found.metrics["health/kl"] == pytest.approx(kl.sum(), rel=1e-4)
    assert found.metrics["health/latents_alive"] == 2 and found.metrics["health/categories"] == 3


def test_gaussian_latents_have_no_categories():
    latent, lengths = GaussianLatent(2), [len(rows.reward) for rows in EPISODES]
    post, prior = torch.randn(2, max(lengths), len(lengths), 4, generator=generator(1))
    found = inspector(policy=Pencil(latent, (post, prior))).inspect()
    assert "health/categories" not in found.metrics and "categories" not in found.curves
    valid = torch.tensor([[t < length for length in lengths] for t in range(max(lengths))])
    law = [torch.distributions.Normal(side[..., :2], 2 * torch.sigmoid(side[..., 2:] / 2) + 0.1)
           for side in (post, prior)]
    expected = torch.distributions.kl_divergence(*law)[valid].mean(0)
    assert found.curves["kl"] == pytest.approx(expected.tolist(), rel=1e-3)


# The real networks -------------------------------------------------------------------------------------------------


def split(row, lengths):
    """Episodes of these lengths from a batch (T, B): one from each column."""
    found = []
    for b, length in enumerate(lengths):
        rows = joined([one_of(slice_at(row, t), b) for t in range(length)])
        rows.is_first[:] = [t == 0 for t in range(length)]
        rows.is_terminal[:] = rows.is_last[:] = False
        found.append(rows)
    return found


def slice_at(row, t):
    parts = {name: value[t] for name, value in vars(row).items() if name != "obs"}
    return Row({name: value[t] for name, value in row.obs.items()}, **parts)


CHANGES = {"plain": {}, "gaussian": {"world_model.rssm.latent": "gaussian"},
           "no discount head": {"world_model.predict_discount": False}}


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize(("obs", "action"), [(VECTOR, CONTINUOUS), (BOTH, DISCRETE), (IMAGE, DISCRETE)])
def test_every_kind_of_world_model_can_be_inspected(changes, obs, action):
    learner = tiny_learner(CHANGES[changes], obs, action)
    before = {name: value.clone() for name, value in learner.policy.state_dict().items()}
    rows = split(random_row((9, 3), obs, action), (9, 4, 2))
    found = Inspector(learner.policy, rows, learner.transform_reward, 4, generator()).inspect()
    again = Inspector(learner.policy, rows, learner.transform_reward, 4, generator()).inspect()
    assert found.metrics == again.metrics and all(math.isfinite(value) for value in found.metrics.values())
    assert ("health/categories" in found.metrics) == (changes != "gaussian")
    assert found.curves["kl"] and sum(found.curves["kl"]) == pytest.approx(found.metrics["health/kl"], rel=1e-3)
    if changes == "no discount head":
        assert found.curves["discount_calibration"] == [[1.0, 1.0, 15]]
        assert found.metrics["health/discount_calibration"] == 0
    assert all(torch.equal(value, before[name]) for name, value in learner.policy.state_dict().items())
    assert not any(parameter.grad is not None for parameter in learner.policy.parameters())


def test_kl_is_the_one_the_learner_reports():
    """Of whole sequences that begin with a reset: the same numbers, by the same noise."""
    learner = tiny_learner()
    row = random_row((5, 3))
    row.is_first[:] = row.is_terminal[:] = row.is_last[:] = False
    row.is_first[0] = True
    metrics = learner.step(learner.to_device(row))
    fresh = tiny_learner()
    found = Inspector(fresh.policy, split(row, (5, 5, 5)), fresh.transform_reward, 4, generator(1)).inspect()
    assert found.metrics["health/kl"] == pytest.approx(float(metrics["model/kl"]), rel=1e-4)


def test_a_dream_shows_what_was_seen_and_then_what_was_not():
    """Before ``context`` the looks are those into the posteriors; from there on the rows' observations are unknown to
    the model: other ones change nothing."""
    policy = tiny_policy(obs=VECTOR)
    rows = split(random_row((12, 2)), (12, 5))
    look_at = lambda rows: Inspector(policy, rows, torch.tanh, 4, generator())  # noqa: E731
    one = look_at(rows)
    dream = one.inspect().dream
    assert dream.context == 5 and len(dream.reward) == 12 and dream.look.value.shape == (12,)
    np.testing.assert_allclose(dream.reward, np.tanh(rows[0].reward), rtol=1e-6)
    assert np.array_equal(dream.rows.obs["state"], rows[0].obs["state"])
    seen = policy.look(State(one.post.deter[:5, 0], one.post.stoch[:5, 0]))
    for part in ("reward", "value", "cont", "entropy", "action"):
        np.testing.assert_allclose(getattr(dream.look, part)[:5], getattr(seen, part), rtol=1e-5, atol=1e-6)
    for first_changed, same_until in ((5, 12), (4, 4)):
        other = split(random_row((12, 2)), (12, 5))
        other[0].obs["state"][first_changed:] += 3
        value = look_at(other).inspect().dream.look.value
        equal = np.isclose(value, dream.look.value, rtol=1e-5, atol=1e-7)
        assert equal[:same_until].all() and (same_until == 12 or not equal[same_until])


def test_a_dream_ends_with_its_episode_or_after_its_horizon(monkeypatch):
    policy = tiny_policy()
    rows = split(random_row((12, 2)), (12, 5))
    monkeypatch.setattr(inspection, "HORIZON", 3)
    dream = Inspector(policy, rows, torch.tanh, 4, generator()).inspect().dream
    assert (dream.context, len(dream.reward), len(dream.rows.reward)) == (5, 8, 8)
    dream = Inspector(policy, rows[::-1], torch.tanh, 4, generator()).inspect().dream
    assert (dream.context, len(dream.reward)) == (4, 5)


def test_padding_is_a_reset_row_of_zeros():
    found = stacked(EPISODES[:2], lambda obs: obs, lambda reward: reward, torch.device("cpu"))
    assert found.valid.sum(0).tolist() == [9, 2] and found.is_first[2:, 1].all() and not found.is_first[1, 1]
    assert not found.reward[2:, 1].any() and not found.action[2:, 1].any() and not found.is_terminal[2:, 1].any()
    for b in range(2):
        np.testing.assert_array_equal(found.obs["x"][:len(EPISODES[b].reward), b], EPISODES[b].obs["x"])
    assert len(slice_rows(EPISODES[0], 3).reward) == len(slice_rows(EPISODES[0], 3).obs["x"]) == 3


# In a run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy_lag", [0, 1])
def test_who_is_looked_at_learns_the_same(workshop, policy_lag):
    """Weights, what is drawn next, and the log, bit for bit."""
    runs = []
    for inspect in (True, False):
        agent = workshop.agent(inspect=inspect, policy_lag=policy_lag, parallels=2)
        for _ in range(3):
            agent.train(15)
            agent.test(3)
        agent.train(5)
        global_draws = [torch.get_rng_state(), torch.from_numpy(np.random.get_state()[1].astype(np.int64))]
        runs.append((weights(agent), agent.generator.get_state(), agent.rng.bit_generator.state, global_draws,
                     untimed(agent.folder / "metrics.jsonl")))
        assert (agent.folder / "health.jsonl").exists() == inspect
    (left, right) = runs
    assert same(left[0], right[0]) and torch.equal(left[1], right[1]) and left[2] == right[2]
    assert all(torch.equal(one, other) for one, other in zip(left[3], right[3], strict=True))
    assert [record for record in left[4] if not any(key.startswith("health/") for key in record)] == right[4]
    assert sum(any(key.startswith("health/") for key in record) for record in left[4]) == 3


def test_a_run_keeps_what_is_no_scalar_in_a_file_of_its_own(workshop):
    agent = workshop.agent(env_kwargs={"length": 12})
    agent.train(30)
    agent.test(3)
    (line,) = records(agent.folder / "health.jsonl")
    assert (line["agent_steps"], line["updates"]) == (30, agent.updates) and line["horizon"] == list(range(1, 9))
    (record,) = [record for record in records(agent.folder / "metrics.jsonl") if "health/kl" in record]
    assert line["metrics"] == {key: value for key, value in record.items() if key.startswith("health/")}


def test_looking_again_sees_the_same(workshop):
    agent = workshop.agent()
    agent.train(30)
    held_out = agent.evaluate(3).held_out
    first, second = agent.inspect(held_out), agent.inspect(held_out)
    assert first.metrics == second.metrics and first.curves == second.curves
    assert np.array_equal(first.dream.look.value, second.dream.look.value)
