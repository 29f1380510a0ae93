"""Sections that the model-free methods share."""

from __future__ import annotations

from typing import Literal

from xrl.configs.schemas.fields import Float, Int, Section, param


class NetworkConfig(Section):
    layers: Int = param(2, "dense layers", "layers", ge=1)
    units: Int = param(256, "width of a dense layer", "units", ge=1)
    depth: Int = param(32, "images: channels of the first convolution; the two others have twice as many", "channels",
                       ge=1)


class AdamConfig(Section):
    lr: Float = param(3e-4, "learning rate", "per update", gt=0)
    eps: Float = param(1e-8, "epsilon of Adam, added to the square root as in TensorFlow", gt=0)
    clip: Float = param(1e9, "largest global norm of a gradient", gt=0)


class StorageConfig(Section):
    storage: Literal["disk", "memory"] = param(
        "disk", "disk: rows lie in the run folder and are read through the system's cache; memory: all of them in RAM")
