"""Entries written as strings, loaded on first use, and the nearest name for a misspelt word."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any


def load(path: str) -> Any:
    """Import and return the object that ``"package.module:attribute"`` names.

    Raises ValueError if ``path`` has no colon, ImportError if the module is missing and AttributeError if the
    module lacks the attribute: entries are written by programmers, so these are not user errors.
    """
    module_name, colon, attribute = path.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"{path!r} must look like 'package.module:attribute'")
    return getattr(importlib.import_module(module_name), attribute)


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate most like ``word``, ignoring case, or None if none is close."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    matches = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return by_lower[matches[0]] if matches else None


def suggestion(word: str, candidates: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the candidate most like ``word``, or an empty string if none is close."""
    match = nearest(word, candidates)
    return f" Did you mean {match!r}?" if match is not None else ""
