"""What a run comes to: its best evaluation, its totals, and the table that it ends with."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch
from rich.table import Table

from flare_dist.units import show_bytes

# What some runs measure beside the test set: what is held out, and the server's own parameters under a lossy downlink.
OPTIONAL = ("validation_accuracy", "validation_loss", "server_test_accuracy", "server_test_loss")


def is_best(row: dict[str, Any], earlier: list[dict[str, Any]]) -> bool:
    """True where `row` has an evaluation that beats every earlier one of the run."""
    return "test_accuracy" in row and selection_accuracy(row) > max(
        (selection_accuracy(r) for r in earlier if "test_accuracy" in r), default=-1.0
    )


def selection_accuracy(row: dict[str, Any]) -> float:
    """What the best model is chosen by: validation accuracy where part of the training set is held out."""
    return row.get("validation_accuracy", row["test_accuracy"])


def summarise(rows: list[dict[str, Any]], seconds: float, hardware: dict[str, Any]) -> dict[str, Any]:
    """summary.json: final and best accuracy, total bytes each way, wall-clock seconds, versions and hardware."""
    evaluated = [row for row in rows if "test_accuracy" in row]
    best = max(evaluated, key=selection_accuracy)
    sums = ("uplink_bytes", "downlink_bytes", "buffer_bytes", "dense_bytes", "wire_bytes", "kept", "total")
    packages = ("flare_dist", "torch", "torchvision", "accelerate", "deepspeed", "numpy")
    on_gpu = hardware["device"] == "cuda"
    processor = torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine()
    return {
        "rounds": rows[-1]["round"],
        "test_accuracy": evaluated[-1]["test_accuracy"],
        "test_loss": evaluated[-1]["test_loss"],
        **{key: evaluated[-1][key] for key in OPTIONAL if key in evaluated[-1]},
        "best_accuracy": best["test_accuracy"],
        "best_round": best["round"],
        **{key: sum(row.get(key, 0) for row in rows) for key in (*sums, "rejected_clients")},
        "seconds": seconds,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "hardware": {**hardware, "processor": processor},
    }


def bytes_up(row: dict[str, Any]) -> int:
    """Add up what clients sent: their payloads, and the model's buffers, which travel with them."""
    sent: int = row.get("uplink_bytes", 0) + (row.get("buffer_bytes") or 0)
    return sent


def summary_table(summary: dict[str, Any]) -> Table:
    """The table that a run ends with; the model's buffers travel with the payloads and count with them."""
    table = Table(show_header=False)
    server = summary.get("server_test_accuracy")
    buffers = summary.get("buffer_bytes", 0)
    up, dense, down = bytes_up(summary), summary["dense_bytes"] + buffers, summary["downlink_bytes"]
    rows = {
        "test accuracy": f"{summary['test_accuracy']:.4f} (best {summary['best_accuracy']:.4f})",
        **({} if server is None else {"the server's own": f"{server:.4f}"}),
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
