"""The result of a run: its best evaluation, its totals, and the table that it ends with."""

from __future__ import annotations

import math
import platform
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from rich.table import Table

from flare_dist.tasks.metrics import goodness
from flare_dist.tasks.spread import MEMBERS
from flare_dist.tasks.task import Best
from flare_dist.units import show_bytes

# The test set, the examples held out, and the server's own parameters under a lossy downlink.
EVALUATIONS = ("test_", "validation_", "server_test_")
SPREADS = tuple(f"{end}{kind}_" for kind in MEMBERS for end in ("", "worst_", "best_"))


def is_best(row: dict[str, Any], earlier: list[dict[str, Any]], best: Best) -> bool:
    """Tell whether `row` has an evaluation that beats every earlier one of the run by the task's `best` metric."""
    key = f"test_{best[0]}"
    beaten = max((selection(r, best) for r in earlier if key in r), default=-math.inf)
    return key in row and selection(row, best) > beaten


def selection(row: dict[str, Any], best: Best) -> float:
    """Return the value that chooses the best model, larger is better: on the validation set if there is one."""
    name, _ = best
    return goodness(best, row.get(f"validation_{name}", row[f"test_{name}"]))


def summarise(rows: list[dict[str, Any]], seconds: float, hardware: dict[str, Any], best: Best) -> dict[str, Any]:
    """Make summary.json: final and best metrics, total bytes each way, wall-clock seconds, versions and hardware."""
    metric, direction = best
    evaluated = [row for row in rows if f"test_{metric}" in row]
    chosen = max(evaluated, key=partial(selection, best=best))
    sums = ("uplink_bytes", "downlink_bytes", "buffer_bytes", "dense_bytes", "wire_bytes", "kept", "total")
    packages = ("flare_dist", "torch", "torchvision", "accelerate", "deepspeed", "numpy")
    on_gpu = hardware["device"] == "cuda"
    processor = torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine()
    return {
        "rounds": rows[-1]["round"],
        **{key: value for key, value in evaluated[-1].items() if key.startswith(EVALUATIONS + SPREADS)},
        f"best_{metric}": chosen[f"test_{metric}"],
        "best_round": chosen["round"],
        "metric": metric,
        "better": direction,
        **{key: sum(row.get(key, 0) for row in rows) for key in (*sums, "rejected_clients")},
        "seconds": seconds,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "hardware": {**hardware, "processor": processor},
    }


def bytes_up(row: dict[str, Any]) -> int:
    """Add up the bytes that clients sent: their payloads, and the model's buffers, which travel with them."""
    sent: int = row.get("uplink_bytes", 0) + (row.get("buffer_bytes") or 0)
    return sent


def summary_table(summary: dict[str, Any]) -> Table:
    """Make the table that a run ends with; the model's buffers travel with the payloads and count with them."""
    table = Table(show_header=False)
    metric = summary.get("metric", "accuracy")
    server = summary.get(f"server_test_{metric}")
    buffers = summary.get("buffer_bytes", 0)
    up = bytes_up(summary)
    dense = summary["dense_bytes"] + buffers
    down = summary["downlink_bytes"]
    rows = {
        f"test {metric}": f"{summary[f'test_{metric}']:.4f} (best {summary[f'best_{metric}']:.4f})",
        **({} if server is None else {"the server's own": f"{server:.4f}"}),
        **_spread_rows(summary, metric),
        "rounds": str(summary["rounds"]),
        "bytes up": f"{up:,} ({show_bytes(up)})",
        **({"of these, buffers": f"{buffers:,} ({show_bytes(buffers)})"} if buffers else {}),
        "compression against dense": f"{dense / up:.1f} x" if up else "nothing was sent",
        "bytes down": f"{down:,} ({show_bytes(down)})",
        "seconds": f"{summary['seconds']:.1f}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _spread_rows(summary: dict[str, Any], metric: str) -> dict[str, str]:
    """Make the rows of the table that tell how groups and clients differ, if they were measured."""
    rows = {}
    for kind, words in MEMBERS.items():
        worst = summary.get(f"worst_{kind}_{metric}")
        if worst is not None:
            name = summary[f"worst_{kind}_name"]
            best = summary[f"best_{kind}_{metric}"]
            deviation = summary[f"{kind}_{metric}_std"]
            rows[f"worst {words}"] = f"{worst:.4f} ({name}; best {best:.4f}, deviation {deviation:.4f})"
    return rows
