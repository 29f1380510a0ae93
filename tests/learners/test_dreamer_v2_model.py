"""The world model's loss against torch.distributions, its options, and whom it trains."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Normal, kl_divergence

from tests.builders import BOTH, CONTINUOUS, DISCRETE, IMAGE, VECTOR, float64, random_row, tiny_learner

T, B = 5, 3


def setting(changes=None, obs=VECTOR, action=DISCRETE, lead=(T, B)):
    learner = tiny_learner(changes, obs, action)
    for parameter in learner.model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return learner, learner.to_device(random_row(lead, obs, action))


def filtered(learner, batch):
    """What the model loss is made of, recomputed with the noise that the next call will draw."""
    model = learner.model
    noise_generator = torch.Generator()
    noise_generator.set_state(learner.generator.get_state())
    obs = {name: value.double() / 255 - 0.5 if value.dtype == torch.uint8 else value.double()
           for name, value in batch.obs.items()}
    noise = model.latent.noise(T, B, generator=noise_generator)
    return obs, *model.rssm.observe(model.encoder(obs), batch.action.double(), batch.is_first, noise)


def cross_entropy(mean, target):
    return -(target * mean.log() + (1 - target) * (1 - mean).log())


def double_batch(batch):
    obs = {name: value if value.dtype == torch.uint8 else value.double() for name, value in batch.obs.items()}
    return batch._replace(obs=obs, action=batch.action.double(), reward=batch.reward.double())


def kl_options(scale=0.1, balance=0.8, free_nats=0.0, free_avg=True):
    return {f"world_model.kl.{key}": value for key, value in locals().items()}


@pytest.mark.parametrize("changes", [
    {},
    {"gamma": 0.9, **kl_options()},
    {f"world_model.loss_scales.{name}": scale for name, scale in
     [("image", 0.5), ("vector", 2.0), ("reward", 3.0), ("discount", 5.0)]},
])
def test_loss_equals_torch_distributions(changes):
    with float64():
        learner, batch = setting(changes, BOTH)
        batch, model, config = double_batch(batch), learner.model, learner.config
        obs, post, post_stats, prior_stats = filtered(learner, batch)
        means = model.decoder(post.feat)
        expected = {f"{kind}_loss": sum(
            -Normal(means[name], 1.0).log_prob(obs[name]).flatten(2).sum(-1).mean() for name in names)
            for kind, names in [("image", ["camera", "map"]), ("vector", ["joints", "state"])]}
        reward = -Normal(model.reward(post.feat), 1.0).log_prob(torch.tanh(batch.reward))
        label = torch.where(batch.is_terminal, 0.0, config.gamma)
        expected |= {"reward_loss": reward.mean(),
                     "discount_loss": cross_entropy(model.discount(post.feat), label).mean()}
        laws = [Categorical(logits=stats.unflatten(-1, (4, 4))) for stats in (post_stats, prior_stats)]
        kl = kl_divergence(*laws).sum(-1).mean()
        scales = config.world_model.loss_scales.model_dump()
        total = sum(scales[name.removesuffix("_loss")] * value for name, value in expected.items())
        loss, posterior, metrics = learner.model_loss(batch)

    torch.testing.assert_close(loss, total + config.world_model.kl.scale * kl)
    for name, value in expected.items():
        torch.testing.assert_close(metrics[f"model/{name}"], value)
    torch.testing.assert_close(metrics["model/kl"], kl)
    torch.testing.assert_close(metrics["model/post_entropy"], laws[0].entropy().sum(-1).mean())
    torch.testing.assert_close(metrics["model/prior_entropy"], laws[1].entropy().sum(-1).mean())
    torch.testing.assert_close(posterior.feat, post.feat)
    assert not posterior.feat.requires_grad


@pytest.mark.parametrize(("balance", "free_nats", "free_avg"), [
    (0.8, 0.0, True), (0.3, 0.0, True), (0.8, 0.8, True), (0.8, 0.8, False), (0.8, 100.0, True), (0.8, 100.0, False)])
def test_gaussian_kl_and_its_options(balance, free_nats, free_avg):
    changes = {"world_model.rssm.latent": "gaussian", **kl_options(2.0, balance, free_nats, free_avg)}
    with float64():
        learner, batch = setting(changes)
        for layer in (learner.model.rssm.obs_stats, learner.model.rssm.img_stats):
            nn.init.normal_(layer.weight, std=2.5)
        batch = double_batch(batch)
        _, _, *stats = filtered(learner, batch)
        laws = [Normal(s[..., :4], 2 / (1 + torch.exp(-s[..., 4:] / 2)) + 0.1) for s in stats]
        kl = kl_divergence(*laws).sum(-1)
        clipped = kl.mean().clamp(min=free_nats) if free_avg else kl.clamp(min=free_nats).mean()
        loss, _, metrics = learner.model_loss(batch)
    if free_nats == 0.8:
        assert kl.min() < 0.8 < kl.mean(), "entries are clipped where the mean is not"
    heads = sum(metrics[f"model/{name}_loss"] for name in ("vector", "reward", "discount"))
    torch.testing.assert_close(loss - heads, 2.0 * clipped)
    torch.testing.assert_close(metrics["model/kl"], kl.mean())


@pytest.mark.parametrize(("balance", "posterior", "prior"), [(1.0, False, True), (0.0, True, False)])
def test_balance_decides_who_is_trained(balance, posterior, prior):
    scales = {f"world_model.loss_scales.{name}": 0.0 for name in ("image", "vector", "reward", "discount")}
    learner, batch = setting(scales | kl_options(balance=balance), lead=(1, B))
    rssm = learner.model.rssm
    grads = torch.autograd.grad(learner.model_loss(batch)[0], [rssm.obs_stats.weight, rssm.img_stats.weight])
    assert [bool(grad.any()) for grad in grads] == [posterior, prior]


@pytest.mark.parametrize("free_avg", [True, False])
def test_below_the_free_nats_the_prior_is_not_trained(free_avg):
    learner, batch = setting(kl_options(free_nats=100.0, free_avg=free_avg))
    (grad,) = torch.autograd.grad(learner.model_loss(batch)[0], [learner.model.rssm.img_stats.weight])
    assert not grad.any()


@pytest.mark.parametrize(("obs", "latent"), [(VECTOR, "categorical"), (IMAGE, "gaussian"), (BOTH, "categorical")])
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_trains_the_whole_world_model_and_nothing_else(obs, latent, norm):
    learner, batch = setting({"world_model.rssm.latent": latent, "world_model.norm": norm}, obs)
    named = dict(learner.policy.named_parameters())
    trained = {name for name, parameter in named.items() if parameter.requires_grad}
    grads = torch.autograd.grad(learner.model_loss(batch)[0], [named[name] for name in sorted(trained)],
                                allow_unused=True)
    received = {name for name, grad in zip(sorted(trained), grads, strict=True) if grad is not None and grad.any()}
    assert received == {name for name in named if name.startswith("world_model.")}


@pytest.mark.parametrize("heads", [(), ("decoder",), ("reward",), ("discount",), ("decoder", "reward", "discount")])
def test_heads_outside_grad_heads_learn_without_shaping_the_features(heads):
    learner, batch = setting({"world_model.grad_heads": heads}, BOTH)
    feat = torch.randn(T, B, learner.model.rssm.feat_size, requires_grad=True)
    losses = learner.head_losses(feat, learner.model.preprocess(batch.obs), batch)
    assert set(losses) == {"image_loss", "vector_loss", "reward_loss", "discount_loss"}
    for name, loss in losses.items():
        head = {"image_loss": "decoder", "vector_loss": "decoder"}.get(name, name.removesuffix("_loss"))
        part = getattr(learner.model, head)
        grad, *own = torch.autograd.grad(loss, [feat, *part.parameters()], allow_unused=True)
        assert (grad is not None) == (head in heads)
        assert any(g is not None and g.any() for g in own)


@pytest.mark.parametrize(("transform", "scale", "expected"), [
    ("tanh", 1.0, [math.tanh(-2), 0.0, 0.761594]), ("sign", 1.0, [-1, 0, 1]), ("identity", 1.0, [-2, 0, 1]),
    ("tanh", 0.5, [math.tanh(-1), 0.0, math.tanh(0.5)]), ("identity", 0.25, [-0.5, 0, 0.25])])
def test_reward_transform_is_applied_when_a_batch_is_read(transform, scale, expected):
    learner, batch = setting({"world_model.reward_transform": transform, "world_model.reward_scale": scale})
    raw = torch.tensor([-2.0, 0.0, 1.0])
    assert learner.transform_reward(raw).tolist() == pytest.approx(expected, abs=1e-6)
    assert raw.tolist() == [-2, 0, 1]
    feat = torch.randn(T, B, learner.model.rssm.feat_size)
    batch = batch._replace(reward=raw.expand(T, B))
    target = torch.tensor(expected).expand(T, B)
    loss = learner.head_losses(feat, batch.obs, batch)["reward_loss"]
    torch.testing.assert_close(loss, -Normal(learner.model.reward(feat), 1.0).log_prob(target).mean())


def test_replayed_rewards_stay_raw():
    learner, row = tiny_learner(), random_row()
    row.reward[:] = 1.0
    learner.update(row)
    assert (row.reward == 1.0).all()


def test_only_a_terminal_row_cuts_the_discount():
    learner = tiny_learner({"gamma": 0.97})
    flags = torch.tensor([[False, True], [True, False]])
    assert learner.true_discount(flags).tolist() == [[pytest.approx(0.97), 0], [0, pytest.approx(0.97)]]
    row = random_row()
    row.is_terminal[:], row.is_last[:] = False, True  # a time limit
    assert learner.true_discount(learner.to_device(row).is_terminal).eq(0.97).all()


def test_image_likelihood_is_summed_over_pixels_and_averaged_over_rows():
    """Every pixel off by 0.1 on the scale of the networks."""
    learner, batch = setting(obs=IMAGE)
    last = learner.model.decoder.conv.layers[-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    batch.obs["image"] = torch.full((T, B, 64, 64, 1), 102, dtype=torch.uint8)  # 102 / 255 - 0.5 = -0.1
    assert learner.model_loss(batch)[2]["model/image_loss"].item() == pytest.approx(3784.452232, abs=1e-2)


def test_without_a_discount_head_there_is_no_discount_loss():
    learner, batch = setting({"world_model.predict_discount": False})
    assert "model/discount_loss" not in learner.model_loss(batch)[2]


def test_every_time_step_counts_the_first_included():
    learner, batch = setting()
    feat = torch.randn(T, B, learner.model.rssm.feat_size, requires_grad=True)
    loss = sum(learner.head_losses(feat, batch.obs, batch).values())
    (grad,) = torch.autograd.grad(loss, feat)
    assert grad.any(-1).all()


def test_episodes_in_one_sequence_do_not_leak_into_each_other():
    learner, batch = setting({"world_model.rssm.latent": "gaussian"})
    state, changed = learner.generator.get_state(), random_row()
    post = learner.model_loss(batch)[1]
    changed.obs["state"][:2] += 1.0  # the first episode of sequences 0 and 2 ends there
    changed.action[:3] *= -1.0
    learner.generator.set_state(state)
    other = learner.model_loss(learner.to_device(changed))[1]
    same = (post.feat == other.feat).all(-1)
    assert same[2:, [0, 2]].all() and not same[2:, 1].any() and not same[:2].any()


def test_constant_batch_is_learned():
    """Losses fall to the constants of a perfect prediction: ln sqrt(2 pi) per number, the entropy of the label."""
    opt = {"model_opt.lr": 1e-3, "gamma": 0.999}
    learner, row = tiny_learner(opt, IMAGE), random_row((3, 1), IMAGE)
    row.obs["image"][:] = 200
    row.action[:], row.reward[:] = row.action[0, 0], 1.0
    row.is_first[1:], row.is_terminal[:] = False, False
    batch = learner.to_device(row)
    first = None
    for _ in range(250):
        loss, _, metrics = learner.model_loss(batch)
        learner.model_opt.minimize(loss)
        first = first or {name: value.item() for name, value in metrics.items()}
    values = {name.removeprefix("model/"): value.item() for name, value in metrics.items()}
    constant = 4096 * 0.918939
    assert first["model/image_loss"] > constant + 100
    assert values["image_loss"] == pytest.approx(constant, abs=2.0)
    assert values["reward_loss"] == pytest.approx(0.918939, abs=0.005)
    assert values["discount_loss"] == pytest.approx(0.0079073, abs=0.005) and first["model/discount_loss"] > 0.1
    assert values["kl"] < 0.05


@pytest.mark.parametrize("action", [DISCRETE, CONTINUOUS])
def test_batch_reaches_the_device_as_it_is(action):
    learner, row = tiny_learner(None, BOTH, action), random_row((T, B), BOTH, action)
    batch = learner.to_device(row)
    assert batch.obs["camera"].dtype == torch.uint8 and batch.is_first.dtype == batch.is_terminal.dtype == torch.bool
    for name, value in row.obs.items():
        np.testing.assert_array_equal(batch.obs[name].numpy(), value)
    for name in ("action", "reward", "is_first", "is_terminal"):
        np.testing.assert_array_equal(getattr(batch, name).numpy(), getattr(row, name))
