"""From any Gymnasium space to the few forms networks see, decided from the space and never from key names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from gymnasium import Space, spaces

from xrl.common.errors import ConfigError
from xrl.common.row import ActionSpec, ObsSpec

IMAGE_SIZE = 64
_CHANNELS = (1, 3)
# A box that is not uint8 is taken for an image when two sides are at least this long: rank 3, rank 2.
_SMALLEST_IMAGE, _SMALLEST_MATRIX = 16, 32
_ONE_HOT_TOLERANCE = 1e-3


class Violation(ValueError):
    """A value is not what its space promised; the message says how."""


class ObsEntry(Protocol):
    """One entry of an observation: what it becomes, and how."""

    spec: ObsSpec

    def encode(self, value: Any) -> np.ndarray:
        """The value as an array of ``spec``; raises Violation if it is not what the space promised."""


class ImageEntry:
    """uint8 images (H, W), (H, W, C) or (C, H, W), C = 1 or 3, to (64, 64, C); HWC where both readings fit."""

    def __init__(self, shape: tuple[int, ...], where: str) -> None:
        self._shape = shape
        if len(shape) == 2:
            shape = (*shape, 1)
        self._channels_first = shape[2] not in _CHANNELS
        height, width, channels = (*shape[1:], shape[0]) if self._channels_first else shape
        if channels not in _CHANNELS:
            raise ConfigError(f"{where}: a uint8 box of shape {self._shape} is an image with neither 1 nor 3 channels, "
                              f"first or last; give one gray or colour image (frames need not be stacked)")
        self._resize = (height, width) != (IMAGE_SIZE, IMAGE_SIZE)
        self.spec = ObsSpec("image", (IMAGE_SIZE, IMAGE_SIZE, channels))

    def encode(self, value: Any) -> np.ndarray:
        image = np.asarray(value)
        if image.shape != self._shape or image.dtype != np.uint8:
            raise Violation(f"is {image.dtype} of shape {image.shape}, its space says uint8 of shape {self._shape}")
        if self._channels_first:
            image = image.transpose(1, 2, 0)
        return (_resize(image) if self._resize else image).reshape(self.spec.shape)


def _resize(image: np.ndarray) -> np.ndarray:
    import cv2  # here, because only images of another size need it

    return cv2.resize(np.ascontiguousarray(image), (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_AREA)


class VectorEntry:
    """Any other box, flattened to float32."""

    def __init__(self, space: spaces.Box, where: str) -> None:
        if _looks_like_image(space):
            raise ConfigError(f"{where}: {space} looks like an image of {space.dtype}; give images as uint8, 0 to 255 "
                              f"(and flatten it, if it is none)")
        self._shape, self._dtype = space.shape, np.dtype(space.dtype)
        self._kinds = "biuf" if self._dtype.kind == "f" else "biu"
        self.spec = ObsSpec("vector", (math.prod(space.shape),))

    def encode(self, value: Any) -> np.ndarray:
        array = np.asarray(value)
        if array.shape != self._shape or array.dtype.kind not in self._kinds:
            raise Violation(f"is {array.dtype} of shape {array.shape}, "
                            f"its space says {self._dtype} of shape {self._shape}")
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf and is reported below
            vector = array.astype(np.float32).reshape(-1)
        if not np.isfinite(vector).all():
            worst = int(np.argmin(np.isfinite(vector)))
            raise Violation(f"holds {array.reshape(-1)[worst]} at flat index {worst}; it must be a finite float32")
        return vector


def _looks_like_image(space: spaces.Box) -> bool:
    sides = sorted(space.shape)
    if space.dtype == np.uint8 or len(sides) not in (2, 3):
        return False
    return sides[-2] >= (_SMALLEST_MATRIX if len(sides) == 2 else _SMALLEST_IMAGE)


class OneHotEntry:
    """Discrete observations, one-hot as float32; ``start`` becomes index 0."""

    def __init__(self, space: spaces.Discrete) -> None:
        self._start, self._n = int(space.start), int(space.n)
        self.spec = ObsSpec("vector", (self._n,))

    def encode(self, value: Any) -> np.ndarray:
        number = np.asarray(value)
        if number.size != 1 or number.dtype.kind not in "iu" or not 0 <= number.item() - self._start < self._n:
            raise Violation(f"is {value!r}, its space says an integer from {self._start} to "
                            f"{self._start + self._n - 1}")
        vector = np.zeros(self._n, np.float32)
        vector[number.item() - self._start] = 1.0
        return vector


class OneHotsEntry:
    """MultiDiscrete observations: one one-hot after the other, as float32, in the order of the flattened array."""

    def __init__(self, space: spaces.MultiDiscrete) -> None:
        self._space = space
        self._start, self._choices = space.start.reshape(-1), space.nvec.reshape(-1)
        self._first = np.cumsum(self._choices) - self._choices  # where each part begins
        self.spec = ObsSpec("vector", (int(self._choices.sum()),))

    def encode(self, value: Any) -> np.ndarray:
        numbers = np.asarray(value)
        if numbers.shape != self._space.shape or numbers.dtype.kind not in "iu":
            raise Violation(f"is {numbers.dtype} of shape {numbers.shape}, "
                            f"its space says integers of shape {self._space.shape}")
        index = numbers.reshape(-1).astype(np.int64) - self._start
        if ((index < 0) | (index >= self._choices)).any():
            worst = int(np.argmax((index < 0) | (index >= self._choices)))
            raise Violation(f"holds {numbers.reshape(-1)[worst]} at flat index {worst}, its space says an integer from "
                            f"{self._start[worst]} to {self._start[worst] + self._choices[worst] - 1}")
        vector = np.zeros(self.spec.shape, np.float32)
        vector[self._first + index] = 1.0
        return vector


class Observations:
    """The whole observation: name -> entry. A space that is no Dict is named "image" or "vector".

    Raises ConfigError for a space that cannot be read, with what to do.
    """

    def __init__(self, space: Space[Any], where: str) -> None:
        self._is_dict = isinstance(space, spaces.Dict)
        if isinstance(space, spaces.Dict):
            self._entries = {key: _entry(part, f"{where}: observation {key!r}") for key, part in space.items()}
            if not self._entries:
                raise ConfigError(f"{where}: the observation space is an empty Dict; give at least one Box")
        else:
            entry = _entry(space, f"{where}: observation")
            self._entries = {entry.spec.kind: entry}
        self.spec = {key: entry.spec for key, entry in self._entries.items()}

    def encode(self, value: Any) -> dict[str, np.ndarray]:
        """Name -> array as ``spec`` says; raises Violation naming the entry and the value."""
        if not self._is_dict:
            value = dict.fromkeys(self._entries, value)
        elif not isinstance(value, Mapping) or value.keys() != self._entries.keys():
            got = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise Violation(f"an observation that is {got}, its space says a Dict of {sorted(self._entries)}")
        encoded = {}
        for key, entry in self._entries.items():
            try:
                encoded[key] = entry.encode(value[key])
            except Violation as violation:
                raise Violation(f"an observation whose {key!r} {violation}") from None
        return encoded


def _entry(space: Space[Any], where: str) -> ObsEntry:
    if isinstance(space, spaces.Discrete):
        return OneHotEntry(space)
    if isinstance(space, spaces.MultiDiscrete):
        return OneHotsEntry(space)
    if isinstance(space, spaces.Box):
        if space.dtype == np.uint8 and len(space.shape) in (2, 3):
            return ImageEntry(space.shape, where)
        return VectorEntry(space, where)
    remedy = "flatten nested Dicts into one" if isinstance(space, spaces.Dict) else "turn it into a Box or a Discrete"
    raise ConfigError(f"{where}: {space} is not supported; {remedy}, for instance with gymnasium's "
                      f"FlattenObservation or TransformObservation wrapper")


class DiscreteActions:
    """One-hot (A,) to the integer of a Discrete space."""

    unbounded = 0

    def __init__(self, space: spaces.Discrete) -> None:
        self._start = int(space.start)
        self.spec = ActionSpec("discrete", int(space.n))
        self._one_hot = np.eye(self.spec.size, dtype=np.float32)

    def decode(self, action: np.ndarray) -> int:
        """The integer action; raises ValueError unless ``action`` is close to exactly one-hot."""
        return int(self.indices(action)) + self._start

    def indices(self, action: np.ndarray) -> np.ndarray:
        """(..., A) to the places of the ones (...), counted from 0; raises ValueError as ``decode`` does."""
        index = action.argmax(-1)
        if not (np.abs(action - self._one_hot[index]) <= _ONE_HOT_TOLERANCE).all():  # written so that NaN fails, too
            raise ValueError(f"a discrete action must be one-hot, got {action}")
        return index


class MultiDiscreteActions:
    """One one-hot after the other, (A,), to the integers of a MultiDiscrete space."""

    unbounded = 0

    def __init__(self, space: spaces.MultiDiscrete) -> None:
        self._start, self._dtype = space.start, np.dtype(space.dtype)
        choices = tuple(int(n) for n in space.nvec.reshape(-1))
        self._parts = [DiscreteActions(spaces.Discrete(n)) for n in choices]
        self._ends = np.cumsum(choices)[:-1]
        self.spec = ActionSpec("multi_discrete", sum(choices), choices)

    def decode(self, action: np.ndarray) -> np.ndarray:
        """The integers, in the space's shape; raises ValueError unless every part is close to exactly one-hot."""
        parts = zip(self._parts, np.split(action, self._ends), strict=True)
        index = np.array([part.decode(chosen) for part, chosen in parts], self._dtype)
        return index.reshape(self._start.shape) + self._start


