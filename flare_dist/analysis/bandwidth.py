"""What runs sent, how long it took and how good a model it bought.

Read from metrics.jsonl where there is one and from TensorBoard event files otherwise, also those of other trainers.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from flare_dist.analysis.event_rows import STATES, Row, rows_of
from flare_dist.analysis.events import read_event_file
from flare_dist.analysis.links import Link, adds_up_clients, project
from flare_dist.tasks.builtin import TASKS
from flare_dist.tasks.task import Best, goodness

log = logging.getLogger(__name__)

# What must agree for bytes and seconds of two runs to be those of the same work, by dotted key.
SAME_WORK = ("mode", "clients.batch_size", "engine.gradient_accumulation_steps", "eval_every", "ranks")
UP = ("uplink_bytes", "buffer_bytes")
MOST_TAGS = 20  # that an error lists


@dataclass(frozen=True)
class RunLog:
    """What one run logged."""

    name: str
    rows: list[Row]  # of the rounds in order, 0 being the initial model
    work: dict[str, Any] = field(default_factory=dict)  # of SAME_WORK what its configuration says; empty without one
    notes: list[str] = field(default_factory=list)  # what of its logs is damaged or was logged twice, in words
    best: Best = ("accuracy", "max")  # by which metric its task compares models


def read_run(directory: Path, tags: Mapping[str, str], ranks: int | None = None) -> RunLog:
    """Read the log in `directory`; `tags` are the TensorBoard tags of keys in logs of other trainers.

    What those log must be the bytes since the value before. `ranks` stands in where the log does not say how many
    there were. What is damaged is left out with a warning. Raises ValueError if there is no log, or nothing in it is
    known.
    """
    read = _read_metrics(directory) if (directory / "metrics.jsonl").exists() else _read_events(directory, tags)
    rows, notes = read
    if ranks is not None:
        for row in rows:
            row.setdefault("ranks", ranks)
    config = _config(directory)
    return RunLog(str(directory), rows, _work(config, rows), notes, _best(config))


def read_metrics(directory: Path) -> list[Row]:
    """Read the rows of metrics.jsonl; damaged lines are left out with a warning.

    A last line that is cut short is none: it belongs to a run that is still going on.
    """
    return _read_metrics(directory)[0]


def _read_metrics(directory: Path) -> tuple[list[Row], list[str]]:
    path = directory / "metrics.jsonl"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ValueError(f"bandwidth: {path} cannot be read: {error.strerror}") from error
    lines = text.split("\n")
    rows = [_row(line) for line in lines]
    damaged = [str(n) for n, (line, row) in enumerate(zip(lines[:-1], rows), 1) if line.strip() and row is None]
    readable = [row for row in rows if row is not None]
    if not readable:
        raise ValueError(f"bandwidth: {path} has no readable line")
    return readable, _warned([f"{path}: damaged lines are left out: {', '.join(damaged)}"] if damaged else [])


def _row(line: str) -> Row | None:
    """Decode a line of metrics.jsonl; None if it is no row whose numbers can be added up."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("round")) is not int or not _is_number(row["round"]):
        return None
    adds_up = (*STATES, "collectives", "steps", "time")
    amounts = [value for key, value in row.items() if key.endswith(("_bytes", "_seconds")) or key in adds_up]
    measured = [value for key, value in row.items() if key.endswith(("_accuracy", "_loss"))]
    lists = [row.get(key, []) for key in ("bucket_sent_after", "bucket_wire")]
    buckets_are_right = all(isinstance(values, list) and all(map(_is_number, values)) for values in lists)
    if not buckets_are_right or not all(map(_is_number, amounts)):
        return None
    return row if all(isinstance(value, (int, float)) for value in measured) else None


def _is_number(value: Any) -> bool:
    """Tell whether a value is a finite number that a float can hold."""
    try:
        return isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:
        return False


