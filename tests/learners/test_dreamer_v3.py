"""DreamerV3's losses against numbers worked out by hand or in a float64 NumPy loop, and who learns from which."""

import numpy as np
import pytest
import torch

from tests.builders import BOTH, CONTINUOUS, DISCRETE, IMAGE, VECTOR, random_row, snapshot, unchanged
from tests.counting import calls_of
from tests.dreamer_v3 import dream_of, tiny_batch, tiny_config, tiny_learner
from xrl.common.errors import NumericalError
from xrl.common.row import ActionSpec
from xrl.nn.distributions import OneHot
from xrl.ops.kl import weighted_kl
from xrl.ops.targets import move_parameters
from xrl.world_models.latents import CategoricalLatent
from xrl.world_models.rssm import State

COMPILE = torch.compile
SEVERAL = ActionSpec("multi_discrete", 5, (2, 3))
SPACES = [(VECTOR, DISCRETE), (IMAGE, CONTINUOUS), (BOTH, SEVERAL)]


def column(*values):
    return torch.tensor(values)[:, None]


# Latents -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "least", "most"), [(4, 0.0025, 0.9925), (16, 0.000625, 0.990625)])
def test_no_class_is_impossible(classes, least, most):
    probs = CategoricalLatent(1, classes, 0.01).probs(torch.tensor([[60.0] + [-60.0] * (classes - 1)]))[0, 0]
    assert probs.sort().values[[0, -1]].tolist() == pytest.approx([least, most], rel=1e-4)


def test_kl_is_that_of_the_mixtures():
    latent, law = CategoricalLatent(1, 3, 0.01), torch.distributions.Categorical
    post = torch.log(torch.tensor([0.7, 0.2, 0.1])).requires_grad_()
    prior = torch.zeros(3, requires_grad=True)
    dyn, rep = latent.kl(post, prior)
    assert dyn.item() == rep.item() == pytest.approx(0.2906240, rel=1e-6)
    mixed = [law(probs=0.99 * logits.softmax(-1) + 0.01 / 3) for logits in (post, prior)]
    assert dyn.item() == pytest.approx(torch.distributions.kl_divergence(*mixed).item(), rel=1e-6)
    dyn.backward()
    assert prior.grad.tolist() == pytest.approx([-0.359370, 0.130680, 0.228690], abs=1e-6) and post.grad is None
    rep.backward()
    assert post.grad.tolist() == pytest.approx([0.304873, -0.158585, -0.146288], abs=1e-6)


def test_kl_is_bounded():
    latent = CategoricalLatent(32, 4, 0.01)
    post, prior = torch.full((32, 4), -99.0), torch.full((32, 4), -99.0)
    post[:, 0], prior[:, 1] = 99.0, 99.0
    assert latent.kl(post.flatten(), prior.flatten())[0].item() == pytest.approx(189.5711014, rel=1e-5)


@pytest.mark.parametrize(("classes", "entropy"), [(4, 44.3614196), (16, 88.7228391), (64, 133.0842587)])
def test_entropy_of_latents_that_know_nothing(classes, entropy):
    assert CategoricalLatent(32, classes, 0.01).entropy(torch.zeros(32 * classes)).item() == pytest.approx(entropy)


