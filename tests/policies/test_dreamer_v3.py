"""DreamerV3's policy: sizes by name, laws of actions, acting."""

import numpy as np
import pytest
import torch
from scipy import stats

from tests.builders import CONTINUOUS, DISCRETE, VECTOR, generator, parameter_count
from tests.dreamer_v3 import tiny_config
from xrl.common.row import ActionSpec, ObsSpec
from xrl.configs.schemas.dreamer_v3 import DreamerV3Config
from xrl.nn.heads import BoundedNormalActor
from xrl.policies.dreamer_v3 import DreamerV3Policy

ATARI = {"image": ObsSpec("image", (64, 64, 3))}, ActionSpec("discrete", 18)
WALKER = {name: ObsSpec("vector", (size,)) for name, size in (("height", 1), ("orientations", 14), ("velocity", 9))}, (
    ActionSpec("continuous", 6))
CARTPOLE = {"vector": ObsSpec("vector", (4,))}, ActionSpec("discrete", 2)


def published(size, obs, action):
    with torch.device("meta"):
        config = DreamerV3Config(method="DreamerV3", env_name="any", env_id="any", size=size)
        return DreamerV3Policy(obs, action, config)


@pytest.mark.parametrize(("size", "task", "counts"), [
    ("1m", ATARI, (14_304, 377_472, 80_595, 57_663, 41_153, 50_706, 66_111)),
    ("1m", WALKER, (10_112, 364_416, 51_096, 57_663, 41_153, 50_316, 66_111)),
    ("12m", ATARI, (220_416, 5_982_720, 1_272_003, 721_407, 656_129, 792_594, 853_503)),
    ("12m", WALKER, (138_752, 5_783_040, 794_136, 721_407, 656_129, 791_052, 853_503)),
    ("25m", ATARI, (493_824, 13_446_912, 2_857_635, 1_573_503, 1_475_713, 1_778_706, 1_869_951)),
    ("25m", WALKER, (306_432, 12_999_936, 1_781_016, 1_573_503, 1_475_713, 1_776_396, 1_869_951))])
def test_parameters_at_published_sizes(size, task, counts):
    policy = published(size, *task)
    model = policy.world_model
    parts = (model.encoder, model.rssm, model.decoder, model.reward, model.discount, policy.actor, policy.critic)
    assert tuple(map(parameter_count, parts)) == counts


@pytest.mark.parametrize(("size", "total"), [("1m", 637_381), ("12m", 9_724_165), ("25m", 21_762_181)])
def test_parameters_of_cartpole(size, total):
    policy = published(size, *CARTPOLE)
    assert parameter_count(policy) - parameter_count(policy.slow_critic) == total


@pytest.mark.parametrize(("raw", "std"), [(0.0, 0.8927174), (-2.0, 0.55), (2.0, 0.9838124), (-50.0, 0.1)])
def test_deviation_of_the_normal_policy(raw, std):
    actor = BoundedNormalActor(3, 1, 1, 4)
    torch.nn.init.zeros_(actor.scale.weight)
    torch.nn.init.constant_(actor.scale.bias, raw)
    assert actor(torch.randn(2, 3)).scale.flatten().tolist() == pytest.approx([std] * 2, rel=1e-6)


def test_law_of_the_normal_policy():
    actor = BoundedNormalActor(3, 1, 1, 4)
    for layer, bias in ((actor.loc, 0.3), (actor.scale, 0.0)):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.constant_(layer.bias, bias)
    law = actor(torch.randn(1, 3))
    theirs = stats.norm(np.tanh(0.3), 0.8927174)
    assert law.loc.item() == pytest.approx(0.2913126)
    for action, expected in ((0.5, -0.8327767), (1.7, -2.0504588)):
        assert law.log_prob(torch.tensor([[action]])).item() == pytest.approx(expected, rel=1e-6)
        assert expected == pytest.approx(theirs.logpdf(action), rel=1e-6)
    assert law.entropy().item() == pytest.approx(1.3054533) == pytest.approx(float(theirs.entropy()))
    drawn = law.sample(torch.rand(20_000, 1, generator=generator()))
    assert stats.kstest(drawn.detach().flatten().numpy(), theirs.cdf).pvalue > 1e-3
    assert law.mode().item() == law.loc.item()


@pytest.mark.parametrize("action", [DISCRETE, CONTINUOUS])
def test_a_policy_begins_nearly_uniform_and_its_heads_at_zero(action):
    torch.manual_seed(0)
    policy = DreamerV3Policy(VECTOR, action, tiny_config())
    feat = torch.randn(50, policy.world_model.rssm.feat_size)
    law = policy.actor(feat)
    if action is DISCRETE:
        assert law.entropy().min().item() == pytest.approx(np.log(3), abs=1e-3)
    else:
        assert law.loc.abs().max().item() < 0.1
    assert not policy.world_model.reward(feat).any() and not policy.critic(feat).any()
    pairs = zip(policy.critic.parameters(), policy.slow_critic.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("unimix", [0.0, 0.3])
def test_uniform_share_of_the_policy(unimix):
    policy = DreamerV3Policy(VECTOR, DISCRETE, tiny_config({"actor.unimix": unimix}))
    torch.nn.init.constant_(policy.actor.out.bias, 0.0)
    policy.actor.out.bias.data[0] = 90.0
    probs = policy.actor(torch.randn(2, policy.world_model.rssm.feat_size)).logits.softmax(-1)
    assert probs[:, 1].tolist() == pytest.approx([unimix / 3] * 2, abs=1e-6)


def test_value_counts_the_reward_of_arriving():
    policy = DreamerV3Policy(VECTOR, DISCRETE, tiny_config())
    model, feat = policy.world_model, torch.randn(4, policy.world_model.rssm.feat_size)
    for head in (model.reward, policy.critic):
        torch.nn.init.normal_(head.out.weight)
    expected = model.reward(feat) + model.discount(feat) * policy.critic(feat)
    assert torch.allclose(policy.value(feat), expected)
    assert (policy.cont(feat) <= 1).all() and torch.allclose(policy.cont(feat) * policy.gamma, model.discount(feat),
                                                             atol=2e-2)
