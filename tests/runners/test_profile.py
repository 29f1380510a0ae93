"""Profiles of real agents, by a clock that only the parts move: then every number of the table is known."""

from __future__ import annotations

import functools
import json
import tempfile
from dataclasses import replace

import pytest
import torch

from tests.common.test_stopwatch import Clock, slow
from xrl.agents.dreamer_v2 import DreamerV2Agent
from xrl.agents.timing import UPDATE
from xrl.common.errors import ConfigError
from xrl.common.stopwatch import REST, replaced
from xrl.runners import profile as module
from xrl.runners.profile import UPDATE_REST, matmul_peak, measure, small_run
from xrl.runners.runner import get_runner

TOOK = {"envs.step": 0.001, "training_action": 0.002, "observe": 0.004, "replay.sample": 0.008,
        "learner.to_device": 0.016, "learner.model_loss": 0.1, "learner.model_opt.differentiate": 0.2,
        "learner.imagine": 0.4, "learner.actor_loss": 0.8, "learner.actor_opt.differentiate": 0.01,
        "learner.critic_loss": 1.6, "learner.critic_opt.differentiate": 0.02}
LOOP = {"environment step": 1, "policy": 2, "replay insert": 4, "replay sampling": 8, "to the device": 16,
        UPDATE: 3130, REST: 0}
INNER = {"world model, forward": 100, "world model, backward": 200, "imagination": 400, "actor": 810, "critic": 1620,
         UPDATE_REST: 0}


@pytest.fixture(autouse=True)
def quick_peak(monkeypatch):
    monkeypatch.setattr(module, "PEAK_SIZE", {"cpu": 16})
    monkeypatch.setattr(module, "PEAK_SECONDS", 0.0)


@pytest.fixture
def profiled(workshop):
    """Profiles an agent whose methods take as long as ``took`` says; gives the agent too."""
    def run(took=TOOK, **keys):
        agent, clock = workshop.agent(pretrain=1, **keys), Clock()
        agent.restart_episodes()  # makes the replay
        for path, seconds in took.items():
            *way, name = path.split(".")
            slow(functools.reduce(getattr, way, agent), name, clock, seconds)
        return measure(agent, clock), agent

    return run


@pytest.fixture
def readings(monkeypatch):
    """Time, agent steps and updates whenever an update was waited for: the first, the one counted, the slice."""
    noted = []
    original = module._until_update

    def noting(agent, watch):
        original(agent, watch)
        noted.append((watch.clock(), agent.agent_steps, agent.updates))

    monkeypatch.setattr(module, "_until_update", noting)
    return noted


def test_every_part_is_charged_for_its_own_time_and_they_add_up(profiled):
    profile, _ = profiled(train_every=10, env_kwargs={"length": 40})
    ms = {part.name: part.ms for part in profile.parts}
    assert list(ms) == [*list(LOOP)[:-1], *INNER, REST]
    assert ms == pytest.approx(LOOP | INNER, abs=1e-9)
    step = sum(part.ms * part.per_step for part in profile.loop)
    assert profile.ms == pytest.approx(step) and sum(part.share for part in profile.loop) == pytest.approx(1)
    inner = [part for part in profile.parts if part.inside == UPDATE]
    assert {part.name for part in inner} == set(INNER)
    (update,) = [part for part in profile.loop if part.name == UPDATE]
    assert sum(part.ms for part in inner) == pytest.approx(update.ms)
    assert sum(part.share for part in inner) == pytest.approx(update.share)
    assert update.per_step == pytest.approx(0.1)


def test_the_table_accounts_for_the_whole_slice(profiled, readings):
    """Against the clock itself: with rows that are no agent steps, and with what is done only now and then."""
    profile, _ = profiled(TOOK | {"learner.check": 0.032, "learner._step": 0.064}, train_every=10, parallels=2,
                          env_kwargs={"length": 9})
    (begun, first, _), (ended, last, _) = readings[1], readings[-1]
    assert profile.ms * (last - first) == pytest.approx(1000 * (ended - begun))
    assert next(part for part in profile.parts if part.name == UPDATE_REST).ms == pytest.approx(64)


@pytest.mark.parametrize(("settings", "measured"), [
    ({}, 4), ({"SECONDS": 0.0}, 3), ({"SECONDS": 1e9, "MOST": 5}, 5)])  # an update and its steps take 3.2 s
def test_the_slice_ends_when_it_has_seen_enough(profiled, readings, monkeypatch, settings, measured):
    for name, value in settings.items():
        monkeypatch.setattr(module, name, value)
    profiled(train_every=10)
    assert [updates for _, _, updates in readings] == list(range(1, 1 + 2 + measured))


