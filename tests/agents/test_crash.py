"""The crash folder: what is in it, that it runs the very update again, and that a stranger's does no harm."""

from __future__ import annotations

import errno
import json
import math
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.agents.examples import same, weights
from xrl.__main__ import main
from xrl.agents import crash
from xrl.agents.crash import replay_crash
from xrl.common.errors import ModelFileError, NumericalError
from xrl.common.files import load_tensors, save_tensors, sha256_of
from xrl.common.run_folder import find_model

ROOT = Path(__file__).parents[2]
FILES = ["batch.safetensors", "config.yaml", "crash.json", "model.pth"]


def huge_rewards(env, result):
    return (result[0], 3e38, *result[2:])


def break_model(agent, watched):
    watched.trouble = huge_rewards


def break_actor(agent, watched):
    """Its logits overflow."""
    with torch.no_grad():
        agent.policy.actor.out.weight.fill_(3e38)


def break_critic(agent, watched):
    with torch.no_grad():
        agent.policy.critic.mlp[0].weight[0, 0] = math.inf


BREAKS = {"model": break_model, "actor": break_actor, "critic": break_critic}


def crashed(workshop, watched, part="model", **keys):
    """An agent after its crash, the error, and the folder that it names."""
    agent = workshop.agent(**{"log_interval": 1000, "replay.storage": "memory", **keys})
    agent.train(30)
    agent.settle()
    BREAKS[part](agent, watched)
    with pytest.raises(NumericalError) as caught:
        agent.train(200)
    named = re.search(r"run it again with: xrl replay-crash (\S+);", str(caught.value))
    return agent, str(caught.value), Path(named[1])


@pytest.fixture
def folder(workshop, watched):
    return crashed(workshop, watched)[2]


