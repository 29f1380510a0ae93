"""Every rule of the spaces, from the space to what a network sees and back."""

from __future__ import annotations

import itertools
import warnings

import cv2
import numpy as np
import pytest
from gymnasium import spaces

from xrl.common.errors import ConfigError
from xrl.common.row import ActionSpec, ObsSpec
from xrl.environment.spaces import Observations, Violation, read_action_space


def observe(space, value):
    """(name, spec, encoded) of a space that is no Dict."""
    observations = Observations(space, "here")
    encoded = observations.encode(value)
    (name,) = encoded
    assert encoded[name].shape == observations.spec[name].shape
    assert encoded[name].dtype == observations.spec[name].dtype
    return name, observations.spec[name], encoded[name]


def uint8_box(*shape):
    return spaces.Box(0, 255, shape, np.uint8)


def picture(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(("shape", "channels"), [((64, 64, 1), 1), ((64, 64, 3), 3), ((64, 64), 1)])
def test_images_of_the_right_size_pass_unchanged(shape, channels):
    image = picture(*shape)
    name, spec, encoded = observe(uint8_box(*shape), image)
    assert name == "image" and spec == ObsSpec("image", (64, 64, channels))
    np.testing.assert_array_equal(encoded, image.reshape(64, 64, channels))


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_first_is_transposed(channels):
    image = picture(channels, 64, 64)
    _, spec, encoded = observe(uint8_box(channels, 64, 64), image)
    assert spec.shape == (64, 64, channels)
    np.testing.assert_array_equal(encoded, np.moveaxis(image, 0, -1))


def test_both_readings_fit_then_channels_are_last():
    image = picture(3, 64, 3)  # 3 rows of 64 colour pixels, not 64 x 3 pixels
    _, _, encoded = observe(uint8_box(3, 64, 3), image)
    np.testing.assert_array_equal(encoded[:, 0, 0], np.asarray(
        cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA))[:, 0, 0])


@pytest.mark.parametrize("shape", [(128, 192, 1), (1, 128, 192), (128, 192), (3, 128, 192), (128, 192, 3)])
def test_resizing_is_by_area(shape):
    image = picture(*shape)
    _, _, encoded = observe(uint8_box(*shape), image)
    last = image.reshape(*shape, 1) if len(shape) == 2 else np.moveaxis(image, 0, -1) if shape[0] < 4 else image
    blocks = last.reshape(64, 2, 64, 3, -1).mean((1, 3))  # 2 x 3 pixels become one: their mean
    assert np.abs(encoded - blocks).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("size", [(210, 160), (40, 30), (64, 200)])
def test_any_size_becomes_64(size):
    _, spec, encoded = observe(uint8_box(*size, 3), np.full((*size, 3), 7, np.uint8))
    assert spec.shape == (64, 64, 3) and (encoded == 7).all()


@pytest.mark.parametrize("shape", [(84, 84, 4), (4, 84, 84), (2, 64, 64), (10, 10, 10)])
def test_images_of_other_channels_are_refused(shape):
    with pytest.raises(ConfigError, match=r"here.*neither 1 nor 3 channels"):
        Observations(uint8_box(*shape), "here")


@pytest.mark.parametrize(("space", "value", "expected"), [
    (spaces.Box(-1, 1, (3,)), np.array([.1, .2, .3], np.float32), [.1, .2, .3]),
    (spaces.Box(-1, 1, ()), np.array(.5, np.float32), [.5]),
    (spaces.Box(-1, 1, ()), 0.5, [.5]),
    (spaces.Box(-1, 1, (2, 2)), np.array([[1, 2], [3, 4]], np.float32), [1, 2, 3, 4]),
    (spaces.Box(-1, 1, (2, 1, 2)), np.array([[[1, 2]], [[3, 4]]], np.float32), [1, 2, 3, 4]),
    (spaces.Box(-1, 1, (20, 20)), np.ones((20, 20), np.float32), [1] * 400),
    (spaces.Box(-1, 1, (2,), np.float64), np.array([.25, .5]), [.25, .5]),
    (spaces.Box(-1, 1, (2,)), [0, 1], [0, 1]),
    (spaces.Box(-9, 9, (2,), np.int32), np.array([-3, 9], np.int32), [-3, 9]),
    (uint8_box(4), np.array([0, 1, 128, 255], np.uint8), [0, 1, 128, 255]),
    (spaces.Discrete(3), 2, [0, 0, 1]),
    (spaces.Discrete(3, start=5), np.int64(5), [1, 0, 0]),
    (spaces.Discrete(2, start=-1), np.array(0), [0, 1]),
    (spaces.MultiDiscrete([2, 3]), np.array([1, 0]), [0, 1, 1, 0, 0]),
    (spaces.MultiDiscrete([2, 3], start=[5, -1]), [5, 1], [1, 0, 0, 0, 1]),
    (spaces.MultiDiscrete([[1, 2], [2, 1]]), np.array([[0, 1], [0, 0]], np.int8), [1, 0, 1, 1, 0, 1]),
])
def test_everything_else_is_a_float32_vector(space, value, expected):
    name, spec, encoded = observe(space, value)
    assert name == "vector" and spec == ObsSpec("vector", (len(expected),))
    np.testing.assert_array_equal(encoded, np.array(expected, np.float32))


