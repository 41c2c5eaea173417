"""The rows of metrics.jsonl, one a round, from which everything else that is logged can be made again."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from flare_dist.json_lines import decoded, with_nan
from flare_dist.records.curves import tag
from flare_dist.records.rundir import METRICS

log = logging.getLogger(__name__)


def read_rows(directory: Path, up_to: int | None = None) -> list[dict[str, Any]]:
    """Read the rows of rounds 0 ... `up_to`, or of all; lines that cannot be read are left out with a warning.

    A last line that a kill cut short is no loss: it belongs to a round that is played again.
    """
    path = directory / METRICS
    rows = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        row = _row(line)
        if row is not None:
            rows[row["round"]] = row
    up_to = max(rows, default=-1) if up_to is None else up_to
    missing = [str(round_) for round_ in range(up_to + 1) if round_ not in rows]
    if missing:
        log.warning("%s has no readable line for rounds %s: totals are incomplete", path, ", ".join(missing))
    return [rows[round_] for round_ in sorted(rows) if round_ <= up_to]


def _row(line: str) -> dict[str, Any] | None:
    """Decode a line; None if it is no row, or has values that cannot be added up and drawn."""
    row = with_nan(decoded(line) or {})
    if type(row.get("round")) is not int:
        return None
    numbers = [value for key, value in row.items() if tag(key) or key == "time"]
    densities = row.get("layer_densities", {})
    numbers += densities.values() if isinstance(densities, dict) else [densities]
    sums = [value for key, value in row.items() if key.endswith(("_bytes", "_seconds")) or key == "time"]
    add_up = not any(isinstance(value, float) and not math.isfinite(value) for value in sums)
    return row if add_up and all(isinstance(value, (int, float)) for value in numbers) else None
