"""DreamerV1's world-model loss against torch.distributions, its options, and whom it trains."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from tests.builders import BOTH, IMAGE, VECTOR, float64, random_row
from tests.builders_v1 import v1_learner

T, B = 5, 3
DISCOUNT = {"world_model.predict_discount": True}


def setting(changes=None, obs=VECTOR, std=0.1):
    learner = v1_learner(changes, obs)
    for parameter in learner.model.parameters():
        nn.init.normal_(parameter, std=std)
    return learner, learner.to_device(random_row((T, B), obs))


def filtered(learner, batch):
    """What the loss is made of, recomputed with the noise that the next call will draw."""
    model, random = learner.model, torch.Generator()
    random.set_state(learner.generator.get_state())
    obs = {name: value.double() / 255 - 0.5 if value.dtype == torch.uint8 else value.double()
           for name, value in batch.obs.items()}
    noise = model.latent.noise(T, B, generator=random)
    return obs, *model.rssm.observe(model.encoder(obs), batch.action.double(), batch.is_first, noise)


def double_batch(batch):
    obs = {name: value if value.dtype == torch.uint8 else value.double() for name, value in batch.obs.items()}
    return batch._replace(obs=obs, action=batch.action.double(), reward=batch.reward.double())


def law(stats):
    """Mean, and standard deviation softplus(s) + 0.1."""
    mean, raw = stats.chunk(2, -1)
    return Normal(mean, torch.log1p(raw.exp()) + 0.1)


@pytest.mark.parametrize("changes", [
    {}, {"gamma": 0.9, **DISCOUNT}, {"world_model.kl.scale": 0.3, "world_model.kl.free_nats": 0.0},
    {**DISCOUNT, **{f"world_model.loss_scales.{name}": scale for name, scale in
                    [("image", 0.5), ("vector", 2.0), ("reward", 3.0), ("discount", 5.0)]}},
    {"world_model.reward_scale": 2.0}, {"world_model.reward_scale": 2.0, "world_model.reward_transform": "tanh"},
], ids=str)
def test_loss_equals_torch_distributions(changes):
    with float64():
        learner, batch = setting(changes, BOTH, std=0.2)
        batch, model, config = double_batch(batch), learner.model, learner.config
        obs, post, post_stats, prior_stats = filtered(learner, batch)
        loss, _, metrics = learner.model_loss(batch)
        scales = dict(config.world_model.loss_scales)
        means = model.decoder(post.feat)
        kinds = {"image": ("camera", "map"), "vector": ("joints", "state")}
        parts = {}
        for kind, names in kinds.items():
            parts[kind] = sum(-Normal(means[name], 1.0).log_prob(obs[name]).flatten(2).sum(-1).mean() for name in names)
        reward = batch.reward * config.world_model.reward_scale
        reward = torch.tanh(reward) if config.world_model.reward_transform == "tanh" else reward
        parts["reward"] = -Normal(model.reward(post.feat), 1.0).log_prob(reward).mean()
        if model.discount is not None:
            mean, label = model.discount(post.feat), config.gamma * (1 - batch.is_terminal.double())
            parts["discount"] = -(label * mean.log() + (1 - label) * (1 - mean).log()).mean()
    kl = kl_divergence(law(post_stats), law(prior_stats)).sum(-1).mean()
    floor = max(kl.item(), config.world_model.kl.free_nats)
    expected = sum(scales[name] * value for name, value in parts.items()) + config.world_model.kl.scale * floor
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    assert metrics["model/kl"].item() == pytest.approx(kl.item(), rel=1e-9)
    for name, value in parts.items():
        assert metrics[f"model/{name}_loss"].item() == pytest.approx(value.item(), rel=1e-9)


def test_published_weights_of_the_losses():
    config = v1_learner().config.world_model
    assert dict(config.loss_scales) == {"image": 1, "vector": 1, "reward": 1, "discount": 10}
    assert (config.kl.scale, config.kl.free_nats, config.reward_transform) == (1, 3, "identity")
    assert not config.predict_discount


def kl_gradients(learner, batch, changes):
    """Of the loss made of the KL alone, to what only the posterior, and what only the prior, is computed from."""
    zeros = {f"world_model.loss_scales.{name}": 0.0 for name in ("image", "vector", "reward", "discount")}
    learner, batch = setting({**zeros, **changes})
    loss = learner.model_loss(batch)[0]
    rssm = learner.model.rssm
    return [torch.autograd.grad(loss, layer.weight, retain_graph=True)[0] for layer in (rssm.obs_stats, rssm.img_stats)]


def test_the_kl_teaches_posterior_and_prior_alike_unless_its_mean_is_free():
    learner, batch = setting()
    kl = learner.model_loss(batch)[2]["model/kl"].item()
    for free, silent in ((0.0, False), (0.99 * kl, False), (1.01 * kl, True)):
        found = kl_gradients(learner, batch, {"world_model.kl.free_nats": free})
        assert [not grad.any() for grad in found] == [silent, silent]


def test_free_nats_clip_the_mean_not_its_entries():
    """Below the mean some rows are, and they are trained all the same."""
    with float64():
        learner, batch = setting({"world_model.kl.free_nats": 0.0}, std=0.6)
        batch = double_batch(batch)
        _, _, post_stats, prior_stats = filtered(learner, batch)
        rows = kl_divergence(law(post_stats), law(prior_stats)).sum(-1)
        floor = rows.mean().item() * 0.9
        assert (rows < floor).any()
        free = setting({"world_model.kl.free_nats": floor}, std=0.6)[0]
        assert free.model_loss(batch)[0].item() == pytest.approx(learner.model_loss(batch)[0].item(), rel=1e-12)


def test_golden_numbers():
    """The free nats in force, a perfect image and a perfect reward: what is left are constants."""
    learner, batch = setting({"world_model.kl.free_nats": 3.0}, IMAGE)
    learner.model.decoder.forward = lambda feat: learner.model.preprocess(batch.obs)
    learner.model.reward.forward = lambda feat: batch.reward
    for parameter in learner.model.rssm.parameters():
        nn.init.zeros_(parameter)
    loss, _, metrics = learner.model_loss(batch)
    assert metrics["model/image_loss"].item() == pytest.approx(64 * 64 * 0.9189385, rel=1e-6)
    assert metrics["model/kl"].item() == 0 and metrics["model/kl_loss"].item() == 3.0
    assert loss.item() == pytest.approx(64 * 64 * 0.9189385 + 0.9189385 + 3.0, rel=1e-6)


def test_every_head_shapes_the_representation():
    for name in ("image", "vector", "reward", "discount"):
        others = {f"world_model.loss_scales.{other}": 0.0 for other in ("image", "vector", "reward", "discount")
                  if other != name}
        learner, batch = setting({**DISCOUNT, **others, "world_model.kl.scale": 0.0}, BOTH)
        loss = learner.model_loss(batch)[0]
        grads = torch.autograd.grad(loss, list(learner.model.encoder.parameters()))
        assert any(grad.any() for grad in grads), name


def test_the_loss_leaves_actor_and_critic_alone_and_the_posterior_is_detached():
    learner, batch = setting(DISCOUNT)
    loss, post, _ = learner.model_loss(batch)
    parameters = [*learner.actor.parameters(), *learner.critic.parameters()]
    assert all(grad is None for grad in torch.autograd.grad(loss, parameters, allow_unused=True))
    assert not post.deter.requires_grad and not post.stoch.requires_grad


def test_the_reward_of_a_reset_row_counts_and_a_terminal_row_has_the_label_0():
    """The discount's label is gamma where an episode goes on, also where it is cut by a time limit."""
    learner, batch = setting({"gamma": 0.9, **DISCOUNT})
    labels = {}
    learner.model.discount.loss = lambda feat, target: labels.update(found=target) or target
    learner.model_loss(batch)
    torch.testing.assert_close(labels["found"], torch.where(batch.is_terminal, 0.0, 0.9))
