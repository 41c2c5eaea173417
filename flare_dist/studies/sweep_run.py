"""Train one run of a sweep in a process of its own, and read what it came to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from flare_dist.config.config import Config
from flare_dist.records import rundir
from flare_dist.rounds.diverged import DIVERGED
from flare_dist.studies.grid import Run, arguments
from flare_dist.studies.sweep_results import UNKNOWN

BASE = "base.yaml"  # the configuration of a sweep, in its directory
TUNING_VALIDATION = 0.1  # held out while a key is tuned, if the configuration itself holds nothing out
BYTES = ("uplink_bytes", "buffer_bytes", "downlink_bytes")


def play(run: Run, config: Config, sweep: Path, ranks: int) -> dict[str, Any]:
    """Train a run of the sweep in the directory `sweep` unless it is finished or has diverged; returns its row.

    Raises ValueError, with the run's own error, if the run ends in any other way.
    """
    directory = run.directory(sweep)
    directory.parent.mkdir(parents=True, exist_ok=True)
    output = directory.parent / f"{directory.name}.log"
    summary = rundir.read_summary(directory)
    if summary is None and not _has_diverged(output):
        status = _run(_command(run, config, sweep, ranks), output)
        summary = rundir.read_summary(directory)
        if summary is None and not _has_diverged(output):
            lines = [line for line in output.read_text().splitlines() if line.strip()] or ["(nothing)"]
            found = next((line for line in lines if line.startswith("error: ")), lines[-1])
            raise ValueError(f"{directory.name}: the run ended with status {status}: {found} (all of it: {output})")
    return _row(run, directory, summary)


def _command(run: Run, config: Config, sweep: Path, ranks: int) -> list[str]:
    """Write the command that trains a run; more than one rank are started by torchrun."""
    values = {**run.values, "seed": str(run.seed), "output_dir": str(run.directory(sweep))}
    if run.tuning and not config.data.validation:
        values["data.validation"] = str(TUNING_VALIDATION)
    launcher = [sys.executable, "-m"]
    if ranks > 1:
        launcher += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), "-m"]
    return [*launcher, "flare_dist", "train", "--config", str(sweep / BASE), *arguments(values)]


def _row(run: Run, directory: Path, summary: dict[str, Any] | None) -> dict[str, Any]:
    """Make the row of results.csv of a run; without a summary it has diverged."""
    found = summary or {}
    row: dict[str, Any] = {**run.values, "seed": run.seed, "purpose": "tuning" if run.tuning else "result"}
    row["status"] = "diverged" if summary is None else "finished"
    metric, better = found.get("metric", UNKNOWN[0]), found.get("better", UNKNOWN[1])
    measured = (f"validation_{metric}", f"test_{metric}") if found else ()
    row |= {key: found.get(key) for key in (*measured, "test_loss", *BYTES, "seconds")}
    row |= {"metric": metric, "better": better} if found else {}
    return row | {"directory": str(directory)}


def _run(command: list[str], output: Path) -> int:
    """Run a command with its output in a file; returns its exit status. If this process is interrupted, it ends too."""
    with output.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise


def _has_diverged(output: Path) -> bool:
    """Tell whether a run's output ends with the error of training that diverged."""
    lines = output.read_text().splitlines() if output.exists() else []
    return any(line.startswith(f"error: {DIVERGED}") for line in lines)
