"""Building blocks of the schemas: numbers as YAML users write them, and fields that explain themselves."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def as_number(value: Any) -> Any:
    """A string that reads as a number becomes one: ``"1e-4"`` from a keyword, a dict or a Namespace."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError("must be a finite number")
    return value


Int = Annotated[int, BeforeValidator(as_number)]
Float = Annotated[float, BeforeValidator(as_number)]


def param(default: Any, description: str, unit: str = "-", **constraints: Any) -> Any:
    """A field with a description and a unit ("-" for a pure number or a name)."""
    return Field(default, description=description, json_schema_extra={"unit": unit}, **constraints)


class Section(BaseModel):
    """A frozen part of the configuration; an unknown key is an error. ``project_name=2024`` is a name all the same."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, coerce_numbers_to_str=True)
