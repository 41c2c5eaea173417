"""Read the rows of a directory of TensorBoard event files, whose tags stand for keys of metrics.jsonl."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from flare_dist.analysis.event_rows import Row, rows_of
from flare_dist.analysis.events import read_event_file

log = logging.getLogger(__name__)

MOST_TAGS = 20  # listed in an error


def parse_tags(texts: Sequence[str]) -> dict[str, str]:
    """Parse the values of --tag: ["uplink_bytes=comm/up"] -> {"uplink_bytes": "comm/up"}."""
    parsed: dict[str, str] = {}
    for text in texts:
        key, _, tag = text.partition("=")
        if not key or not tag:
            raise ValueError(f"--tag: expected KEY=TAG, got {text!r}")
        if key in parsed:
            raise ValueError(f"--tag: {key} has two tags, {parsed[key]} and {tag}; name one")
        parsed[key] = tag
    return parsed


PARTS = ("test", "validation", "server_test", "server_validation")  # on which metrics are measured
NAMED_BY_KEY = ("clients", "ranks", "masks")  # groups whose tags end in the key


def key_of(tag: str) -> str | None:
    """Find the key of metrics.jsonl that is logged under one of our tags; None for any other tag."""
    group, _, name = tag.partition("/")
    if group in ("accuracy", "loss", "bytes", "seconds") or name in PARTS:
        return f"{name}_{group}"
    return name if group in NAMED_BY_KEY else None


def read_events(directory: Path, tags: Mapping[str, str]) -> tuple[list[Row], list[str]]:
    """Read the scalars of the event files in `directory`; `tags` gives the tag of a key that is not one of ours.

    Returns the rows with what is damaged or was logged twice, in words, which is logged as warnings too. Raises
    ValueError if there are no event files, if a tag is missing or if no value is finite.
    """
    paths = sorted(path for path in directory.glob("*tfevents*") if not path.is_dir())
    if not paths:
        raise ValueError(f"bandwidth: {directory} holds neither metrics.jsonl nor TensorBoard event files")
    files = [read_event_file(path) for path in paths]
    notes = _warned([f"{file.path}: {file.lost}" for file in files if file.lost])
    present = list(dict.fromkeys(scalar.tag for file in files for scalar in file.scalars))
    keys = _keys_of_tags(directory, present, tags)
    rows, more = rows_of(directory, files, keys)
    if not rows:
        raise ValueError(f"bandwidth: {directory} has no finite value of the tags {', '.join(keys)}")
    return rows, notes + _warned(more)


def _keys_of_tags(directory: Path, present: Sequence[str], tags: Mapping[str, str]) -> dict[str, list[str]]:
    """List the keys that each tag stands for; a tag that was named replaces ours for the same key."""
    keys = {tag: [key for key, name in tags.items() if name == tag] for tag in tags.values()}
    keys |= {tag: [own] for tag in present if tag not in keys and (own := key_of(tag)) and own not in tags}
    missing = [tag for tag in dict.fromkeys(tags.values()) if tag not in present]
    if missing or not keys:
        listed = [tag if tag.isprintable() else ascii(tag) for tag in present[:MOST_TAGS]]
        listed += [f"and {len(present) - MOST_TAGS} more"] if present[MOST_TAGS:] else []
        found = ", ".join(listed) or "none"
        problem = ", ".join(missing) or "that is known"
        raise ValueError(f"bandwidth: {directory} has no tag {problem} (its tags: {found})")
    return keys


def _warned(notes: list[str]) -> list[str]:
    """Log each note as a warning, and return them for the report."""
    for note in notes:
        log.warning("%s", note)
    return notes