def _read_events(directory: Path, tags: Mapping[str, str]) -> tuple[list[Row], list[str]]:
    """Read the scalars of the event files in `directory`."""
    paths = sorted(path for path in directory.glob("*tfevents*") if not path.is_dir())
    if not paths:
        raise ValueError(f"bandwidth: {directory} holds neither metrics.jsonl nor TensorBoard event files")
    files = [read_event_file(path) for path in paths]
    notes = _warned([f"{file.path}: {file.lost}" for file in files if file.lost])
    there = list(dict.fromkeys(scalar.tag for file in files for scalar in file.scalars))
    keys = {tag: [key for key, name in tags.items() if name == tag] for tag in tags.values()}
    keys |= {tag: [own] for tag in there if tag not in keys and (own := key_of(tag)) and own not in tags}
    missing = [tag for tag in dict.fromkeys(tags.values()) if tag not in there]
    if missing or not keys:
        listed = [tag if tag.isprintable() else ascii(tag) for tag in there[:MOST_TAGS]]
        listed += [f"and {len(there) - MOST_TAGS} more"] if there[MOST_TAGS:] else []
        found = ", ".join(listed) or "none"
        raise ValueError(
            f"bandwidth: {directory} has no tag {', '.join(missing) or 'that is known'} (its tags: {found})"
        )
    rows, more = rows_of(directory, files, keys)
    if not rows:
        raise ValueError(f"bandwidth: {directory} has no finite value of the tags {', '.join(keys)}")
    return rows, notes + _warned(more)


def _warned(notes: list[str]) -> list[str]:
    """Log each note, and hand them on for the report."""
    for note in notes:
        log.warning("%s", note)
    return notes


def key_of(tag: str) -> str | None:
    """The key of metrics.jsonl that a TensorBoard tag of ours stands for."""
    group, _, name = tag.partition("/")
    if group in ("accuracy", "loss", "bytes", "seconds"):
        return f"{name}_{group}"
    return name if group in ("clients", "ranks", "masks") else None


def parse_tags(texts: Sequence[str]) -> dict[str, str]:
    """["uplink_bytes=comm/up"] -> {"uplink_bytes": "comm/up"}."""
    parsed: dict[str, str] = {}
    for text in texts:
        key, _, tag = text.partition("=")
        if not key or not tag:
            raise ValueError(f"--tag: expected KEY=TAG, got {text!r}")
        if key in parsed:
            raise ValueError(f"--tag: {key} has two tags, {parsed[key]} and {tag}; name one")
        parsed[key] = tag
    return parsed


