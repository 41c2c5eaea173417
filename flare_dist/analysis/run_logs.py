"""Read the log of a run, and tell whether the bytes and seconds of several runs are those of the same work.

The rows come from metrics.jsonl if there is one, otherwise from TensorBoard event files, also those of other trainers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from flare_dist.analysis.event_logs import read_events
from flare_dist.analysis.event_rows import Row
from flare_dist.analysis.metrics_file import METRICS, read_noted
from flare_dist.errors import printable
from flare_dist.tasks.builtin import TASKS
from flare_dist.tasks.task import Best

# Runs whose bytes and seconds are compared must agree in these dotted keys.
SAME_WORK = ("mode", "clients.batch_size", "engine.gradient_accumulation_steps", "eval_every", "ranks")


@dataclass(frozen=True)
class RunLog:
    """Hold the rows that one run logged, and the settings of its work."""

    name: str  # its directory, as it can be printed
    rows: list[Row]  # of the rounds in order, 0 being the initial model
    work: dict[str, Any] = field(default_factory=dict)  # values of SAME_WORK; empty without a configuration
    notes: list[str] = field(default_factory=list)  # damage and repeats in its logs, in words
    best: Best = ("accuracy", "max")  # the metric by which its task compares models
    config: dict[str, Any] = field(default_factory=dict)  # nested, as it was saved; empty without one
    summary: dict[str, Any] = field(default_factory=dict)  # of a finished run; else empty


def read_run(directory: Path, tags: Mapping[str, str], ranks: int | None = None) -> RunLog:
    """Read the log in `directory`.

    `tags` gives the TensorBoard tag of each key in the logs of other trainers, which must log the bytes since the value
    before. `ranks` is taken if the log does not tell how many there were. Damaged parts are left out with a warning.
    Raises ValueError if there is no log, or if it has none of the keys.
    """
    has_metrics = (directory / METRICS).exists()
    rows, notes = read_noted(directory) if has_metrics else read_events(directory, tags)
    if ranks is not None:
        for row in rows:
            row.setdefault("ranks", ranks)
    config = _config(directory)
    summary = _summary(directory)
    name = printable(directory)
    return RunLog(name, rows, _work(config, rows), notes, _best(config, summary, rows), config, summary)


def check_same_work(runs: Sequence[RunLog]) -> str | None:
    """Explain why the bytes and seconds of the runs cannot be compared; None if they can."""
    for key in SAME_WORK:
        values = {run.name: run.work[key] for run in runs if key in run.work}
        if len({repr(value) for value in values.values()}) > 1:
            return f"the runs differ in {key} ({', '.join(f'{name}: {value}' for name, value in values.items())})"
    unknown = [run.name for run in runs if not run.work]
    if unknown and len(runs) > 1:
        return f"{', '.join(unknown)} has no config.yaml that tells batch size and accumulation"
    return None


def _config(directory: Path) -> dict[str, Any]:
    """Read the run's configuration; empty if there is none, as in the logs of other trainers."""
    try:
        config = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def _value(config: Mapping[str, Any], key: str) -> Any:
    """Look up a dotted key; None if it is missing."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _summary(directory: Path) -> dict[str, Any]:
    """Read the run's summary; empty if there is none."""
    try:
        return dict(json.loads((directory / "summary.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _best(config: Mapping[str, Any], summary: Mapping[str, Any], rows: Sequence[Row]) -> Best:
    """Find the metric by which the run's task compares models.

    config.yaml has it but for older runs, of which the task tells, or, of a task of the user's, the summary. If nothing
    tells of a task, accuracy is the metric if it was measured, and the loss if that alone was.
    """
    metric, _, direction = str(_value(config, "task.best")).partition(":")
    if direction:
        return metric, direction
    name = _value(config, "task.name")
    if isinstance(name, str) and name in TASKS:
        return TASKS[name].best
    if "metric" in summary and "better" in summary:
        return str(summary["metric"]), str(summary["better"])
    measured = {key for row in rows for key in row}
    return ("loss", "min") if "test_loss" in measured and "test_accuracy" not in measured else ("accuracy", "max")


def _work(config: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """Collect the values of SAME_WORK that matter in the run's mode."""
    if not config:
        return {}
    work = {key: _value(config, key) for key in SAME_WORK}
    if config.get("mode") == "gradient":
        work["ranks"] = rows[-1].get("ranks")  # batch_size is that of a rank
    else:
        del work["ranks"], work["eval_every"]  # a round is the same work wherever it runs and is evaluated
    return work