def test_samples_carry_the_gradient_of_the_mixture():
    logits = torch.log(torch.tensor([1.0, 2.0, 3.0])).requires_grad_()
    sample = CategoricalLatent(1, 3, 0.01).sample(logits, torch.tensor([0.5]))
    (sample * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert logits.grad.tolist() == pytest.approx([-0.22, -0.11, 0.33], abs=1e-6)


def test_free_bits_are_counted_row_by_row():
    rows = torch.tensor([0.5, 2.5], requires_grad=True)
    losses = weighted_kl(rows, torch.zeros(2), 1.0, 0.0, 1.0)
    assert losses.mean().item() == pytest.approx(1.75)  # a clipped mean would be 1.5
    assert weighted_kl(rows, rows, 1.0, 0.1, 1.0).mean().item() == pytest.approx(1.925)
    losses.sum().backward()
    assert rows.grad.tolist() == [0, 1]


# World model ---------------------------------------------------------------------------------------------------------


def test_errors_are_summed_over_numbers_without_a_half():
    learner = tiny_learner(obs=BOTH)
    batch, model = tiny_batch(learner, obs=BOTH), learner.model
    obs = model.preprocess(batch.obs)
    off = {"camera": 0.1, "map": 0.0, "joints": 0.0, "state": 0.2}
    model.decoder.forward = lambda feat: {name: obs[name] + off[name] for name in obs}
    losses, _, metrics = learner.model_losses(batch)
    assert losses["reconstruction"].mean().item() == pytest.approx(64 * 64 * 3 * 0.01 + 3 * 0.04, rel=1e-4)
    assert metrics["model/image_loss"].item() == pytest.approx(122.88, rel=1e-4)


def test_vectors_are_compared_in_symlog_space():
    model = tiny_learner().model
    raw = torch.tensor([[0.0, np.e - 1, 1 - np.e**2]])
    assert model.preprocess({"state": raw})["state"].square().sum().item() == pytest.approx(5.0, rel=1e-6)
    assert torch.allclose(model.unprocess(model.preprocess({"state": raw}))["state"], raw)


def test_gamma_is_the_label_of_a_step_that_goes_on():
    learner, label = tiny_learner(), 1 - 1 / 333
    batch = tiny_batch(learner)
    torch.nn.init.zeros_(learner.model.discount.out.weight)
    for bias, going_on, ended in ((0.0, 0.6931472, 0.6931472), (5.8051350, 0.0204404, 5.8081425)):
        torch.nn.init.constant_(learner.model.discount.out.bias, bias)
        losses = learner.model_losses(batch)[0]["discount"]
        expected = torch.where(batch.is_terminal, ended, going_on)
        assert torch.allclose(losses, expected.to(losses.dtype), atol=1e-5)
    assert learner.config.gamma == label


@pytest.mark.parametrize(("obs", "action"), SPACES)
def test_every_loss_has_an_entry_for_every_row(obs, action):
    learner = tiny_learner(obs=obs, action=action)
    losses, post, _ = learner.model_losses(tiny_batch(learner, obs=obs, action=action))
    assert {name: tuple(loss.shape) for name, loss in losses.items()} == dict.fromkeys(
        ("reconstruction", "reward", "discount", "dyn", "rep"), (5, 3))
    assert post.deter.shape == (5, 3, 8)


def test_a_reset_row_forgets_state_and_action():
    learner = tiny_learner()
    rssm, latent = learner.model.rssm, learner.model.latent
    state = State(torch.randn(2, 8), torch.rand(2, 16))
    action, noise = torch.eye(3)[[2, 1]], torch.rand(1, 2, latent.stoch)
    embed, first = torch.randn(1, 2, learner.model.encoder.size), torch.tensor([[True, False]])
    found, _ = rssm.observe_from(state, action[None], embed, first, noise)
    fresh, _ = rssm.observe_from(rssm.initial(2), torch.zeros(1, 2, 3), embed, first, noise)
    assert torch.equal(found.deter[0, 0], fresh.deter[0, 0]) and not torch.equal(found.deter[0, 1], fresh.deter[0, 1])


def test_a_sequence_goes_on_from_the_state_it_is_given():
    learner = tiny_learner()
    row = random_row((6, 3))
    row.is_first[:] = False
    whole = learner.model_losses(learner.to_device(row))[1]
    later = type(row)({name: value[2:] for name, value in row.obs.items()},
                      *(getattr(row, name)[2:] for name in ("action", "reward", "is_first", "is_last", "is_terminal")))
    classes = whole.stoch[1].unflatten(-1, (4, 4)).argmax(-1)
    batch = learner.to_device(later, (whole.deter[1].detach().numpy(), classes.numpy()))
    noise = learner.model.latent.noise(4, 3, generator=torch.Generator().manual_seed(9))
    embed = learner.model.encoder(learner.model.preprocess(batch.obs))
    found, _ = learner.model.rssm.observe_from(learner.before(batch), batch.action, embed, batch.is_first, noise)
    expected, _ = learner.model.rssm.observe_from(
        State(whole.deter[1], whole.stoch[1]), batch.action, embed, batch.is_first, noise)
    assert torch.equal(found.deter, expected.deter)
    zeros, _ = learner.model.rssm.observe_from(
        learner.model.rssm.initial(3), batch.action, embed, batch.is_first, noise)
    assert not torch.allclose(found.deter, zeros.deter)


# Imagination ---------------------------------------------------------------------------------------------------------


class Given:
    """A network that answers what it was given."""

    def __init__(self, values):
        self.values = values

    def __call__(self, feat):
        return self.values[-len(feat):]


def imagined(reward, cont, value, lambda_=0.95):
    """The dream of a learner whose heads say this at states 0 .. H."""
    learner = tiny_learner({"horizon": len(cont) - 1, "lambda_": lambda_})
    del learner.model.reward, learner.model.discount
    learner.model.reward, learner.model.discount = Given(column(*reward)), Given(column(*cont))
    learner.critic = Given(column(*value))
    with torch.no_grad():
        return learner.imagine(learner.model.rssm.initial(1))


@pytest.mark.parametrize(("lambda_", "targets"), [
    (0.95, [20.0292, 22.67, 28.0]), (0.0, [18, 24, 28]), (1.0, [20.08, 22.6, 28])])
def test_targets_take_the_next_reward(lambda_, targets):
    dream = imagined([99.0, 2, 3, 4], [0.9, 0.8, 0.7, 0.6], [10.0, 20, 30, 40], lambda_)
    assert dream.target[:, 0].tolist() == pytest.approx(targets)
    assert dream.weight[:, 0].tolist() == pytest.approx([0.9, 0.72, 0.504])
    assert dream.value[:, 0].tolist() == [10, 20, 30]


def test_death_in_a_dream_ends_its_value_and_its_weight():
    dream = imagined([9.0, 1, 2, 3], [0.99, 0.99, 0.0, 0.99], [5.0, 6, 7, 8])
    assert dream.target[:, 0].tolist() == pytest.approx([3.178, 2, 10.92])
    assert dream.weight[:, 0].tolist() == pytest.approx([0.99, 0.9801, 0])


def test_one_for_ever_is_worth_333():
    gamma = 1 - 1 / 333
    dream = imagined([1.0] * 16, [gamma] * 16, [333.0] * 16)
    assert dream.target[:, 0].tolist() == pytest.approx([333.0] * 15, rel=1e-5)


def test_the_first_weight_is_predicted():
    assert imagined([0.0, 0], [0.0, 0.9], [0.0, 0]).weight.item() == 0.0


@pytest.mark.parametrize("action", [DISCRETE, CONTINUOUS, SEVERAL])
def test_dreams_have_no_gradient_and_h_steps(action):
    learner = tiny_learner(action=action)
    _, post, _ = learner.model_losses(tiny_batch(learner, action=action))
    with torch.no_grad():
        dream = learner.imagine(learner.start_states(post))
    assert dream.action.shape == (4, 15, action.size) and dream.feat[:].detach()[0] is not None
    assert dream.target.shape == dream.weight.shape == dream.value.shape == (4, 15)
    assert not any(part.requires_grad for part in dream[1:])


def test_imagination_starts_from_some_sequences_if_told():
    learner = tiny_learner({"imagination.sequences": 2})
    _, post, _ = learner.model_losses(tiny_batch(learner))
    assert learner.start_states(post).deter.tolist() == post.deter[:, :2].flatten(0, 1).tolist()


# Behaviour -----------------------------------------------------------------------------------------------------------


def test_percentiles_are_numpys():
    learner = tiny_learner({"returns.rate": 1.0})
    for values in (np.arange(101.0), np.array([1.0, 2, 3, 4]), np.array([0.0, 10])):
        learner.scale(torch.tensor(values, dtype=torch.float32)[:, None])
        assert learner.range.tolist() == pytest.approx(np.percentile(values, [5, 95]).tolist(), rel=1e-5)


def test_range_of_returns_is_a_slow_average_that_begins_at_zero():
    learner, found = tiny_learner(), {}
    for update in range(1, 201):
        found[update] = learner.scale(torch.arange(101.0)[:, None]).item()
    expected = {1: 1, 2: 1.7910, 3: 2.67309, 10: 8.6056132, 100: 57.0570893, 200: 77.9418293}
    assert [found[update] for update in expected] == pytest.approx(list(expected.values()), rel=1e-4)
    small = tiny_learner()
    narrow = torch.linspace(0, 1.5 / 0.9, 101)[:, None]
    scales = [small.scale(narrow).item() for _ in range(120)]
    assert [scale > 1 for scale in scales].index(True) == 109  # update 110


def test_range_survives_returns_that_are_not_finite():
    learner = tiny_learner()
    learner.scale(torch.arange(101.0)[:, None])
    before = learner.range.clone()
    learner.scale(torch.tensor([[float("nan")], [1.0]]))
    assert torch.equal(learner.range, before)


@pytest.mark.parametrize(("limit", "expected"), [(4.0, 0.3117291), (8.0, 0.1557710)])
def test_actor_loss_by_hand(limit, expected):
    learner = tiny_learner({"returns.limit": limit}, action=ActionSpec("discrete", 2))
    logits = torch.zeros(1, 1, 2, requires_grad=True)
    learner.actor = lambda feat: OneHot(logits)
    dream = dream_of(feat=torch.zeros(2, 1, 24), action=torch.tensor([[[1.0, 0.0]]]), value=column(1.0),
                     weight=column(0.9), target=column(3.0))
    loss, _ = learner.actor_loss(dream)
    loss.mean().backward()
    assert loss.mean().item() == pytest.approx(expected, rel=1e-6)
    assert logits.grad.flatten().tolist() == pytest.approx([-0.225 * 4 / limit, 0.225 * 4 / limit])


def test_entropy_is_rewarded():
    losses = []
    for entropy in (0.0, 0.5):
        learner = tiny_learner({"actor.entropy": entropy})
        dream = dream_of(feat=torch.zeros(2, 1, 24), action=torch.tensor([[[1.0, 0.0, 0.0]]]), value=column(0.0),
                         weight=column(0.5), target=column(0.0))
        losses.append(learner.actor_loss(dream)[0].item())
    assert losses[0] - losses[1] == pytest.approx(0.5 * 0.5 * np.log(3), rel=1e-3)


@pytest.mark.parametrize("slow_weight", [1.0, 0.0])
def test_critic_loss_begins_at_the_entropy_of_its_bins(slow_weight):
    learner = tiny_learner({"model.bins": 255, "critic.slow_weight": slow_weight})
    dream = dream_of(feat=torch.randn(4, 1, 24), weight=column(0.99, 0.9801, 0.0), target=column(3.178, 2.0, 10.92),
                     value=column(0.0, 0, 0))
    loss, _ = learner.critic_loss(dream)
    assert loss.mean().item() == pytest.approx(7.2778955 * (1 + slow_weight) / 2, rel=1e-5)


def replayed_targets(learner, batch, boot):
    """G_0 .. G_{T-2}, (T-1, B), and what the loss weighs, by the definition, in float64."""
    gamma, lambda_ = learner.config.gamma, learner.config.lambda_
    boot, reward = boot.double().numpy(), batch.reward.double().numpy()
    terminal, last = batch.is_terminal.numpy(), batch.is_last.numpy().copy()
    last[:-1] |= batch.is_first.numpy()[1:]
    gain, gains = boot[-1], []
    for t in reversed(range(len(reward) - 1)):
        mixing = lambda_ * (1 - last[t + 1])
        gain = reward[t + 1] + gamma * (1 - terminal[t + 1]) * ((1 - mixing) * boot[t + 1] + mixing * gain)
        gains.append(gain)
    return np.stack(gains[::-1]), 1.0 - last[:-1]


@pytest.mark.parametrize("cut", [False, True])
def test_replayed_rows_have_the_targets_of_the_definition(cut, monkeypatch):
    learner = tiny_learner()
    batch = tiny_batch(learner, (7, 3), seed=4)
    if cut:  # an episode that nothing marks as ended: the next row is a first one
        batch = batch._replace(is_last=torch.zeros_like(batch.is_last), is_terminal=torch.zeros_like(batch.is_terminal))
    boot, seen = torch.randn(7, 3), []
    post = State(torch.randn(7, 3, 8), torch.randn(7, 3, 16))
    monkeypatch.setattr(learner, "_two_targets", lambda feat, target: (seen.append(target) or torch.ones(6, 3), None))
    loss = learner.replay_critic_loss(post, batch, boot.flatten())
    target, weight = replayed_targets(learner, batch, boot)
    assert loss.numpy() == pytest.approx(weight) and 0 < weight.sum() < weight.size
    assert (seen[0].numpy() * weight) == pytest.approx(target * weight, abs=1e-5)


def test_every_weight_multiplies_its_own_loss():
    names = ("reconstruction", "reward", "discount", "dyn", "rep", "actor", "critic", "replay_critic")
    losses = {name: torch.full((2, 3), 10.0**place) for place, name in enumerate(names)}
    weights = {name: place + 2 for place, name in enumerate(names)}
    learner = tiny_learner({f"loss.{name}": weight for name, weight in weights.items()})
    expected = sum(weight * 10.0**place for place, weight in enumerate(weights.values()))
    assert learner.total(losses).item() == pytest.approx(expected)


# Who learns from which -----------------------------------------------------------------------------------------------


def gradients(learner, loss):
    """Part -> whether it receives a gradient."""
    parts = {"encoder": learner.model.encoder, "rssm": learner.model.rssm, "decoder": learner.model.decoder,
             "reward": learner.model.reward, "discount": learner.model.discount, "actor": learner.actor,
             "critic": learner.critic}
    learner.policy.zero_grad()
    loss.mean().backward(retain_graph=True)
    return {name for name, part in parts.items()
            if any(p.grad is not None and bool((p.grad != 0).any()) for p in part.parameters())}


def test_gradients_go_where_they_should():
    learner = tiny_learner()
    torch.nn.init.normal_(learner.critic.out.weight, std=0.1)  # a zero output layer passes nothing on
    torch.nn.init.normal_(learner.model.reward.out.weight, std=0.1)
    batch = tiny_batch(learner)
    losses, post, _ = learner.model_losses(batch)
    with torch.no_grad():
        dream = learner.imagine(learner.start_states(post))
    assert gradients(learner, learner.actor_loss(dream)[0]) == {"actor"}
    assert gradients(learner, learner.critic_loss(dream)[0]) == {"critic"}
    assert gradients(learner, learner.replay_critic_loss(post, batch, dream.target[0])) == {"encoder", "rssm", "critic"}
    assert gradients(learner, losses["reward"]) == {"encoder", "rssm", "reward"}
    assert gradients(learner, losses["reconstruction"]) == {"encoder", "rssm", "decoder"}
    assert gradients(learner, losses["dyn"]) == {"encoder", "rssm"}
    satisfied = tiny_learner({"loss.free_bits": 99.0})
    assert gradients(satisfied, satisfied.model_losses(batch)[0]["dyn"]) == set()
    assert all(p.grad is None for p in learner.policy.slow_critic.parameters())


def test_the_first_update_moves_no_weight_but_fills_the_moments():
    learner = tiny_learner({"opt.warmup": 10})
    before = snapshot(learner.policy)
    learner.update(random_row())
    assert unchanged(learner.policy, before) and bool(learner.opt.mean.any()) and learner.posterior is not None
    learner.update(random_row(seed=1))
    assert not unchanged(learner.policy, before)


def test_the_slow_critic_follows_the_critic():
    learner = tiny_learner({"critic.slow_rate": 0.25})
    learner.update(random_row())
    critic, slow = (list(part.parameters()) for part in (learner.critic, learner.policy.slow_critic))
    before = [parameter.clone() for parameter in slow]
    learner.update(random_row(seed=1))
    for now, then, fast in zip(slow, before, critic, strict=True):
        assert torch.allclose(now, 0.75 * then + 0.25 * fast, atol=1e-7)


@pytest.mark.parametrize(("rate", "steps", "expected"), [
    (0.02, 1, 0.02), (0.02, 10, 0.1829272), (0.02, 100, 0.8673804)])
def test_moving_average(rate, steps, expected):
    source, target = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    for module, value in ((source, 1.0), (target, 0.0)):
        for parameter in module.parameters():
            torch.nn.init.constant_(parameter, value)
    for _ in range(steps):
        move_parameters(source, target, rate, when=torch.tensor(True))
    move_parameters(source, target, rate, when=torch.tensor(False))
    assert target.weight.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("obs", "action"), SPACES)
