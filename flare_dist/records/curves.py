"""The curves of a run: the values that trackers show of each row of metrics.jsonl, by tag."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from flare_dist.config.config import Config
from flare_dist.errors import printable
from flare_dist.records.summary import bytes_up
from flare_dist.schedules import parse_schedule
from flare_dist.tasks.spread import MEMBERS

# What tasks/spread.py makes of a metric over groups or clients, names aside.
SPREAD = re.compile(rf"((worst|best)_)?({'|'.join(MEMBERS)})_(?!name$).+")

BY_GROUP = "_by_group"  # ends the first part of the tags of groups, after the metric

Rates = Callable[[int], dict[str, float]]  # round -> learning rates by tag


def tag(key: str) -> str | None:
    """Return the tag of a key of metrics.jsonl; None if it has no curve of its own."""
    for group, suffix in (
        ("accuracy", "_accuracy"),
        ("loss", "_loss"),
        ("bytes", "_bytes"),
        ("seconds", "_seconds"),
        ("skipped_examples", "_skipped_examples"),
    ):
        if key.endswith(suffix):
            return f"{group}/{key.removesuffix(suffix)}"
    if SPREAD.fullmatch(key):
        return f"spread/{key}"
    for part in ("server_validation", "server_test", "validation", "test"):
        if key.startswith(f"{part}_"):
            return f"{key.removeprefix(f'{part}_')}/{part}"
    groups = {
        "clients": ("clients", "rejected_clients", "skipped_examples"),
        "ranks": ("ranks", "collectives", "steps"),
        "masks": ("active_weights", "mask_mismatch", "dropped_residuals", "dropped_moments"),
    }
    return next((f"{group}/{key}" for group, keys in groups.items() if key in keys), None)


class Curves:
    """Turn rows, given in their order, into values by tag; bytes are also added up over the rows.

    Of groups that are measured one by one, the best metric of the task has a curve each.
    """

    def __init__(self, rates: Rates, metric: str = "accuracy") -> None:
        self._rates = rates
        self._metric = metric
        self._sums: Counter[str] = Counter()

    def values(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Return the values of a row; BatchNorm's statistics count in bytes up and in the compression."""
        values = {name: value for key, value in row.items() if (name := tag(key)) is not None}
        values |= {f"density/{layer}": density for layer, density in row.get("layer_densities", {}).items()}
        values |= {
            f"{self._metric}{BY_GROUP}/{printable(name)}": found[self._metric]
            for name, found in row.get("groups", {}).items()
            if self._metric in found
        }
        return values | self._traffic(row) | self._rates(row["round"])

    def _traffic(self, row: Mapping[str, Any]) -> dict[str, float]:
        if "uplink_bytes" not in row:
            return {}
        up = bytes_up(dict(row))
        dense = row.get("dense_bytes", 0) + up - row["uplink_bytes"]
        self._sums.update(up=up, dense=dense, down=row.get("downlink_bytes", 0), wire=row.get("wire_bytes", 0))
        values: dict[str, float] = {f"cumulative_bytes/{kind}": self._sums[kind] for kind in ("up", "down", "wire")}
        if up and dense:
            values["compression/round"] = dense / up
        if self._sums["up"] and self._sums["dense"]:
            values["compression/total"] = self._sums["dense"] / self._sums["up"]
        return values


def learning_rates(config: Config, first_round: int = 1) -> Rates:
    """Return the learning rates of a round from `first_round` on; earlier ones are of another run."""
    parts = {"clients": config.clients} | ({"server": config.server} if config.mode == "federated" else {})
    schedules = {name: parse_schedule(part.lr_schedule, f"{name}.lr_schedule") for name, part in parts.items()}

    def rates(round_: int) -> dict[str, float]:
        if round_ < max(first_round, 1):
            return {}
        return {f"lr/{name}": part.lr * schedules[name](round_, config.rounds) for name, part in parts.items()}

    return rates