def _config(directory: Path) -> dict[str, Any]:
    """The configuration of the run in `directory`; empty if there is none, as in logs of other trainers."""
    try:
        config = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def _value(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; None if it is not there."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _best(config: Mapping[str, Any]) -> Best:
    """By which metric the task of a run compares models; accuracy if the configuration names no task."""
    name = _value(config, "task.name")
    return TASKS[name].best if isinstance(name, str) and name in TASKS else ("accuracy", "max")


def _work(config: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    if not config:
        return {}
    work = {key: _value(config, key) for key in SAME_WORK}
    if config.get("mode") == "gradient":
        work["ranks"] = rows[-1].get("ranks")  # batch_size is that of a rank
    else:
        del work["ranks"], work["eval_every"]  # a round is the same work wherever it runs and is evaluated
    return work


def check_same_work(runs: Sequence[RunLog]) -> str | None:
    """What makes the runs' bytes and seconds incomparable, in words, or None."""
    for key in SAME_WORK:
        values = {run.name: run.work[key] for run in runs if key in run.work}
        if len({repr(value) for value in values.values()}) > 1:
            return f"the runs differ in {key} ({', '.join(f'{name}: {value}' for name, value in values.items())})"
    unknown = [run.name for run in runs if not run.work]
    if unknown and len(runs) > 1:
        return f"{', '.join(unknown)} has no config.yaml that tells batch size and accumulation"
    return None


@dataclass(frozen=True)
class Totals:
    """What one run comes to; sums over its rounds."""

    name: str
    rounds: int
    amounts: dict[str, float]  # by key of metrics.jsonl: bytes and seconds
    projected: dict[str, float]  # by link: seconds of all rounds
    metric: str  # of the task, "accuracy" of most
    value: float | None  # of it, in the last evaluation
    target: dict[str, float] | None  # when the target was reached: round, bytes, seconds and seconds by link

    @property
    def compression(self) -> float | None:
        """Bytes of a dense uplink over those sent; the model's buffers travel with either."""
        dense = self.amounts.get("dense_bytes")
        return (dense + self.amounts.get("buffer_bytes", 0)) / self.bytes_up if dense and self.bytes_up else None

    @property
    def bytes_up(self) -> float | None:
        """All that clients sent, buffers included; None if it was not logged."""
        return bytes_up([self.amounts]) if self.amounts.keys() & UP else None

    @property
    def communicating(self) -> float | None:
        """The share of the measured time that was spent communicating."""
        seconds = self.amounts.get("round_seconds")
        return (
            self.amounts["communication_seconds"] / seconds
            if seconds and "communication_seconds" in self.amounts
            else None
        )


def totals(run: RunLog, links: Sequence[Link], topology: str, target: float | None) -> Totals:
    """Sums, projections and when the `target` of the task's best metric was reached."""
    rounds = [row for row in run.rows if _has_bytes(row)]
    played = sum("stage_one" not in row for row in rounds)  # what comes before the rounds costs, and is none
    keys = dict.fromkeys(key for row in run.rows for key in row if key.endswith(("_bytes", "_seconds")))
    amounts = {key: sum(row.get(key, 0.0) for row in run.rows) for key in keys if key != "elapsed_seconds"}
    by_link = {link.text: [_project(run, row, link, topology) for row in run.rows] for link in links}
    metric, _ = run.best
    key = f"test_{metric}"
    evaluated = [(n, row[key]) for n, row in enumerate(run.rows, 1) if key in row]
    reached = None
    least = math.inf if target is None else goodness(run.best, target)
    place = next((n for n, value in evaluated if goodness(run.best, value) >= least), 0)
    if place:
        until = run.rows[:place]
        reached = {"round": float(until[-1]["round"]), "bytes_up": bytes_up(until)}
        reached |= {key: sum(row.get(key, 0.0) for row in until) for key in ("downlink_bytes", "round_seconds")}
        reached |= {link: sum(seconds[:place]) for link, seconds in by_link.items()}
    projected = {link: sum(seconds) for link, seconds in by_link.items()}
    last = evaluated[-1][1] if evaluated else None
    return Totals(run.name, played, amounts, projected, metric, last, reached)


def _project(run: RunLog, row: Row, link: Link, topology: str) -> float:
    """Seconds of a round on a link; none for an evaluation beside the rounds."""
    try:
        return project(row, link, topology) if _has_bytes(row) else 0.0
    except ValueError as error:
        raise ValueError(f"bandwidth: {run.name}: {error}") from error


def _has_bytes(row: Row) -> bool:
    return any(key.endswith("_bytes") for key in row)


def bytes_up(rows: Sequence[Mapping[str, Any]]) -> float:
    """Add up what clients sent in these rounds: payloads, and the model's buffers, which travel with them."""
    return sum(row.get(key, 0) for row in rows for key in UP)


def unknown_slowest(run: RunLog) -> str | None:
    """Say of how many rounds a star cannot know how long the slowest client took, or None."""
    count = sum(adds_up_clients(row) for row in run.rows if _has_bytes(row))
    why = "older logs and clients trained as one batch lack them"
    added = "the star adds up the clients that a process trained in turn"
    return f"{run.name}: rounds without slowest_client_seconds: {count} ({why}); {added}" if count else None


def metric_against_bytes(run: RunLog) -> list[tuple[float, float]]:
    """(bytes sent up so far, the task's best metric on the test set) of each evaluation after something was sent."""
    sent = itertools.accumulate(bytes_up([row]) for row in run.rows)
    key = f"test_{run.best[0]}"
    return [(x, row[key]) for x, row in zip(sent, run.rows) if x and key in row]