@pytest.mark.parametrize(
    "shape", [(64, 64, 3), (3, 64, 64), (16, 16, 1), (1, 84, 84), (84, 84, 4), (4, 84, 84), (84, 84)])
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_images_of_another_type_are_refused(shape, dtype):
    with pytest.raises(ConfigError, match="give images as uint8, 0 to 255"):
        Observations(spaces.Box(0, 1, shape, dtype), "here")


@pytest.mark.parametrize("shape", [(15, 64, 3), (8, 8, 20), (3, 3, 3), (31, 64)])
def test_float_boxes_that_are_no_images_are_flattened(shape):
    assert Observations(spaces.Box(0, 1, shape), "here").spec["vector"].shape == (int(np.prod(shape)),)


def test_dict_keeps_its_keys_whatever_they_are_called():
    space = spaces.Dict(image=spaces.Box(-1, 1, (2,)), speed=uint8_box(3, 32, 32), goal=spaces.Discrete(2))
    observations = Observations(space, "here")
    assert observations.spec == {"image": ObsSpec("vector", (2,)), "speed": ObsSpec("image", (64, 64, 3)),
                                 "goal": ObsSpec("vector", (2,))}
    encoded = observations.encode({"image": np.zeros(2, np.float32), "speed": picture(3, 32, 32), "goal": 1})
    assert {key: value.shape for key, value in encoded.items()} == {"image": (2,), "speed": (64, 64, 3), "goal": (2,)}


@pytest.mark.parametrize(("space", "remedy"), [
    (spaces.Tuple([spaces.Discrete(2)]), "turn it into a Box"),
    (spaces.MultiBinary(3), "turn it into a Box"), (spaces.Text(5), "turn it into a Box"),
    (spaces.Dict(a=spaces.Dict(b=spaces.Discrete(2))), "flatten nested"),
    (spaces.Dict(a=spaces.MultiBinary(2)), "'a'"), (spaces.Dict(), "empty"),
])
def test_other_spaces_are_refused_with_what_to_do(space, remedy):
    with pytest.raises(ConfigError, match=f"here.*{remedy}"):
        Observations(space, "here")


@pytest.mark.parametrize(("space", "value", "message"), [
    (spaces.Box(-1, 1, (3,)), np.array([0, np.nan, 0], np.float32), "nan at flat index 1"),
    (spaces.Box(-1, 1, (2, 2)), np.array([[0, 0], [-np.inf, 0]]), "-inf at flat index 2"),
    (spaces.Box(-1, 1, (1,), np.float64), np.array([1e300]), "1e\\+300 at flat index 0"),
    (spaces.Box(-1, 1, (3,)), np.zeros(4, np.float32), "shape \\(4,\\).*shape \\(3,\\)"),
    (spaces.Box(-1, 1, (3,)), None, "object of shape"),
    (spaces.Box(-9, 9, (1,), np.int32), np.array([.5]), "float64.*int32"),
    (uint8_box(64, 64), picture(64, 65), "shape \\(64, 65\\)"),
    (uint8_box(64, 64), np.zeros((64, 64)), "float64"),
    (spaces.Discrete(3), 3, "from 0 to 2"), (spaces.Discrete(3, start=1), 0, "from 1 to 3"),
    (spaces.Discrete(3), 1.0, "from 0 to 2"),
    (spaces.MultiDiscrete([2, 3]), [0, 3], "3 at flat index 1, its space says an integer from 0 to 2"),
    (spaces.MultiDiscrete([2, 3], start=[1, 1]), [0, 1], "0 at flat index 0.*from 1 to 2"),
    (spaces.MultiDiscrete([2, 3]), [0.0, 1.0], "float64 of shape \\(2,\\).*integers of shape \\(2,\\)"),
    (spaces.MultiDiscrete([2, 3]), [0], "shape \\(1,\\).*shape \\(2,\\)"),
    (spaces.Dict(a=spaces.Discrete(2)), {"b": 1}, "\\['b'\\].*\\['a'\\]"),
    (spaces.Dict(a=spaces.Discrete(2)), 1, "that is int"),
    (spaces.Dict(a=spaces.Discrete(2), b=spaces.Discrete(2)), {"a": 1, "b": 7}, "'b' is 7"),
])
def test_broken_promises_are_named(space, value, message):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Violation, match=message):
            Observations(space, "here").encode(value)


