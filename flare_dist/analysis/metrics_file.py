"""Read the rows of metrics.jsonl past damaged lines."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from flare_dist.analysis.event_rows import STATES, Row
from flare_dist.json_lines import decoded, with_nan

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"


def read_metrics(directory: Path) -> list[Row]:
    """Read the rows of metrics.jsonl in `directory`; damaged lines are left out with a warning.

    An incomplete last line is not damage: it belongs to a run that is still going on. Raises ValueError if the file
    cannot be read or has no readable line.
    """
    return read_noted(directory)[0]


def read_noted(directory: Path) -> tuple[list[Row], list[str]]:
    """Read the rows as `read_metrics` does; returns them with what was left out, in words."""
    path = directory / METRICS
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ValueError(f"bandwidth: {path} cannot be read: {error.strerror}") from error
    lines = text.split("\n")
    rows = [_row(line) for line in lines]
    damaged = [str(n) for n, (line, row) in enumerate(zip(lines[:-1], rows), 1) if line.strip() and row is None]
    readable = [row for row in rows if row is not None]
    if not readable:
        raise ValueError(f"bandwidth: {path} has no readable line")
    notes = [f"{path}: damaged lines are left out: {', '.join(damaged)}"] if damaged else []
    for note in notes:
        log.warning("%s", note)
    return readable, notes


def _row(line: str) -> Row | None:
    """Decode a line of metrics.jsonl; None if it is no row whose numbers can be added up."""
    row = with_nan(decoded(line) or {})
    if type(row.get("round")) is not int or not _is_number(row["round"]):
        return None
    adds_up = (*STATES, "collectives", "steps", "time")
    amounts = [value for key, value in row.items() if key.endswith(("_bytes", "_seconds")) or key in adds_up]
    measured = [v for key, v in row.items() if key.startswith(("test_", "validation_")) or key.endswith("_loss")]
    lists = [row.get(key, []) for key in ("bucket_sent_after", "bucket_wire")]
    buckets_are_right = all(isinstance(values, list) and all(map(_is_number, values)) for values in lists)
    if not buckets_are_right or not all(map(_is_number, amounts)):
        return None
    return row if all(isinstance(value, (int, float)) for value in measured) else None


def _is_number(value: Any) -> bool:
    """Tell whether a value is a finite number that a float can hold."""
    try:
        return isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:
        return False