class ContinuousActions:
    """[-1, 1] of (A,) to the bounds and shape of a Box; entries without finite bounds pass unchanged."""

    def __init__(self, space: spaces.Box) -> None:
        self._shape, self._dtype = space.shape, np.dtype(space.dtype)
        self._low = space.low.reshape(-1).astype(np.float64)
        self._high = space.high.reshape(-1).astype(np.float64)
        bounded = np.isfinite(self._low) & np.isfinite(self._high)
        self.unbounded = int((~bounded).sum())
        self._middle, self._half = np.zeros_like(self._low), np.ones_like(self._low)
        self._middle[bounded] = (self._low[bounded] + self._high[bounded]) / 2
        self._half[bounded] = (self._high[bounded] - self._low[bounded]) / 2
        self.spec = ActionSpec("continuous", len(self._low))

    def decode(self, action: np.ndarray) -> np.ndarray:
        """The action within the bounds; raises ValueError if it is not finite."""
        if not np.isfinite(action).all():
            raise ValueError(f"a continuous action must be finite, got {action}")
        scaled = self._middle + self._half * np.clip(action, -1.0, 1.0).astype(np.float64)
        # The second clip undoes rounding, and keeps an entry with one finite bound on its side of it.
        return np.clip(scaled, self._low, self._high).astype(self._dtype).reshape(self._shape)


def read_action_space(space: Space[Any], where: str) -> DiscreteActions | MultiDiscreteActions | ContinuousActions:
    """The decoder of an action space. Raises ConfigError if unsupported."""
    if isinstance(space, spaces.Discrete):
        return DiscreteActions(space)
    if isinstance(space, spaces.MultiDiscrete):
        return MultiDiscreteActions(space)
    if isinstance(space, spaces.MultiBinary):
        raise ConfigError(f"{where}: action space {space} is not supported; use MultiDiscrete with 2 choices for each "
                          f"entry, whose actions are the same numbers")
    if not isinstance(space, spaces.Box) or np.dtype(space.dtype).kind != "f" or math.prod(space.shape) == 0:
        raise ConfigError(f"{where}: action space {space} is not supported yet; use Discrete, MultiDiscrete or a Box "
                          f"of floats")
    return ContinuousActions(space)