def strict(text):
    """JSON proper, which knows no NaN."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


# Written ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", BREAKS)
def test_the_error_names_everything_and_the_folder_holds_it(workshop, watched, part):
    agent, message, folder = crashed(workshop, watched, part)
    update = agent.updates
    assert folder == agent.folder / f"crash_{update}" and sorted(p.name for p in folder.iterdir()) == FILES
    assert message.startswith(f"update {update}: ") and f"{part}/loss" in message
    facts = json.loads((folder / "crash.json").read_text())
    network = {"model": "world_model"}.get(part, part)
    assert facts["parameter"].startswith(network) and facts["parameter"] in message
    assert facts["stage"] == ("model" if part == "model" else "behaviour") and facts["update"] == update
    assert facts["counters"] == agent.counters and facts["surroundings"]["torch"] == torch.__version__
    assert not math.isfinite(float(facts["metrics"][f"{part}/loss"]))
    strict((folder / "crash.json").read_text())
    tensors, _ = load_tensors(folder / "batch.safetensors")
    config = agent.config
    assert tensors["obs/vector"].shape == (config.seq_len, config.batch_size, 2)
    assert ("saved as" in message) == (part == "model" or part == "actor")
    assert same({name: value for name, value in load_tensors(folder / "model.pth")[0].items() if "policy/" in name},
                {f"policy/{name}": value for name, value in weights(agent).items()})


def test_no_folder_without_a_crash(workshop):
    agent = workshop.agent()
    agent.train(40)
    assert agent.updates > 2 and not list(agent.folder.glob("*crash*"))


def test_a_crash_is_none_of_the_models_of_its_run(workshop, watched):
    agent, _, folder = crashed(workshop, watched, "critic")
    with pytest.raises(ModelFileError, match="no saved model"):
        find_model(agent.folder)
    assert find_model(folder / "model.pth") == folder / "model.pth"


def test_a_second_crash_at_the_same_update_takes_the_place_of_the_first(workshop, watched):
    agent, _, folder = crashed(workshop, watched)
    (folder / "old").touch()
    with pytest.raises(NumericalError, match="replay-crash"):
        agent.train(1)
    assert sorted(p.name for p in folder.iterdir()) == FILES and replay_crash(folder).reproduced


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing_does_not_hide_what_happened(workshop, watched, monkeypatch, number):
    def full(*arguments):
        raise OSError(number, "the disk said no")

    monkeypatch.setattr(crash, "save_tensors", full)
    monkeypatch.setattr("xrl.agents.model_file.save_tensors", full)
    agent = workshop.agent(log_interval=1000)
    agent.train(30)
    watched.trouble = huge_rewards
    with pytest.raises(NumericalError, match=r"^update \d+: model/reward_loss.*is not finite.*the crash folder could "
                                             r"not be written: .*the disk said no; the model could not be written"):
        agent.train(200)
    assert not [path for path in agent.folder.iterdir() if "crash" in path.name]


def test_a_few_are_skipped_and_the_run_goes_on(workshop, watched):
    agent = workshop.agent(**{"skip_nonfinite": 3, "log_interval": 70, "replay.storage": "memory"})
    agent.train(30)
    loss, bad = agent.learner.critic_loss, iter([True, True, True, False, True, True])

    def sometimes(dream):
        value, metrics = loss(dream)
        value = value * math.nan if next(bad, False) else value
        return value, {**metrics, "critic/loss": value}

    agent.learner.critic_loss = sometimes
    agent.train(150)
    assert agent.learner.health.skipped == 5 and next(bad, None) is None
    log = [strict(line) for line in (agent.folder / "metrics.jsonl").read_text().splitlines()]
    assert max(record.get("update/skipped", 0) for record in log) == 5
    means = [record for record in log if "critic/target" in record]
    assert len(means) >= 2 and all("critic/loss" in record for record in means), "of the good updates"


# Run again -------------------------------------------------------------------------------------------------------


SETTINGS = [{}, {"precision": "bf16"}, {"policy_lag": 1, "train_every": 4}, {"skip_nonfinite": 2, "parallels": 2},
            {"env_kwargs": {"continuous": True}, "batches_ahead": 1}]


@pytest.mark.parametrize("keys", SETTINGS, ids=str)
@pytest.mark.parametrize("part", ["model", "critic"])
def test_it_is_the_same_update_to_the_last_bit(workshop, watched, part, keys):
    agent, _, folder = crashed(workshop, watched, part, **keys)
    report = replay_crash(folder)
    assert report.reproduced and report.identical and not report.notes
    assert report.now.stage == report.then.stage == agent.learner.postmortem.stage
    assert report.now.parameter == agent.learner.postmortem.parameter
    assert report.trace and ".py" in report.trace


def test_the_first_bad_module_is_named(workshop, watched):
    report = replay_crash(crashed(workshop, watched, "actor")[2])
    assert report.module == "actor.out" and "first module whose output is not finite: actor.out\n" in str(report)


def test_a_loss_that_overflows_has_no_bad_module(folder):
    report = replay_crash(folder)
    assert report.module is None and "module whose output is not finite: none" in str(report)
    assert "normal_loss" in report.trace or "nan values" in report.trace


@pytest.mark.parametrize("part", ["model", "critic"])
def test_in_a_process_of_its_own(workshop, watched, part):
    """From the folder alone: nothing here knows the environment that it was made for."""
    folder = crashed(workshop, watched, part)[2]
    done = subprocess.run([sys.executable, "-m", "xrl", "replay-crash", str(folder)], capture_output=True, text=True,
                          check=False, cwd=ROOT)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "not finite again" in done.stdout and "to the last bit" in done.stdout and "though" not in done.stdout
    assert re.search(rf"{part}/loss +(nan|inf) +was (nan|inf)", done.stdout)


def test_an_edited_configuration_may_show_that_it_does_not_come_again(folder, capsys):
    config = folder / "config.yaml"
    assert "reward_transform: identity" in config.read_text()
    config.write_text(config.read_text().replace("reward_transform: identity", "reward_transform: tanh"))
    assert main(["replay-crash", str(folder)]) == 1
    said = capsys.readouterr().out
    assert "finite this time" in said and "not finite again" not in said


def test_replaying_writes_nothing_and_leaves_threads_as_they_were(folder, monkeypatch):
    facts = json.loads((folder / "crash.json").read_text())
    facts["surroundings"] |= {"threads": 2, "torch": "0.1"}
    (folder / "crash.json").write_text(json.dumps(facts))
    run = folder.parents[2]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    report = replay_crash(folder)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert threads == [2, 1] and report.notes == (f"torch was 0.1, is {torch.__version__}",)


def test_a_crash_of_a_gpu_runs_on_a_cpu_with_other_numbers(folder):
    rewrite(folder, {"generator": torch.zeros(16, dtype=torch.uint8)})
    facts = json.loads((folder / "crash.json").read_text())
    facts["surroundings"]["device"] = "NVIDIA Something"
    (folder / "crash.json").write_text(json.dumps(facts))
    report = replay_crash(folder)
    assert report.reproduced and not report.identical and "though not to the last bit" in str(report)
    assert any("draws other random numbers" in note for note in report.notes)


def test_the_command_needs_one_path(capsys):
    assert main(["replay-crash"]) == 2
    assert capsys.readouterr().err == ("xrl: error: command line: replay-crash: needs one PATH, the crash folder that "
                                       "the error named, and got 0\n")


# Strangers -------------------------------------------------------------------------------------------------------


def rewrite(folder, changes, without=()):
    """Change tensors of the batch, and the checksum to match: not damaged, but made."""
    path = folder / "batch.safetensors"
    tensors = {name: value for name, value in {**load_tensors(path)[0], **changes}.items() if name not in without}
    save_tensors(path, tensors, {})
    restamp(folder, path)


def restamp(folder, path):
    facts = json.loads((folder / "crash.json").read_text())
    facts["files"][path.name] = sha256_of(path)
    (folder / "crash.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "last", "pickle"])
@pytest.mark.parametrize("name", FILES)
def test_what_is_damaged_is_refused_by_name(folder, name, damage):
    path = folder / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        end = data.index(b"world_model:") + 3 if name == "config.yaml" else len(data) // 2  # after a whole line is none
        path.write_bytes(data[:end])
    elif damage == "last":
        path.write_bytes(bytes([*data[:-1], data[-1] ^ 0x80]))
    elif damage == "flipped":
        path.write_bytes(bytes([*data[:3], data[3] ^ 0x80, *data[4:]]))
    else:
        path.write_bytes(pickle.dumps(["no", "tensors"]))
    with pytest.raises(ModelFileError, match=re.escape(name)):
        replay_crash(folder)


@pytest.mark.parametrize(("content", "message"), [
    ("[1]", "crash.json: damaged, or not written by xrl"), ("[" * 100_000, "not written by xrl"),
    ('{"format": 7}', "crash format 7, this xrl reads format 1"), ("{}", "crash format None"),
    ('{"format": 1}', "update: Field required"), (" " * 2**21, "too large"), ("\xff", "not written by xrl")])
def test_a_file_of_another_kind_says_why(folder, content, message):
    (folder / "crash.json").write_text(content, encoding="latin-1")
    with pytest.raises(ModelFileError, match=message):
        replay_crash(folder)


@pytest.mark.parametrize(("changes", "without"), [
    ({}, ["reward"]), ({}, ["obs/vector"]), ({}, ["generator"]), ({"reward": torch.zeros(2, 2)}, []),
    ({"obs/vector": torch.zeros(5, 3, 7)}, []), ({"is_first": torch.zeros(3)}, []),
    ({"generator": torch.zeros(5056, dtype=torch.uint8)}, []), ({"action": torch.zeros(())}, [])], ids=str)
def test_what_is_no_batch_of_the_model_is_refused(folder, changes, without):
    rewrite(folder, changes, without)
    with pytest.raises(ModelFileError, match=r"batch\.safetensors: is no update of the model beside it"):
        replay_crash(folder)


def test_places_outside_their_table_are_refused(workshop, watched):
    folder = crashed(workshop, watched, "critic")[2]
    start = load_tensors(folder / "batch.safetensors")[0]["start/stoch"]
    assert start.dtype == torch.int64
    rewrite(folder, {"start/stoch": start + 10**9})
    with pytest.raises(ModelFileError, match="is no update of the model"):
        replay_crash(folder)


@pytest.mark.parametrize("spaces", [
    None, [], {"observation": {}, "action": ["discrete", 2]}, {"observation": {"vector": ["vector", [2**40]]},
                                                              "action": ["discrete", 2]},
    {"observation": {"vector": ["odd", [2]]}, "action": ["discrete", 2]}, {"observation": {"vector": ["vector", [2]]}},
    {"observation": {"vector": ["vector", "2"]}, "action": ["discrete", 2]}], ids=str)
def test_spaces_that_are_none_are_refused(folder, spaces):
    path = folder / "model.pth"
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors, {**metadata, "spaces": spaces})
    restamp(folder, path)
    with pytest.raises(ModelFileError, match=re.escape(str(folder))):
        replay_crash(folder)


def test_a_network_larger_than_its_file_is_refused_before_it_is_made(folder):
    config = folder / "config.yaml"
    config.write_text(re.sub(r"deter: \d+", "deter: 10000000", config.read_text()))
    with pytest.raises(ModelFileError, match=r"model\.pth.*another network"):
        replay_crash(folder)


def test_a_place_that_is_none(tmp_path):
    for place in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ModelFileError, match=r"crash\.json: missing; give a folder crash_UPDATE"):
            replay_crash(place)
