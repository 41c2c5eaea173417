"""Run sweeps whose training processes are stood in for."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from flare_dist.config.config import Config
from flare_dist.studies.grid import Grid
from flare_dist.studies.sweep import sweep

TABLE = {  # (lr, seed) -> (validation accuracy, test accuracy); the test set would choose otherwise
    ("0.1", 0): (0.5, 0.9),
    ("0.2", 0): (0.7, 0.6),
    ("0.3", 0): (0.6, 0.8),
    ("0.2", 1): (0.6, 0.5),
}


class Processes:
    """Stand in for the training processes of a sweep: read each command line and leave a summary or an error."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []

    def run(self, command: list[str], output: Path) -> int:
        self.commands.append(command)
        settings = dict(itertools.pairwise(command))
        lr, seed = settings["--clients.lr"], int(settings["--seed"])
        status = 0
        if lr == "9":
            output.write_text("error: diverged: round 3: the training loss of the pooled data is not finite\n")
            status = 1
        elif lr == "8":
            output.write_text("loading\nerror: data.root: no such folder\n")
            status = 2
        else:
            validation, test = TABLE[lr, seed]
            summary = {"test_accuracy": test, "test_loss": 1.0, "uplink_bytes": 10**6, "downlink_bytes": 1}
            directory = Path(settings["--output_dir"])
            directory.mkdir(parents=True)
            (directory / "summary.json").write_text(
                json.dumps(summary | {"validation_accuracy": validation, "seconds": 1.0})
            )
        return status


def play_grid(directory: Path, grid: Grid, **options: Any) -> list[dict[str, Any]]:
    """Run a sweep of the default configuration in a directory."""
    return sweep(Config(output_dir=str(directory)), grid, options.get("ranks", 1))