def test_operations_are_those_of_one_call_and_always_the_same(profiled):
    first, second = (profiled(parallels=parallels, seed=seed)[0] for parallels, seed in ((1, 1), (1, 2)))
    counts = [{part.name: (part.operations, part.gflop) for part in profile.parts} for profile in (first, second)]
    assert counts[0] == counts[1]
    operations = {name: count[0] for name, count in counts[0].items()}
    assert operations[UPDATE] == sum(operations[name] for name in INNER) > 1000
    assert operations["policy"] == int(operations["policy"]) > 50
    assert operations["environment step"] == operations["replay insert"] == operations["replay sampling"] == 0


def test_flop_are_those_of_the_layers_and_the_share_of_the_peak_is_for_the_time_taken(profiled, monkeypatch):
    monkeypatch.setattr(module, "matmul_peak", lambda dtype, device: 1e-3 if dtype == torch.float32 else 3e-3)
    profile, agent = profiled(train_every=10)
    policy = next(part for part in profile.parts if part.name == "policy")
    model = agent.policy.world_model
    acting = [model.encoder, model.rssm.img_in, model.rssm.cell, model.rssm.obs_out, model.rssm.obs_stats,
              agent.policy.actor]
    layers = [layer for part in acting for layer in part.modules() if isinstance(layer, torch.nn.Linear)]
    assert policy.gflop * 1e9 == pytest.approx(2 * sum(layer.weight.numel() for layer in layers))
    assert policy.peak == pytest.approx(policy.gflop / 0.002 / 1e-3)
    assert profile.peak_gflops == 1e-3 and profile.bf16_speedup == pytest.approx(3)


def test_with_several_environments_one_call_serves_all(profiled):
    profile, _ = profiled(parallels=4, train_every=10, env_kwargs={"length": 1000})
    per_step = {part.name: part.per_step for part in profile.loop}
    assert per_step["environment step"] == per_step["policy"] == per_step["replay insert"] == pytest.approx(0.25)
    assert per_step[UPDATE] == pytest.approx(0.1, rel=0.2) and profile.parallels == 4


def test_several_updates_of_one_step_are_one_after_another(profiled):
    profile, _ = profiled(parallels=8, train_every=2, env_kwargs={"length": 1000})
    ms = {part.name: part.ms for part in profile.parts}
    assert ms[UPDATE] == pytest.approx(3130) and ms["replay sampling"] == pytest.approx(8)
    assert {part.name: part.per_step for part in profile.loop}[UPDATE] == pytest.approx(0.5)


def test_an_update_in_one_piece_has_no_parts_but_all_their_operations(profiled, monkeypatch):
    """As with a CUDA graph, which is captured after a few updates and from then on calls no methods."""
    monkeypatch.setattr(module, "WARM", {"cpu": 5})
    whole, agent = profiled(train_every=10)
    assert agent.updates == 5 + 4

    def graph(agent, watch):
        assert not watch.counting  # which costs more than it counts
        step = agent.learner._step
        flags = None, torch.tensor(True), torch.tensor(False)
        agent.learner._step = lambda batch: (watch.clock.pass_(0.5), ({"a/loss": torch.zeros(())}, *flags))[1]
        try:
            return timed(agent, watch)
        finally:
            agent.learner._step = step

    timed = module._timed
    monkeypatch.setattr(module, "_timed", graph)
    piece, _ = profiled(train_every=10)
    assert [part.name for part in piece.parts] == list(LOOP)
    updates = [next(part for part in profile.parts if part.name == UPDATE) for profile in (whole, piece)]
    assert updates[1].ms == pytest.approx(500)
    assert updates[0].operations == updates[1].operations and updates[0].gflop == updates[1].gflop > 0


def test_the_agent_is_left_as_it_was(workshop):
    agent = workshop.agent(pretrain=1)
    agent.train(40)
    things = (agent, agent.envs, agent.replay, agent.learner, agent.learner.model_opt)
    before = [set(vars(thing)) for thing in things]
    measure(agent)
    assert [set(vars(thing)) for thing in things] == before
    agent.train(20)


def test_a_run_without_updates_says_so(workshop, monkeypatch, capsys):
    monkeypatch.setattr(module, "PATIENCE", 60)
    agent = workshop.agent(seq_len=8, **{"replay.sampling": "episodes", "replay.min_length": 50})
    with pytest.raises(ConfigError, match="profile: no update in 60 steps of 1 environments; see what was said above"):
        measure(agent)
    assert "replay.min_length" in capsys.readouterr().err


