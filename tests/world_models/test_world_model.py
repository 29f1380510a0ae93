"""Parts, sizes and preprocessing of the world model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.builders import BOTH, DISCRETE, IMAGE, VECTOR, parameter_count, random_row, tiny_config
from xrl.common.errors import ConfigError
from xrl.common.row import ActionSpec, ObsSpec
from xrl.configs.schemas.dreamer_v2 import WorldModelConfig
from xrl.world_models.latents import GaussianLatent
from xrl.world_models.world_model import WorldModel

ATARI = WorldModelConfig.model_validate({"rssm": {"deter": 600, "hidden": 600}})
DMC = WorldModelConfig.model_validate({"rssm": {"deter": 200, "hidden": 200}, "predict_discount": False})
CRAFTER = WorldModelConfig.model_validate({"norm": "layer"})


def make(obs=VECTOR, changes=None, action=DISCRETE):
    torch.manual_seed(0)
    return WorldModel(obs, action, tiny_config(changes).world_model)


def full_size(config, actions, channels=1, kind="discrete"):
    """Parameters per part, without memory for them."""
    with torch.device("meta"):
        model = WorldModel({"image": ObsSpec("image", (64, 64, channels))}, ActionSpec(kind, actions), config)
    return {name: parameter_count(part) for name, part in model.named_children()} | {"total": parameter_count(model)}


@pytest.mark.parametrize(("actions", "rssm", "total"), [(18, 5_664_848, 19_975_379), (6, 5_657_648, 19_968_179)])
def test_parameters_for_atari(actions, rssm, total):
    assert full_size(ATARI, actions) == {
        "encoder": 1_549_776, "rssm": rssm, "decoder": 10_497_553, "reward": 1_131_601, "discount": 1_131_601,
        "total": total}


def test_parameters_for_atari_in_colour():
    assert full_size(ATARI, 18, channels=3)["total"] == 19_980_373


def test_parameters_for_control_from_pixels():
    assert full_size(DMC, 6, channels=3, kind="continuous") == {
        "encoder": 1_551_312, "rssm": 1_247_248, "decoder": 9_886_611, "reward": 971_601, "total": 13_656_772}


def test_parameters_with_layer_norm_everywhere():
    counts = full_size(CRAFTER, 17, channels=3)
    assert counts["rssm"] == 13_145_088 and counts["total"] == 28_459_589


def test_parameters_of_the_tiny_model():
    model = make(IMAGE)
    counts = {name: parameter_count(part) for name, part in model.named_children()}
    assert counts == {"encoder": 2_750, "rssm": 1_560, "decoder": 15_575, "reward": 689, "discount": 689}


@pytest.mark.parametrize("obs", [IMAGE, VECTOR, BOTH])
def test_norm_option_reaches_every_part(obs):
    model = make(obs, {"world_model.norm": "layer"})
    for name, part in model.named_children():
        for owner in part.modules():
            layers = [child for child in owner.children() if isinstance(child, nn.Linear | nn.Conv2d)]
            if isinstance(owner, nn.Sequential) and layers:
                norms = [child for child in owner.children() if isinstance(child, nn.LayerNorm)]
                assert len(norms) == len(layers), name


def test_gaussian_option():
    model = make(changes={"world_model.rssm.latent": "gaussian"})
    assert isinstance(model.latent, GaussianLatent) and model.rssm.feat_size == 4 + 8


def test_without_a_discount_head():
    model = make(changes={"world_model.predict_discount": False})
    assert model.discount is None and not any("discount" in name for name, _ in model.named_parameters())


def test_images_become_centred_floats():
    model = make(BOTH)
    obs = {name: torch.from_numpy(value) for name, value in random_row(obs=BOTH).obs.items()}
    obs["map"][0, 0, 0, :3, 0] = torch.tensor([0, 51, 255], dtype=torch.uint8)
    ready = model.preprocess(obs)
    assert ready["map"].dtype == torch.float32
    assert ready["map"][0, 0, 0, :3, 0].tolist() == pytest.approx([-0.5, -0.3, 0.5])
    assert torch.equal(ready["state"], obs["state"])


def test_one_scale_divides_every_vector_and_no_image():
    model = make(BOTH, {"world_model.obs_scale": 4.0})
    obs = {name: torch.from_numpy(value) for name, value in random_row(obs=BOTH).obs.items()}
    ready = model.preprocess(obs)
    assert torch.equal(ready["joints"], obs["joints"] / 4) and torch.equal(ready["state"], obs["state"] / 4)
    assert torch.equal(ready["camera"], obs["camera"].float() / 255 - 0.5)


def test_a_list_of_scales_is_in_the_order_of_the_names():
    model = make(BOTH, {"world_model.obs_scale": [1, 2, 4, 8, 16]})
    obs = {name: torch.from_numpy(value) for name, value in random_row(obs=BOTH).obs.items()}
    ready = model.preprocess(obs)
    assert torch.equal(ready["joints"], obs["joints"] / torch.tensor([1.0, 2.0]))
    assert torch.equal(ready["state"], obs["state"] / torch.tensor([4.0, 8.0, 16.0]))


@pytest.mark.parametrize(("obs", "scale", "message"), [
    (VECTOR, [1.0, 2.0], r"obs_scale: 2 numbers for 3 vector entries \(state\)"),
    (BOTH, [1.0] * 6, r"obs_scale: 6 numbers for 5 vector entries \(joints, state\)"),
    (IMAGE, [1.0], r"obs_scale: 1 numbers for 0 vector entries \(no vector\)"),
])
def test_a_list_of_the_wrong_length_is_refused(obs, scale, message):
    with pytest.raises(ConfigError, match=message):
        make(obs, {"world_model.obs_scale": scale})


def test_scales_follow_the_model_but_are_not_saved():
    model = make(changes={"world_model.obs_scale": 4.0})
    assert not any("scale" in name for name in model.state_dict())
    assert model.to("meta").get_buffer("scale_0").device.type == "meta"


def test_what_the_decoder_gives_is_shown_as_the_environment_gives_it():
    """The inverse of preprocessing, for every grey there is, and for entries of scales of their own."""
    model = make(BOTH, {"world_model.obs_scale": (0.5, 2.0, 10.0, 0.25, 4.0)})
    shades = torch.arange(256, dtype=torch.uint8)
    obs = {"camera": shades.reshape(1, 16, 16, 1).expand(1, 16, 16, 3).clone(),
           "joints": torch.tensor([[3.0, -7.0]]), "map": shades.flip(0).reshape(1, 16, 16, 1),
           "state": torch.tensor([[1e3, -0.5, 0.0]])}
    back = model.unprocess(model.preprocess(obs))
    assert back.keys() == obs.keys()
    for name, value in obs.items():
        assert back[name].dtype == value.dtype and torch.equal(back[name], value), name


def test_means_beyond_black_and_white_are_black_and_white():
    means = torch.tensor([-3.0, -0.501, 0.0, 0.4999, 7.0]).reshape(1, 5, 1, 1)
    assert make(IMAGE).unprocess({"image": means})["image"].flatten().tolist() == [0, 0, 128, 255, 255]
