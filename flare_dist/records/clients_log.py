"""clients.jsonl: a line for each client of each round, cut back on resume as metrics.jsonl is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from flare_dist.disk import explained
from flare_dist.json_lines import decoded, encoded
from flare_dist.records.files import replacing

CLIENTS = "clients.jsonl"


def cut_back(source: Path | None, directory: Path, up_to: int) -> None:
    """Begin a run's clients.jsonl with the rounds up to `up_to` of the run in `source`, line by line.

    A line that a kill cut short belongs to a round that is played again.
    """
    with replacing(directory / CLIENTS) as temporary, temporary.open("w", encoding="utf-8") as kept:
        kept.writelines(line for line in _lines(source) if _round_of(line) <= up_to)


def read_clients(directory: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's clients.jsonl that are whole, one for each client of each round."""
    return [row for line in _lines(directory) if (row := decoded(line)) is not None]


def _lines(source: Path | None) -> Iterator[str]:
    """Yield the lines of a log, if there is one."""
    path = None if source is None else source / CLIENTS
    if path is not None and path.exists():
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from (line for line in file if line.endswith("\n"))


def _round_of(line: str) -> float:
    """Read the round of a line; infinity if it cannot be read."""
    round_ = (decoded(line) or {}).get("round")
    return round_ if type(round_) is int else float("inf")


class ClientsLog:
    """Append the clients of each round; use as `Tracker` does, which opens it. Raises DiskError."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / CLIENTS
        with explained("output_dir", self._path):
            self._file = self._path.open("a", encoding="utf-8")

    def write(self, round_: int, participants: Iterable[dict[str, Any]]) -> None:
        """Append a line for each client of a round."""
        with explained("output_dir", self._path):
            self._file.writelines(encoded({"round": round_, **line}) + "\n" for line in participants)
            self._file.flush()

    def sync(self) -> None:
        """Put the lines on the disk."""
        with explained("output_dir", self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()
