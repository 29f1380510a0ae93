"""The errors xrl raises for mistakes a user can mend. The command line prints them as one line."""

from __future__ import annotations


class XrlError(Exception):
    """Base of every error whose message names the culprit, the value and the remedy."""


class ConfigError(XrlError, ValueError):
    """A key, value or file of the configuration is wrong."""


class EnvironmentFault(XrlError, RuntimeError):
    """A user's environment broke its own promise: NaN, another shape, an exception in ``step``."""


class TooManyFailures(EnvironmentFault):
    """Environments failed more often than a run was told to survive; raised between two steps."""


class ModelFileError(XrlError, ValueError):
    """A model file is missing, damaged, of another method or shape, or not a model file at all."""


class CheckpointError(XrlError, ValueError):
    """A checkpoint, or a file that it counts on, is missing, damaged or of another run, format or shape."""


class NumericalError(XrlError, ArithmeticError):
    """A loss or a gradient is NaN or infinite; training stops before the weights are touched."""