def test_peak_is_that_of_a_product():
    assert matmul_peak(torch.float32, torch.device("cpu")) > 0
    with replaced(module, "Stopwatch", lambda device: _Ticking()):
        assert matmul_peak(torch.bfloat16, torch.device("cpu")) == pytest.approx(2 * 16**3 / 0.5 / 1e9)


class _Ticking(module.Stopwatch):
    """Half a second passes between two readings."""

    def __init__(self) -> None:
        clock = Clock()

        def tick() -> float:
            clock.pass_(0.5)
            return clock()

        super().__init__(torch.device("cpu"), tick)


# Through the runner ------------------------------------------------------------------------------------------------


@pytest.fixture
def runner(tmp_path, watched, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def make(env="watched", env_id="any-v0", **keys):
        return get_runner("dreamerv2", env, env_id, preset="debug", device="cpu", **keys)

    return make


def test_a_profile_prints_its_table_and_leaves_nothing(runner, tmp_path, watched, capsys):
    profile = runner().run(mode="profile")
    out = capsys.readouterr().out
    assert out.startswith("DreamerV2 in any-v0: 1 environment (sync), fp32 on cpu, ")
    lines = {line[:26].strip(): line[26:].split() for line in out.splitlines()}
    for part in profile.parts:
        assert lines[part.name][0] == f"{part.ms:.3f}" and lines[part.name][-1] == f"{part.share:.1%}"
    assert lines["environment step"][1:4] == ["-", "-", "-"]
    assert f"An agent step takes {profile.ms:.3g} ms" in out
    assert "compilation" not in out and "compilation" in str(replace(profile, compile="on"))
    assert "the host starts 47 kernels" in str(replace(profile, launches=47.0))
    assert out.splitlines()[-1].startswith("The ") and out.endswith(".\n")
    assert [path.name for path in tmp_path.rglob("*")] == ["temporary"]
    assert watched.made and all(env.closed for env in watched.made)


def test_the_table_as_json(runner, tmp_path):
    profile = runner(parallels=2).profile(tmp_path / "table.json")
    table = json.loads((tmp_path / "table.json").read_text())
    assert table.pop("advice").startswith("The ")
    assert table == json.loads(json.dumps(profile.as_dict())) and table["parallels"] == 2
    assert [part["name"] for part in table["parts"]] == [part.name for part in profile.parts]


@pytest.mark.parametrize("trouble", [None, ZeroDivisionError])
def test_the_agent_is_finished_whatever_happens(runner, monkeypatch, trouble):
    finished = []
    finish = DreamerV2Agent.finish

    def noting(agent):
        finished.append(agent)
        finish(agent)

    monkeypatch.setattr(DreamerV2Agent, "finish", noting)
    if trouble is None:
        runner().profile()
    else:
        monkeypatch.setattr("xrl.runners.runner.measure", lambda agent: 1 / 0)
        with pytest.raises(trouble):
            runner().profile()
    assert len(finished) == 1


@pytest.mark.parametrize("place", ["absent/table.json", "temporary"])
def test_a_file_that_cannot_be_written_is_named_before_anything_opens(runner, watched, place):
    with pytest.raises(ConfigError, match=rf"json_path \(--json\): {place} cannot be written; name a file"):
        runner().profile(place)
    assert watched.made == []


def test_the_run_is_small_and_costs_what_the_real_one_costs():
    config = get_runner("DreamerV2", "atari", "ALE/Pong-v5", parallels=3, logger="wandb", log_dir="logs",
                        batches_ahead=1, policy_lag=1).config
    small = small_run(config, "folder")
    changed = {key for key in type(config).model_fields if getattr(small, key) != getattr(config, key)}
    assert changed == {"model_dir", "log_dir", "logger", "eval_interval", "start_training", "buffer_size", "pretrain",
                       "batches_ahead", "policy_lag"}
    assert (small.model_dir, small.start_training, small.pretrain) == ("folder", 600, 1)
    tiny = get_runner("DreamerV2", "toy", "Catch-v0", start_training=5, buffer_size=100, pretrain=0).config
    assert small_run(tiny, "x").start_training == 5 and small_run(tiny, "x").buffer_size == 100
    assert small_run(tiny, "x").pretrain == 0


@pytest.mark.parametrize(("env", "env_id"), [("classic_control", "CartPole-v1"), ("toy", "Catch-v0")])
def test_the_shipped_environments(runner, env, env_id):
    profile = runner(env, env_id).profile()
    assert {part.name for part in profile.parts} == {*LOOP, *INNER} and profile.env_id == env_id
