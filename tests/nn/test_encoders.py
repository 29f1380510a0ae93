"""Observations of several images and vectors: what is joined, in which order, and how it comes apart again."""

from __future__ import annotations

import pytest
import torch

from tests.builders import BOTH, IMAGE, VECTOR, parameter_count
from xrl.nn.encoders import ObsDecoder, ObsEncoder, names_of


def observation(spec, lead=(2, 3)):
    torch.manual_seed(1)
    return {name: torch.rand(*lead, *entry.shape) - 0.5 for name, entry in spec.items()}


def encoder_of(spec, norm="none"):
    torch.manual_seed(0)
    return ObsEncoder(spec, depth=2, layers=2, units=16, norm=norm)


def decoder_of(spec, norm="none"):
    torch.manual_seed(0)
    return ObsDecoder(7, spec, depth=2, layers=2, units=16, norm=norm)


def test_names_are_sorted_by_kind():
    assert names_of(dict(reversed(BOTH.items())), "image") == ["camera", "map"]
    assert names_of(BOTH, "vector") == ["joints", "state"]


@pytest.mark.parametrize(("spec", "size"), [(IMAGE, 64), (VECTOR, 16), (BOTH, 80)])
def test_embedding_joins_images_then_vectors(spec, size):
    encoder, obs = encoder_of(spec), observation(spec)
    embed = encoder(obs)
    assert embed.shape == (2, 3, size) and encoder.size == size
    if spec is not VECTOR:
        images = torch.cat([obs[name] for name in ("camera", "map", "image") if name in spec], -1)
        torch.testing.assert_close(embed[..., :64], encoder.conv(images))
    if spec is not IMAGE:
        vectors = torch.cat([obs[name] for name in ("joints", "state") if name in spec], -1)
        torch.testing.assert_close(embed[..., -16:], encoder.mlp(vectors))


def test_order_of_the_dictionary_does_not_matter():
    obs = observation(BOTH)
    backwards = dict(reversed(BOTH.items()))
    assert torch.equal(encoder_of(BOTH)(obs), encoder_of(backwards)(dict(reversed(obs.items()))))
    feat = torch.randn(2, 7)
    theirs = decoder_of(backwards)(feat)
    assert all(torch.equal(mean, theirs[name]) for name, mean in decoder_of(BOTH)(feat).items())


@pytest.mark.parametrize("spec", [IMAGE, VECTOR, BOTH])
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_decoder_has_a_float32_mean_of_every_entry_shape(spec, norm):
    means = decoder_of(spec, norm).to(torch.bfloat16)(torch.randn(2, 3, 7, dtype=torch.bfloat16))
    assert {name: mean.shape for name, mean in means.items()} == {
        name: (2, 3, *entry.shape) for name, entry in spec.items()}
    assert all(mean.dtype == torch.float32 for mean in means.values())


def test_decoder_splits_as_the_encoder_joins():
    decoder, feat = decoder_of(BOTH), torch.randn(2, 7)
    means = decoder(feat)
    torch.testing.assert_close(torch.cat([means["camera"], means["map"]], -1), decoder.conv(feat))
    hidden = decoder.mlp(feat)
    torch.testing.assert_close(means["joints"], decoder.out[0](hidden))
    torch.testing.assert_close(means["state"], decoder.out[1](hidden))


@pytest.mark.parametrize("spec", [IMAGE, VECTOR])
def test_norm_adds_a_gain_and_a_shift_per_normalised_unit(spec):
    added = parameter_count(encoder_of(spec, "layer")) - parameter_count(encoder_of(spec))
    assert added == 2 * (2 + 4 + 8 + 16 if spec is IMAGE else 16 + 16)
    added = parameter_count(decoder_of(spec, "layer")) - parameter_count(decoder_of(spec))
    assert added == 2 * (8 + 4 + 2 if spec is IMAGE else 16 + 16)
