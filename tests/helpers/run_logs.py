"""Write run directories with logs whose sums are known, and read printed tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from torch.utils.tensorboard import SummaryWriter

from flare_dist.records.curves import tag

ROW = {
    "clients": 4,
    "uplink_bytes": 400_000,
    "downlink_bytes": 4_000_000,
    "buffer_bytes": 0,
    "dense_bytes": 4_000_000,
    "wire_bytes": 1_000_000,
    "collectives": 3,
    "ranks": 2,
    "round_seconds": 2.0,
    "compute_seconds": 1.5,
    "select_seconds": 0.2,
    "communication_seconds": 0.1,
    "waiting_seconds": 0.05,
}


def write_run(directory: Path, rows: int = 4, batch_size: int = 10, events: bool = False, **changes: Any) -> Path:
    """Write a run directory whose accuracy is a tenth of the round; if `events`, with event files alone."""
    directory.mkdir(parents=True)
    config = {"mode": "federated", "clients": {"batch_size": batch_size}, "engine": {"gradient_accumulation_steps": 1}}
    (directory / "config.yaml").write_text(yaml.safe_dump(config | {"eval_every": 1}))
    logged: list[dict[str, Any]] = [{"round": 0, "test_accuracy": 0.0}]
    logged += [{"round": n, "test_accuracy": n / 10, **ROW, **changes} for n in range(1, rows)]
    if events:
        with SummaryWriter(str(directory)) as writer:
            for row in logged:
                for key, value in row.items():
                    if tag(key):
                        writer.add_scalar(str(tag(key)), value, row["round"])
    else:
        (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in logged))
    return directory


def table_of(printed: str) -> list[list[str]]:
    """Divide the rows of a printed table into cells."""
    return [line.split("│") for line in printed.splitlines() if "│" in line]
