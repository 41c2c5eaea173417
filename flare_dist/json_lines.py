"""Logs of one JSON object a line, whose last line a kill may have cut short."""

from __future__ import annotations

import json
from typing import Any


def decoded(line: str) -> dict[str, Any] | None:
    """Decode the object of a line; None if it is damaged, or something else than an object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
