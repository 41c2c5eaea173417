"""Describe a grid of runs: the values of each key, the runs that they make and the directory of each run."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import yaml

TUNING = "tuning"  # the folder of runs that only choose the value of a tuned key
LONGEST_NAME = 200  # characters of a run directory's name; file systems end at 255

Values = dict[str, str]  # dotted key -> value as on the command line


@dataclass(frozen=True)
class Run:
    """Describe one run of a sweep."""

    values: Values
    seed: int
    tuning: bool  # whether it only chooses the value of a tuned key

    def directory(self, sweep: Path) -> Path:
        """Name the run's directory after its values, shortened by a digest if the name would be too long."""
        name = ",".join(f"{key}={value}" for key, value in {**self.values, "seed": str(self.seed)}.items())
        name = quote(name, safe="=,:;+@[]{} '\"")
        if len(name) > LONGEST_NAME:
            name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        return (sweep / TUNING if self.tuning else sweep) / name


@dataclass(frozen=True)
class Grid:
    """Describe what a sweep tries: every combination of `grid`, with the best values of the `tune` keys, on every seed.

    Raises ValueError if a key is in both, belongs to an option of its own, or if seeds are missing or repeated.
    """

    grid: dict[str, list[str]]
    tune: dict[str, list[str]]
    seeds: list[int]

    def __post_init__(self) -> None:
        twice = self.grid.keys() & self.tune.keys()
        if twice:
            raise ValueError(f"--tune: {', '.join(twice)} cannot be in --grid as well")
        reserved = {"seed": "--seeds", "output_dir": "--output_dir", "config": "--config"}
        reserved |= {"data.validation": "--data.validation"}  # tuning and results would differ in it
        for key in [*self.grid, *self.tune]:
            if key in reserved:
                option = "--grid" if key in self.grid else "--tune"
                raise ValueError(f"{option}: use {reserved[key]} for {key}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"--seeds: needs different whole numbers, got {self.seeds}")

    def points(self) -> list[Values]:
        """List every combination of the grid."""
        return combinations(self.grid)

    def choices(self) -> list[Values]:
        """List every combination of the tuned keys; none if there is nothing to tune."""
        return combinations(self.tune) if self.tune else []

    def settings(self) -> list[Values]:
        """List every setting that may be tried."""
        return [{**point, **choice} for point in self.points() for choice in combinations(self.tune)]

    @property
    def num_runs(self) -> int:
        """Count the runs of a sweep in which every tuned key finds a value."""
        tried = len(self.points()) * len(self.choices())
        return tried + len(self.points()) * len(self.seeds)


def combinations(keys: dict[str, list[str]]) -> list[Values]:
    """List every choice of one value for each key, the last key changing fastest."""
    return [dict(zip(keys, values)) for values in itertools.product(*keys.values())]


def parse_values(option: str, texts: Sequence[str]) -> dict[str, list[str]]:
    """Parse ["clients.lr=0.1,0.2"] into {"clients.lr": ["0.1", "0.2"]}; values stay as written, lists are [1, 2]."""
    parsed: dict[str, list[str]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        try:
            node = yaml.compose(f"[{values}]", yaml.BaseLoader)
        except yaml.YAMLError:
            node = None
        nodes = node.value if isinstance(node, yaml.SequenceNode) else []
        listed = [f"[{values}]"[node.start_mark.index : node.end_mark.index].strip() for node in nodes]
        if not equals or not key or not listed or not all(listed) or key in parsed or len(set(listed)) < len(listed):
            raise ValueError(f"{option}: expected each KEY=VALUE,VALUE,... once, got {text!r}")
        parsed[key] = listed
    return parsed


def arguments(values: Values) -> list[str]:
    """Write values as arguments of a command line."""
    return [argument for key, value in values.items() for argument in (f"--{key}", value)]
