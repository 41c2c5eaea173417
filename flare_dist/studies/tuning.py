"""Choose the values of tuned keys by the validation metric of the runs that tried them."""

from __future__ import annotations

import logging
from typing import Any

from flare_dist.studies.grid import Values
from flare_dist.studies.sweep_results import best_of
from flare_dist.tasks.metrics import goodness

log = logging.getLogger(__name__)


def choose(tried: list[dict[str, Any]], tune: dict[str, list[str]]) -> Values | None:
    """Choose the values that are best on the validation set, the first of equals.

    Returns {} if there is nothing to tune, and None if every run diverged. Warns if a chosen value is the smallest or
    the largest that was tried.
    """
    if not tune:
        return {}
    finished = [row for row in tried if row["status"] == "finished"]
    if not finished:
        return None
    metric, direction = best_of(finished)
    measured = f"validation_{metric}"
    best = max(finished, key=lambda row: goodness((metric, direction), row[measured]))
    for key, values in tune.items():
        if best[key] in _ends(values):
            log.warning("%s = %s is at the edge of what was tried: a better value may lie beyond it", key, best[key])
    for row in finished:
        verdict = "chosen:" if row is best else "  not:"
        values_tried = ", ".join(f"{key} = {row[key]}" for key in tune)
        log.info("%s %s: validation %s %.4f", verdict, values_tried, metric, row[measured])
    return {key: best[key] for key in tune}


def _ends(values: list[str]) -> list[str]:
    """Find the smallest and the largest of several numbers, as written; empty if they are no numbers."""
    try:
        ordered = sorted(values, key=float)
    except ValueError:
        return []
    return [ordered[0], ordered[-1]] if len(ordered) > 1 else []