def test_discrete_actions_start_where_the_space_starts():
    actions = read_action_space(spaces.Discrete(3, start=-1), "here")
    assert actions.spec == ActionSpec("discrete", 3)
    assert [actions.decode(row) for row in np.eye(3, dtype=np.float32)] == [-1, 0, 1]


@pytest.mark.parametrize("space", [
    spaces.MultiDiscrete([3]), spaces.MultiDiscrete([2, 1, 3], start=[0, 7, -1]),
    spaces.MultiDiscrete([[2, 3], [2, 2]], dtype=np.int8),
])
def test_every_combination_of_several_discrete_actions_is_reached(space):
    """Against Gymnasium's own flattening of the space, which puts one-hots in the same order."""
    actions, choices = read_action_space(space, "here"), space.nvec.ravel().tolist()
    assert actions.spec == ActionSpec("multi_discrete", sum(choices), tuple(choices))
    for index in itertools.product(*map(range, choices)):
        numbers = (np.array(index).reshape(space.shape) + space.start).astype(space.dtype)
        decoded = actions.decode(spaces.flatten(space, numbers).astype(np.float32))
        assert space.contains(decoded) and decoded.dtype == space.dtype
        np.testing.assert_array_equal(decoded, numbers)


@pytest.mark.parametrize("action", [[0, 0, 1, 0, 0], [1, 0, 1, 1, 0], [1, 0, .5, .5, 0], [1, 1, 0, 0, 0],
                                    [1, 0, np.nan, 0, 1]])
def test_every_part_of_several_actions_must_be_one_hot(action):
    with pytest.raises(ValueError, match="one-hot"):
        read_action_space(spaces.MultiDiscrete([2, 3]), "here").decode(np.array(action, np.float32))


def test_nearly_one_hot_is_one_hot():
    assert read_action_space(spaces.Discrete(3), "here").decode(np.array([1e-5, 0.9999, 0], np.float32)) == 1


@pytest.mark.parametrize("action", [[0, 0, 0], [.5, .5, 0], [1, 1, 0], [2, 0, 0], [.9, .1, 0], [np.nan, 0, 0],
                                    [1, -1, 0]])
def test_other_vectors_are_no_discrete_actions(action):
    with pytest.raises(ValueError, match="one-hot"):
        read_action_space(spaces.Discrete(3), "here").decode(np.array(action, np.float32))


def test_continuous_actions_reach_each_bound_and_the_middle():
    space = spaces.Box(np.array([[-2., 0.], [5., -1.]], np.float32), np.array([[2., 1.], [6., 3.]], np.float32))
    actions = read_action_space(space, "here")
    assert actions.spec == ActionSpec("continuous", 4)
    for value, expected in ((-1, space.low), (1, space.high), (0, [[0, .5], [5.5, 1]])):
        decoded = actions.decode(np.full(4, value, np.float32))
        assert decoded.dtype == np.float32 and space.contains(decoded)
        np.testing.assert_allclose(decoded, expected)
    assert actions.decode(np.full(4, 5., np.float32)).tolist() == space.high.tolist()


def test_rescaling_inverts():
    space = spaces.Box(np.array([-3, 10.]), np.array([4, 10.5]), dtype=np.float64)
    given = np.random.default_rng(0).uniform(-1, 1, (20, 2)).astype(np.float32)
    decoded = np.stack([read_action_space(space, "here").decode(row) for row in given])
    back = 2 * (decoded - space.low) / (space.high - space.low) - 1
    np.testing.assert_allclose(back, given, atol=1e-12)


def test_infinite_bounds_pass_the_action_and_are_counted():
    space = spaces.Box(np.array([-np.inf, -2, 0], np.float32), np.array([np.inf, 2, np.inf], np.float32))
    actions = read_action_space(space, "here")
    assert actions.unbounded == 2 and read_action_space(spaces.Box(-1, 1, (2,)), "here").unbounded == 0
    np.testing.assert_allclose(actions.decode(np.array([-.5, -.5, .5], np.float32)), [-.5, -1, .5])
    np.testing.assert_allclose(actions.decode(np.array([3, 1, -1], np.float32)), [1, 2, 0])


def test_an_action_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        read_action_space(spaces.Box(-1, 1, (2,)), "here").decode(np.array([0, np.nan], np.float32))


def test_binary_actions_are_two_choices_each():
    with pytest.raises(ConfigError, match=r"here.*MultiBinary.*use MultiDiscrete with 2 choices for each"):
        read_action_space(spaces.MultiBinary(2), "here")


@pytest.mark.parametrize("space", [spaces.Box(0, 9, (2,), np.int32), spaces.Tuple([spaces.Discrete(2)]),
                                   spaces.Dict(a=spaces.Discrete(2))])
def test_other_action_spaces_are_not_supported_yet(space):
    with pytest.raises(ConfigError, match="not supported yet"):
        read_action_space(space, "here")
