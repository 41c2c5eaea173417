"""Turn the scalars of event files into rows of rounds: every logged byte counts, and each second once.

A directory may hold several files: of a run that was killed and continued, of several runs, of processes that ran side
by side. Files whose bytes were sent at overlapping times form one session. Other files are sessions one after another,
and the time between two sessions belongs to no round. In a session the values of one step are a row. If a step comes
again, as after a return to a checkpoint, it is another row. Bytes that several files of a session log for one step are
added up.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from flare_dist.analysis.events import EventFile, Scalar

Row = dict[str, Any]  # of one round, by the keys of metrics.jsonl
STATES = ("clients", "ranks")  # hold until another value is logged


@dataclass
class Step:
    """Hold a row, the time at which its first value was written and the time of its first bytes."""

    row: Row
    time: float
    sent: float | None = None
    shared: bool = False  # several files have bytes of it


def rows_of(
    directory: Path, files: Sequence[EventFile], keys: Mapping[str, Sequence[str]]
) -> tuple[list[Row], list[str]]:
    """Make rows of all files, in the order in which they were written; `keys` lists the keys of each tag.

    Returns the rows, and notes for the reader on values that were left out, repeated or not timed.
    """
    known = [EventFile(f.path, [s for s in f.scalars if s.tag in keys and _is_usable(s, keys)], None) for f in files]
    left_out = sum(not _is_usable(s, keys) for f in files for s in f.scalars if s.tag in keys)
    notes = [f"{directory}: values that are not finite are left out: {left_out}"] if left_out else []
    sessions = [_steps(session, keys) for session in _sessions([file for file in known if file.scalars], keys)]
    notes += _time_rounds(directory, sessions)
    for steps in sessions:
        _fold_seconds(steps)
    rows = [step.row for steps in sessions for step in steps]
    _fill(rows)
    return rows, notes + _repeats(directory, sessions)


def _is_usable(scalar: Scalar, keys: Mapping[str, Sequence[str]]) -> bool:
    """Tell whether a value counts: bytes, seconds and the like must be finite; a metric or a loss need not be."""
    measured = ("test_", "validation_", "train_", "server_")
    return math.isfinite(scalar.value) or all(key.startswith(measured) for key in keys[scalar.tag])


def _sessions(files: Sequence[EventFile], keys: Mapping[str, Sequence[str]]) -> list[list[EventFile]]:
    """Group the files whose bytes were sent at overlapping times, in the order of time.

    Values of files without bytes go one by one to the session that was going on, or to the last one before.
    """
    times = {file.path: [s.time for s in file.scalars if _is_of_bytes(s, keys)] for file in files}
    senders = sorted(
        (f for f in files if times[f.path]), key=lambda f: (min(times[f.path]), max(times[f.path]), f.path)
    )
    sessions: list[list[EventFile]] = []
    begun: list[float] = []
    until = -math.inf
    for file in senders:
        if min(times[file.path]) >= until:
            sessions.append([])
            begun.append(min(times[file.path]))
        sessions[-1].append(file)
        until = max(until, *times[file.path])
    if not sessions:
        return [list(files)]
    for file in files:
        if not times[file.path]:
            places = [max(0, bisect_right(begun, scalar.time) - 1) for scalar in file.scalars]
            for place in sorted(set(places)):
                there = [scalar for scalar, its in zip(file.scalars, places) if its == place]
                sessions[place].append(EventFile(file.path, there, None))
    return sessions


def _is_of_bytes(scalar: Scalar, keys: Mapping[str, Sequence[str]]) -> bool:
    return any(key.endswith("_bytes") for key in keys[scalar.tag])


def _steps(session: Sequence[EventFile], keys: Mapping[str, Sequence[str]]) -> list[Step]:
    """Collect the values of one session by step; a key that a file logs again for a step begins another pass of it."""
    steps: dict[tuple[int, int], Step] = {}
    for file in session:
        times = 0
        seen: set[tuple[str, int]] = set()
        for scalar in file.scalars:
            for key in keys[scalar.tag]:
                if (key, scalar.step) in seen:
                    times += 1
                    seen.clear()
                seen.add((key, scalar.step))
                step = steps.setdefault((times, scalar.step), Step({"round": scalar.step}, scalar.time))
                _put(step, key, scalar)
    ordered = sorted(steps.items(), key=lambda item: (item[1].time, item[0]))
    return [step for _, step in ordered]


def _put(step: Step, key: str, scalar: Scalar) -> None:
    """Enter one value; if two files of a session have it, bytes add up, the longer time counts, or the last value."""
    value = scalar.value
    if key in step.row and key.endswith("_bytes"):
        value += step.row[key]
        step.shared = True
    if key in step.row and key.endswith("_seconds"):
        value = max(value, step.row[key])
    step.row[key] = value
    step.time = min(step.time, scalar.time)  # an evaluation may be written later
    step.row["time"] = step.time
    if key.endswith("_bytes"):
        step.sent = scalar.time if step.sent is None else min(step.sent, scalar.time)


def _time_rounds(directory: Path, sessions: Sequence[Sequence[Step]]) -> list[str]:
    """Time rounds by the gaps between bytes if no seconds are logged; returns a note on rounds without a gap.

    The beginning of a session's first round is not logged: it is taken to be as long as the second one.
    """
    untimed = [[s for s in steps if s.sent is not None] for steps in sessions if not _has(steps, "round_seconds")]
    everything = []
    for sent in untimed:
        gaps = [max(0.0, (after.sent or 0.0) - (before.sent or 0.0)) for before, after in pairwise(sent)]
        everything += gaps
        for step, seconds in zip(sent, gaps[:1] + gaps):
            step.row["round_seconds"] = seconds
    alone = [sent[0] for sent in untimed if len(sent) == 1]
    for step in alone if everything else ():
        step.row["round_seconds"] = median(everything)
    if alone and not everything:
        return [f"{directory}: rounds that stand alone in their file do not tell how long they took: {len(alone)}"]
    return []


def _fold_seconds(steps: Sequence[Step]) -> None:
    """Add seconds that were logged between rows with bytes to the next such row, or to the last one."""
    sent = [step.row for step in steps if step.sent is not None]
    keys = {key for step in steps for key in step.row if key.endswith("_seconds") and key != "elapsed_seconds"}
    if not sent:
        return
    for row in sent if "round_seconds" in keys else ():
        row.setdefault("round_seconds", 0.0)
    following = iter(sent)
    target = next(following)
    for step in steps:
        if step.sent is not None:
            target = next(following, target)
            continue
        for key in keys & step.row.keys():
            target[key] = target.get(key, 0.0) + step.row.pop(key)


def _fill(rows: Sequence[Row]) -> None:
    """Give every round all kinds of bytes, and carry states on until they change, the first one also backwards."""
    sent = [row for row in rows if any(key.endswith("_bytes") for key in row)]
    for key in {key for row in sent for key in row if key.endswith("_bytes")}:
        for row in sent:
            row.setdefault(key, 0.0)
    for key in STATES:
        value = next((row[key] for row in rows if key in row), None)
        for row in rows if value is not None else ():
            value = row.setdefault(key, value)


def _has(steps: Sequence[Step], key: str) -> bool:
    return any(key in step.row for step in steps)


def _repeats(directory: Path, sessions: Sequence[Sequence[Step]]) -> list[str]:
    """Write notes on steps that several files logged at one time, and on steps that were logged again."""
    shared = sum(step.shared for steps in sessions for step in steps)
    notes = []
    if shared:
        notes.append(f"{directory}: several files log bytes of the same steps at one time: {shared}; they are added up")
    seen: set[int] = set()
    again: list[int] = []
    for step in (step for steps in sessions for step in steps if step.sent is not None):
        number = step.row["round"]
        again += [number] if number in seen else []
        seen.add(number)
    if again:
        which = f"step {again[0]} is" if len(set(again)) == 1 else f"steps {min(again)} to {max(again)} are"
        why = "after a return to a checkpoint, or by another run; each counts"
        notes.append(f"{directory}: {which} logged again, {len(again)} in all: {why}")
    return notes
