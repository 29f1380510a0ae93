"""Which files an agent loads, and that it stays as it was after one that it refuses."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.agents.examples import same, weights
from xrl.common.errors import ModelFileError


def everything(agent) -> dict[str, torch.Tensor]:
    """The whole state as flat tensors, numbers included."""
    flat: dict[str, torch.Tensor] = {}

    def walk(prefix, state):
        for key, value in state.items():
            if isinstance(value, dict):
                walk(f"{prefix}{key}/", value)
            else:
                flat[prefix + key] = torch.as_tensor(value).clone()

    walk("", agent.state_dict())
    return flat


@pytest.fixture
def trained(workshop):
    agent = workshop.agent(seed=3)
    agent.train(45)
    return agent


@pytest.fixture
def saved(trained):
    return trained.save_model("model.pth")


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    with safe_open(str(path), "pt") as file:
        return load_file(path), json.loads(file.metadata()["xrl"])


def write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict) -> None:
    save_file(tensors, path, {"xrl": json.dumps(metadata)})


def test_everything_comes_back(workshop, trained, saved):
    fresh = workshop.agent(seed=4)
    fresh.load_model(saved)
    assert same(everything(fresh), everything(trained))
    names = everything(trained)
    for part in ("model_opt", "actor_opt", "critic_opt"):
        assert names[f"learner/{part}/mean"].abs().sum() > 0 and names[f"learner/{part}/steps"] == trained.updates


def test_the_file_is_safetensors_with_json_whatever_its_ending(trained, saved):
    tensors, metadata = read(saved)
    assert metadata["format"] == 1 and metadata["method"] == "DreamerV2" and metadata["env_id"] == "any-v0"
    assert metadata["counters"] == trained.counters == {"agent_steps": 45, "frames": 45, "updates": trained.updates}
    assert metadata["config"] == trained.config.model_dump(mode="json")
    assert {f"policy/{name}" for name in weights(trained)} <= tensors.keys()


def test_loading_moves_no_weight_out_of_the_optimiser(workshop, saved):
    """The optimiser's buffer *is* the weights: a load that replaced them would train a shadow."""
    agent = workshop.agent(seed=4)
    agent.load_model(saved)
    held = weights(agent)
    agent.train(60)
    for part in ("world_model", "actor", "critic"):
        assert any(not torch.equal(held[name], tensor) for name, tensor in weights(agent).items()
                   if name.startswith(part))


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def missing_last_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def gone(path: Path) -> None:
    path.unlink()


def of_another_method(path: Path) -> None:
    tensors, metadata = read(path)
    write(path, tensors, {**metadata, "method": "DreamerV9"})


def of_another_format(path: Path) -> None:
    tensors, metadata = read(path)
    write(path, tensors, {**metadata, "format": 2})


def of_other_spaces(path: Path) -> None:
    tensors, metadata = read(path)
    metadata["spaces"]["action"] = ["discrete", 18]
    write(path, tensors, metadata)


def of_another_shape(path: Path) -> None:
    tensors, metadata = read(path)
    name = sorted(name for name in tensors if name.startswith("policy/critic"))[-1]
    tensors[name] = torch.zeros(*tensors[name].shape, 2)
    write(path, tensors, metadata)


def without_a_tensor(path: Path) -> None:
    tensors, metadata = read(path)
    del tensors["learner/actor_opt/mean"]
    write(path, tensors, metadata)


def with_a_tensor_more(path: Path) -> None:
    tensors, metadata = read(path)
    write(path, {**tensors, "policy/extra": torch.zeros(2)}, metadata)


def not_by_xrl(path: Path) -> None:
    save_file(load_file(path), path)


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(path.parent / "exploded")))


def torch_saved(path: Path) -> None:
    torch.save({"weights": torch.zeros(2), "bomb": Bomb(path.parent / "exploded")}, path)


@pytest.mark.parametrize(("damage", "message"), [
    (half, "damaged or cut short.*use a file that save_model wrote"), (missing_last_byte, "damaged or cut short"),
    (empty, "damaged or cut short"), (gone, "no saved model here.*train one first"),
    (of_another_method, "a model of DreamerV9, not of DreamerV2; use method='DreamerV9'"),
    (of_another_format, "model format 2, this xrl reads format 1"),
    (of_other_spaces, r"made for .*18.*\(any-v0\), but this environment.*use a model of this environment"),
    (of_another_shape, r"another network shape: policy/critic\S+ is \(.*2\) in the file.*use the config.yaml"),
    (without_a_tensor, "learner/actor_opt/mean is no such tensor in the file"),
    (with_a_tensor_more, r"policy/extra is \(2,\) in the file, no such tensor here"),
    (not_by_xrl, "not one that xrl wrote"), (pickled, "looks like a pickle, which could run code"),
    (torch_saved, "looks like a pickle, which could run code"),
])
def test_a_refused_file_says_why_and_changes_nothing(workshop, trained, saved, damage, message):
    agent = workshop.agent(seed=4)
    agent.train(30)
    before = everything(agent)
    damage(saved)
    with pytest.raises(ModelFileError, match=f"^{saved}: .*{message}"):
        agent.load_model(saved)
    assert same(before, everything(agent)) and agent.loaded_at == 0
    assert not (saved.parent / "exploded").exists()


@pytest.mark.parametrize("prepare", [pickled, torch_saved])
def test_the_bombs_do_explode_where_files_are_unpickled(tmp_path, prepare):
    """So that their silence above means something."""
    path = tmp_path / "model.pth"
    prepare(path)
    torch.load(path, weights_only=False) if prepare is torch_saved else pickle.loads(path.read_bytes())
    assert (tmp_path / "exploded").is_dir()


@pytest.mark.parametrize(("keys", "message"), [
    ({"world_model.rssm.deter": 16}, "another network shape"),
    ({"actor.layers": 3}, "another network shape"),
    ({"env_kwargs": {"continuous": True}}, "use a model of this environment"),
])
def test_a_model_of_another_configuration(workshop, trained, saved, keys, message):
    agent = workshop.agent(**keys)
    before = everything(agent)
    with pytest.raises(ModelFileError, match=message):
        agent.load_model(saved)
    assert same(before, everything(agent))


def test_a_model_saved_on_a_gpu_loads_on_a_cpu(workshop, trained, saved):
    """The state of a CUDA generator has 16 bytes, that of a CPU's thousands: neither is needed to go on."""
    tensors, metadata = read(saved)
    ours = {name for name in tensors if name.endswith("generator")}
    assert len(ours) == 2
    write(saved, {**tensors, **{name: torch.zeros(16, dtype=torch.uint8) for name in ours}}, metadata)
    agent = workshop.agent(seed=4)
    before = agent.generator.get_state()
    agent.load_model(saved)
    assert same(weights(agent), weights(trained)) and torch.equal(agent.generator.get_state(), before)


def test_a_save_that_fails_leaves_the_old_file(workshop, trained, saved, monkeypatch):
    old = saved.read_bytes()
    trained.train(20)

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        trained.save_model("model.pth")
    assert saved.read_bytes() == old
    assert sorted(path.name for path in saved.parent.iterdir()) == ["config.yaml", "metrics.jsonl", "model.pth"]
