"""Logs of one JSON object a line, whose last line a kill may have cut short.

JSON has no NaN and no infinity. Either is written as null, which is read as NaN: AUROC of a group of one class, or the
perplexity of a model that has diverged on the test set.
"""

from __future__ import annotations

import json
import math
from typing import Any


def encoded(value: Any, indent: int | None = None) -> str:
    """Encode a value as JSON, with null for each number in it that is not finite."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    """Replace the numbers that are not finite by None, at every depth."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def with_nan(value: Any) -> Any:
    """Replace None by NaN, at every depth."""
    if isinstance(value, dict):
        return {key: with_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_nan(item) for item in value]
    return math.nan if value is None else value


def decoded(line: str) -> dict[str, Any] | None:
    """Decode the object of a line; None if it is damaged, or something else than an object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
