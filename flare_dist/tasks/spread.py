"""How much the members of a run differ: the worst, the best and the deviation of a metric over groups or clients."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

from flare_dist.tasks.metrics import goodness
from flare_dist.tasks.task import Best

MEMBERS = {"group": "group", "client": "client", "personal": "client's own model"}  # kind -> words

Measured = Mapping[str, float]  # metric -> value


def spread(members: Mapping[str, Measured], kind: str, best: Best) -> dict[str, float | str]:
    """Summarise what was measured of each member: keys worst_KIND_METRIC, best_KIND_METRIC and KIND_METRIC_std.

    `best` names the metric and its direction. worst_KIND_name is the name of the worst one. Members of whom the metric
    is not a number (AUROC of a group of one class) are left out; nothing is returned if none is left.
    """
    metric, _ = best
    known = {name: float(found[metric]) for name, found in members.items() if not math.isnan(found[metric])}
    if not known:
        return {}
    ordered = sorted(known, key=lambda name: goodness(best, known[name]))
    return {
        f"worst_{kind}_name": ordered[0],
        f"worst_{kind}_{metric}": known[ordered[0]],
        f"best_{kind}_{metric}": known[ordered[-1]],
        f"{kind}_{metric}_std": statistics.pstdev(known.values()),
    }


def mean_over_examples(members: Mapping[str, Measured], metric: str) -> float:
    """Average a metric over members by how many `examples` each has; NaN if it is a number of none."""
    known = [(found["examples"], found[metric]) for found in members.values() if not math.isnan(found[metric])]
    total = math.fsum(examples for examples, _ in known)
    return math.fsum(examples * value for examples, value in known) / total if total else math.nan
