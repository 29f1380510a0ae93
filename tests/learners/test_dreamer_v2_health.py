"""Updates that are not finite: what they may change, when the run stops, and that they run again bit for bit."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from tests.builders import BOTH, CONTINUOUS, DISCRETE, IMAGE, VECTOR, random_row, tiny_learner
from xrl.common import health as health_module
from xrl.common.errors import NumericalError

IDENTITY = {"world_model.reward_transform": "identity"}


def state_of(learner):
    """Every tensor an update may change but the counts, the generator apart."""
    tensors = {name: tensor.clone() for name, tensor in learner.policy.state_dict().items()}
    for name, optimizer in learner.optimizers.items():
        tensors |= {f"{name}/{key}": value.clone() for key, value in optimizer.state_dict().items()}
    return tensors


def changed(learner, before):
    """The networks of which any weight or moment is not bit-equal."""
    networks = {"model_opt": "world_model", "actor_opt": "actor", "critic_opt": "critic"}
    names = {name for name, value in state_of(learner).items() if not torch.equal(value, before[name])}
    return {networks.get(name.split("/")[0], name.split(".")[0]) for name in names}


def bad_row(value=math.nan, **keywords):
    row = random_row(**keywords)
    row.reward[2, 1] = value
    return row


def poison(learner, network):
    """Infinite, which equals itself, and makes NaN of whatever follows."""
    with torch.no_grad():
        getattr(learner, network).mlp[0].bias[0] = math.inf
        getattr(learner, network).mlp[0].bias[1] = -math.inf


class Late:
    """An event of a device that is always behind."""

    def query(self):
        return False

    def synchronize(self):
        pass


# What a bad update may change ------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_bad_for_the_world_model_changes_nothing_anywhere(value, precision):
    learner = tiny_learner({**IDENTITY, "precision": precision, "critic.slow_every": 1})
    learner.update(random_row())
    before = state_of(learner)
    learner.update(bad_row(value))
    assert not changed(learner, before)


@pytest.mark.parametrize("grad", ["reinforce", "dynamics"])
@pytest.mark.parametrize("network", ["actor", "critic"])
def test_bad_for_one_of_actor_and_critic_changes_neither_nor_the_slow_critic(network, grad):
    learner = tiny_learner({"actor.grad": grad, "critic.slow_every": 1})
    poison(learner, network)
    before = state_of(learner)
    metrics = learner.update(random_row())
    assert not metrics[f"{network}/loss"].isfinite()
    if network == "critic":
        assert metrics["actor/loss"].isfinite(), "nothing is wrong with the actor: it keeps step with the critic"
    assert changed(learner, before) == {"world_model"}


def test_a_gradient_alone_can_be_bad(monkeypatch):
    learner = tiny_learner()
    loss = learner.critic_loss

    def sharp(dream):
        value, metrics = loss(dream)
        return value + (learner.critic.out.bias.sum() - learner.critic.out.bias.sum().detach()) * 3e38 * 10, metrics

    monkeypatch.setattr(learner, "critic_loss", sharp)
    before = state_of(learner)
    metrics = learner.update(random_row())
    assert metrics["critic/loss"].isfinite() and not metrics["critic/grad_norm"].isfinite()
    assert changed(learner, before) == {"world_model"}
    with pytest.raises(NumericalError, match=r"update 1: no loss, but a gradient is not finite.*: critic\.out\.bias "
                                             r"\(critic_opt\); actor and critic were left as they were"):
        learner.check()


# How many are forgiven -------------------------------------------------------------------------------------------


def test_a_few_in_a_row_are_left_out_and_a_good_one_begins_the_count_anew():
    learner = tiny_learner({**IDENTITY, "skip_nonfinite": 2})
    for kind in "--+--+--":
        before = state_of(learner)
        metrics = learner.update(bad_row() if kind == "-" else random_row())
        learner.check()
        assert bool(changed(learner, before)) == (kind == "+")
    assert metrics["update/skipped"] == 6
    before = state_of(learner)
    learner.update(bad_row())
    with pytest.raises(NumericalError, match=r"^update 9 \(the last of 3 in a row\): model/reward_loss.*in reward; its "
                                             "weights were left"):
        learner.check()
    assert not changed(learner, before) and learner.updates == 9


def test_an_update_left_out_does_not_depend_on_what_it_drew():
    """The same good updates around it, the same weights: but for the generator, which goes on."""
    plain, tried = (tiny_learner({**IDENTITY, "skip_nonfinite": 1}) for _ in range(2))
    tried.update(bad_row())
    tried.generator.set_state(plain.generator.get_state())
    plain.updates = 1
    for learner in (plain, tried):
        learner.update(random_row())
    assert not changed(tried, state_of(plain))


def test_counts_survive_saving_and_old_states_load():
    learner = tiny_learner({**IDENTITY, "skip_nonfinite": 2})
    for _ in range(2):
        learner.update(bad_row())
    state = copy.deepcopy(learner.state_dict())
    fresh = tiny_learner({**IDENTITY, "skip_nonfinite": 2})
    fresh.load_state_dict(state)
    fresh.update(bad_row())
    with pytest.raises(NumericalError):
        fresh.check()
    fresh.load_state_dict(state)
    fresh.check()
    assert fresh.postmortem is None
    del state["health"]
    fresh.load_state_dict(state)
    assert fresh.update(random_row())["update/skipped"] == 0


# A host that is behind its device --------------------------------------------------------------------------------


@pytest.fixture
def behind(monkeypatch):
    monkeypatch.setattr(health_module, "_send", lambda flag: (flag, Late()))


def test_what_is_found_late_is_found_as_it_was(behind):
    """Two more updates are made before the host asks: they change nothing, and the evidence is of the bad one."""
    learner = tiny_learner({**IDENTITY, "critic.slow_every": 1})
    learner.update(random_row())
    drawn_from = learner.generator.get_state()
    learner.update(bad_row(seed=3))
    before = state_of(learner)
    for seed in (4, 5):
        learner.update(random_row(seed=seed))
    assert not changed(learner, before) and learner.updates == 4
    with pytest.raises(NumericalError, match=r"^update 2: model/reward_loss"):
        learner.check()
    tensors = learner.postmortem.tensors
    assert torch.equal(tensors["obs/state"], torch.as_tensor(random_row(seed=3).obs["state"]))
    assert torch.equal(tensors["generator"], drawn_from) and learner.postmortem.update == 2


def test_the_host_is_never_more_than_a_few_updates_behind(behind):
    learner = tiny_learner(IDENTITY)
    learner.update(bad_row())
    with pytest.raises(NumericalError, match=r"^update 1:"):
        for _ in range(10):
            learner.update(random_row())
    assert learner.updates == health_module.Flags.LIMIT


def test_only_the_last_update_is_held_on_to():
    learner = tiny_learner()
    for seed in range(3):
        learner.update(random_row(seed=seed))
        assert len(learner.flags._waiting) == 1 and learner.start is None
    learner.check()
    assert not learner.flags._waiting


# Again -----------------------------------------------------------------------------------------------------------

SETTINGS = {
    "discrete": ({}, VECTOR, DISCRETE), "continuous": ({}, VECTOR, CONTINUOUS), "both": ({}, BOTH, DISCRETE),
    "bf16": ({"precision": "bf16"}, IMAGE, DISCRETE),
    "starts": ({"imagination.starts": 4, "imagination.drop_last": True}, VECTOR, DISCRETE),
    "gaussian": ({"world_model.rssm.latent": "gaussian", "actor.grad": "mix"}, VECTOR, DISCRETE),
    "fast": ({"actor.baseline": "fast", "skip_nonfinite": 1}, VECTOR, CONTINUOUS)}


def gradients_of(learner):
    """What every optimiser is given from now on, by name and parameter."""
    seen = {}
    for name, optimizer in learner.optimizers.items():
        def gather(gradients, valid=True, name=name, optimizer=optimizer, gather=optimizer.gather):
            seen[name] = [gradient.clone() for gradient in gradients]
            return gather(gradients, valid)
        optimizer.gather = gather
    return seen


def identical(left, right):
    """Bit for bit: NaN equals NaN."""
    return all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("stage", ["model", "behaviour"])
@pytest.mark.parametrize("name", SETTINGS)
def test_it_runs_again_bit_for_bit(name, stage):
    changes, obs, action = SETTINGS[name]
    learner = tiny_learner({**IDENTITY, **changes}, obs, action)
    learner.update(random_row(obs=obs, action=action))
    made = bad_row if stage == "model" else random_row
    if stage == "behaviour":
        with torch.no_grad():
            learner.critic.mlp[0].weight[0, 0] = math.inf
    for seed in range(learner.health.patience + 1):
        seen = gradients_of(learner)
        learner.update(made(obs=obs, action=action, seed=seed))
    with pytest.raises(NumericalError):
        learner.check()
    found = learner.postmortem
    assert found.stage == stage and found.data == (("reward",) if stage == "model" else ())

    fresh = tiny_learner({**IDENTITY, **changes}, obs, action, seed=9)
    fresh.policy.load_state_dict(learner.policy.state_dict())
    fresh.load_state_dict(copy.deepcopy(learner.state_dict()))
    before, again_seen = state_of(fresh), gradients_of(fresh)
    again = fresh.rerun(found.update, stage, found.tensors)
    assert set(again_seen) == ({"model_opt", "actor_opt", "critic_opt"} if stage == "model" else
                               {"actor_opt", "critic_opt"})
    assert all(identical(gradients, seen[optimizer]) for optimizer, gradients in again_seen.items())
    assert (again.stage, again.parameter, again.data, again.update) == (
        found.stage, found.parameter, found.data, found.update)
    assert all(repr(value) == repr(found.metrics[key]) for key, value in again.metrics.items()
               if key != "update/skipped")
    assert not changed(fresh, before)


def test_a_good_update_can_be_run_again_too():
    learner = tiny_learner()
    learner.update(random_row())
    _, _, evidence = learner.flags._waiting[0]
    tensors = learner._examine(evidence).tensors
    again = tiny_learner().rerun(1, "model", tensors)
    assert again.stage is None and again.parameter is None
    assert again.metrics == {name: value.item() for name, value in evidence.metrics.items()}


def test_a_generator_of_another_kind_of_device_is_left_alone():
    learner = tiny_learner(IDENTITY)
    learner.update(bad_row())
    with pytest.raises(NumericalError):
        learner.check()
    tensors = {**learner.postmortem.tensors, "generator": torch.zeros(16, dtype=torch.uint8)}
    assert tiny_learner(IDENTITY).rerun(1, "model", tensors).stage == "model"