def test_updates_learn_and_stay_finite(obs, action):
    learner = tiny_learner({"opt.lr": 3e-3}, obs, action)
    row, found = random_row((5, 3), obs, action), []
    for _ in range(30):
        found.append({name: float(value) for name, value in learner.update(row).items()})
    assert all(np.isfinite(value) for metrics in found for value in metrics.values())
    kind = "model/vector_loss" if obs is VECTOR else "model/image_loss"
    assert found[-1][kind] < found[0][kind]


@pytest.mark.parametrize(("obs", "action"), SPACES)
def test_an_update_never_waits_for_the_device(obs, action):
    learner = tiny_learner(obs=obs, action=action)
    batch = tiny_batch(learner, obs=obs, action=action)
    learner.step(batch)
    assert [call.name for call in calls_of(lambda: learner.step(batch)).all if call.waits] == []


@pytest.mark.parametrize("precision", ["bf16"])
def test_other_precision_learns_too(precision):
    learner = tiny_learner({"precision": precision}, BOTH, CONTINUOUS)
    row = random_row((5, 3), BOTH, CONTINUOUS)
    losses = [float(learner.update(row)["model/image_loss"]) for _ in range(20)]
    assert losses[-1] < losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in learner.policy.parameters())


def test_compiled_is_the_same_update(monkeypatch):
    """What is compiled is entered, and nothing is left out; what a compiler makes of it is not ours."""
    compiled = []

    def compile_(function, **keys):
        compiled.append(function.__name__)
        return COMPILE(function, backend="aot_eager", **keys)

    monkeypatch.setattr(torch, "compile", compile_)
    fast, plain = (tiny_learner({"compile": mode}, action=CONTINUOUS) for mode in ("on", "off"))
    for seed in range(2):
        row = random_row(action=CONTINUOUS, seed=seed)
        torch.testing.assert_close(fast.update(row), plain.update(row))
    assert compiled == ["img_step"]  # compiled for real, the cell's backward pass gives another gradient


