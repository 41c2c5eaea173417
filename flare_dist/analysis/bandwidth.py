"""What runs sent, how long it took and what accuracy it bought.

Read from metrics.jsonl where there is one and from TensorBoard event files otherwise, also those of other trainers.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from flare_dist.analysis.links import Link, project

Row = dict[str, Any]  # of one round, by the keys of metrics.jsonl

# What must agree for bytes and seconds of two runs to be those of the same work, by dotted key.
SAME_WORK = ("mode", "clients.batch_size", "engine.gradient_accumulation_steps", "eval_every", "ranks")


@dataclass(frozen=True)
class RunLog:
    """What one run logged."""

    name: str
    rows: list[Row]  # of the rounds in order, 0 being the initial model
    work: dict[str, Any] = field(default_factory=dict)  # of SAME_WORK what its configuration says; empty without one


def read_run(directory: Path, tags: Mapping[str, str], ranks: int | None = None) -> RunLog:
    """The log in `directory`; `tags` are the TensorBoard tags of keys in logs of other trainers.

    What those log must be the bytes since the value before. `ranks` stands in where the log does not say how many
    there were. Raises ValueError where there is no log, or nothing in it is known.
    """
    rows = read_metrics(directory) if (directory / "metrics.jsonl").exists() else read_events(directory, tags)
    for row in rows:
        if ranks is not None:
            row.setdefault("ranks", ranks)
    return RunLog(str(directory), rows, _work(directory, rows))


def read_metrics(directory: Path) -> list[Row]:
    """The rows of metrics.jsonl; a last line that is cut short belongs to a run that is still going on."""
    rows = []
    for line in (directory / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            row = dict(json.loads(line))
            rows.append(row | {"round": int(row["round"])})
    if not rows:
        raise ValueError(f"bandwidth: {directory / 'metrics.jsonl'} has no readable line")
    return rows


def read_events(directory: Path, tags: Mapping[str, str]) -> list[Row]:
    """The scalars of the event files in `directory`, a row for each step."""
    if not any(directory.glob("*tfevents*")):
        raise ValueError(f"bandwidth: {directory} holds neither metrics.jsonl nor TensorBoard event files")
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    there = [*events.Tags()["scalars"], *events.Tags()["tensors"]]
    known = {tag: key_of(tag) for tag in there} | {tag: key for key, tag in tags.items()}
    missing = [tag for tag in tags.values() if tag not in there]
    if missing or not any(known.values()):
        found = ", ".join(there) or "none"
        raise ValueError(
            f"bandwidth: {directory} has no tag {', '.join(missing) or 'that is known'} (its tags: {found})"
        )
    rows: dict[int, Row] = {}
    for tag, key in known.items():
        for step, wall_time, value in _values(events, tag) if key else []:
            row = rows.setdefault(step, {"round": step, "time": wall_time})
            row[str(key)] = value
            row["time"] = min(row["time"], wall_time)  # an evaluation may be written later
    ordered = [rows[step] for step in sorted(rows)]
    if not any("round_seconds" in row for row in ordered):  # a trainer that does not log how long its steps took
        for before, row in itertools.pairwise(ordered):
            row["round_seconds"] = row["time"] - before["time"]
        if len(ordered) > 1:  # the first one's beginning is not logged
            ordered[0]["round_seconds"] = ordered[1]["round_seconds"]
    return ordered


def _values(events: EventAccumulator, tag: str) -> Iterator[tuple[int, float, float]]:
    """(step, wall time, value) of a tag, as PyTorch's SummaryWriter writes it in its old or in its new style."""
    if tag in events.Tags()["scalars"]:
        yield from ((event.step, event.wall_time, event.value) for event in events.Scalars(tag))
        return
    for event in events.Tensors(tag):
        values = tensor_util.make_ndarray(event.tensor_proto)
        if values.size == 1:
            yield event.step, event.wall_time, float(values.item())


def key_of(tag: str) -> str | None:
    """The key of metrics.jsonl that a TensorBoard tag of ours stands for."""
    group, _, name = tag.partition("/")
    if group in ("accuracy", "loss", "bytes", "seconds"):
        return f"{name}_{group}"
    return name if group in ("clients", "ranks", "masks") else None


def parse_tags(texts: Sequence[str]) -> dict[str, str]:
    """["uplink_bytes=comm/up"] -> {"uplink_bytes": "comm/up"}."""
    parsed = dict(text.partition("=")[::2] for text in texts)
    wrong = [text for text in texts if "=" not in text or text.startswith("=") or text.endswith("=")]
    if wrong:
        raise ValueError(f"--tag: expected KEY=TAG, got {wrong[0]!r}")
    return parsed


def _work(directory: Path, rows: Sequence[Row]) -> dict[str, Any]:
    try:
        config = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        config = None
    if not isinstance(config, dict):
        return {}
    work = {}
    for key in SAME_WORK:
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        work[key] = value
    if config.get("mode") == "gradient":
        work["ranks"] = rows[-1].get("ranks")  # batch_size is that of a rank
    else:
        del work["ranks"], work["eval_every"]  # a round is the same work wherever it runs and is evaluated
    return work


def check_same_work(runs: Sequence[RunLog]) -> str | None:
    """What makes the runs' bytes and seconds incomparable, in words, or None."""
    for key in SAME_WORK:
        values = {run.name: run.work[key] for run in runs if key in run.work}
        if len(set(values.values())) > 1:
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
    accuracy: float | None
    target: dict[str, float] | None  # when the target was reached: round, bytes, seconds and seconds by link

    @property
    def compression(self) -> float | None:
        """Bytes of a dense uplink over those sent."""
        sent = self.amounts.get("uplink_bytes")
        return self.amounts["dense_bytes"] / sent if sent and self.amounts.get("dense_bytes") else None

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
    """Sums, projections and when the `target` accuracy was reached."""
    rounds = [row for row in run.rows if any(key.endswith("_bytes") for key in row)]  # not our evaluation before them
    played = sum("stage_one" not in row for row in rounds)  # what comes before the rounds costs, and is none
    keys = dict.fromkeys(key for row in rounds for key in row if key.endswith(("_bytes", "_seconds")))
    amounts = {key: sum(row.get(key, 0.0) for row in rounds) for key in keys if key != "elapsed_seconds"}
    by_link = {link.text: [project(row, link, topology) for row in rounds] for link in links}
    accuracies = [row["test_accuracy"] for row in run.rows if "test_accuracy" in row]
    reached = None
    if target is not None:
        place = next((n for n, row in enumerate(rounds, 1) if row.get("test_accuracy", -1.0) >= target), None)
        if place is not None:
            until = rounds[:place]
            reached = {"round": float(until[-1]["round"])}
            reached |= {key: sum(row.get(key, 0.0) for row in until) for key in ("uplink_bytes", "downlink_bytes")}
            reached["round_seconds"] = sum(row.get("round_seconds", 0.0) for row in until)
            reached |= {link: sum(seconds[:place]) for link, seconds in by_link.items()}
    projected = {link: sum(seconds) for link, seconds in by_link.items()}
    return Totals(run.name, played, amounts, projected, accuracies[-1] if accuracies else None, reached)


def accuracy_against_bytes(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """(bytes sent up so far, test accuracy) of each evaluation after something was sent."""
    sent = itertools.accumulate(row.get("uplink_bytes", 0) for row in rows)
    return [(x, row["test_accuracy"]) for x, row in zip(sent, rows) if x and "test_accuracy" in row]