def test_a_bad_batch_is_left_out_and_named():
    learner = tiny_learner()
    learner.update(random_row())
    before = snapshot(learner.policy)
    bad = random_row(seed=1)
    bad.reward[2, 1] = np.nan
    learner.update(bad)
    assert unchanged(learner.policy, before)
    with pytest.raises(NumericalError, match=r"update 2: .*model/reward_loss.* is not finite; first bad parameter: "):
        learner.check()


def test_bad_batches_are_forgiven_if_told():
    learner = tiny_learner({"skip_nonfinite": 1})
    bad = random_row(seed=1)
    bad.reward[2, 1] = np.nan
    learner.update(bad)
    learner.update(random_row())
    learner.check()
    assert float(learner.health.skipped) == 1


def test_state_comes_back():
    learner, fresh = tiny_learner(seed=0), tiny_learner(seed=5)
    for seed in range(3):
        learner.update(random_row(seed=seed))
    fresh.policy.load_state_dict(learner.policy.state_dict())
    fresh.load_state_dict(learner.state_dict())
    for one in (learner, fresh):
        one.update(random_row(seed=9))
    assert all(torch.equal(*pair) for pair in zip(learner.policy.parameters(), fresh.policy.parameters(), strict=True))
    assert torch.equal(learner.range, fresh.range)


# Configuration -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "message"), [
    ({"size": "13m"}, "'1m', '12m'"),
    ({"model.bins": 14}, "model.bins: 14 is even"),
    ({"model.deter": 12}, "multiple of 8"),
    ({"buffer_size": 19}, "buffer_size: 19 never holds the batch_size x seq_len = 15 .* use at least 21"),
    ({"train_ratio": 101}, "train_ratio: 101 asks for more rows at every step than the replay holds"),
    ({"imagination.sequences": 4}, "imagination.sequences: 4 is more than a batch has"),
    ({"returns.low": 0.96}, "returns.low: 0.96 must be below returns.high"),
])
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(changes)


def test_sizes_by_name():
    widths = {name: tiny_config({"size": name, "model": {}}).widths for name in ("1m", "12m", "200m")}
    assert {name: (size.deter, size.units, size.classes, size.depth) for name, size in widths.items()} == {
        "1m": (512, 64, 4, 4), "12m": (2048, 256, 16, 16), "200m": (8192, 1024, 64, 64)}
    assert tiny_config({"size": "12m"}).widths.deter == 8  # what is said on its own wins
