"""A plain grid of runs, one after another: the same search for every method, and one table of what came of it.

    runs/my_sweep/results.csv                            a row for each run
                  accuracy_against_bytes.png
                  clients.lr=0.1,seed=0/                 an ordinary run directory for each run, with its output
                  clients.lr=0.1,seed=0.log              beside it
                  tuning/clients.lr=0.1,seed=0/          runs that only chose the value of a tuned key

Each run is a process of its own. The same command continues an interrupted sweep: finished runs are not repeated.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from flare_dist.config.config import Config, as_dict, differing_keys, to_yaml, with_arguments
from flare_dist.records import rundir
from flare_dist.records.files import write_text
from flare_dist.rounds.diverged import DIVERGED
from flare_dist.studies.sweep_results import best_of, describe, write_csv
from flare_dist.tasks.task import goodness

log = logging.getLogger(__name__)

RESULTS = "results.csv"
PLOT = "accuracy_against_bytes.png"
BASE = "base.yaml"
TUNING = "tuning"
LONGEST_NAME = 200  # characters of a run directory's name; file systems end at 255
TUNING_VALIDATION = 0.1  # held out while a key is tuned, where the configuration itself holds nothing out
BYTES = ("uplink_bytes", "buffer_bytes", "downlink_bytes")
MEASURED = ("validation_accuracy", "test_accuracy", "test_loss", *BYTES, "seconds")  # of every run

Values = dict[str, str]  # dotted key -> value as on the command line


@dataclass(frozen=True)
class Run:
    """One run of a sweep."""

    values: Values
    seed: int
    tuning: bool  # whether it only chooses the value of a tuned key

    def directory(self, sweep: Path) -> Path:
        name = ",".join(f"{key}={value}" for key, value in {**self.values, "seed": str(self.seed)}.items())
        name = quote(name, safe="=,:;+@[]{} '\"")
        if len(name) > LONGEST_NAME:
            name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        return (sweep / TUNING if self.tuning else sweep) / name


@dataclass(frozen=True)
class Grid:
    """What a sweep tries: every combination of `grid`, each with the best value of the `tune` keys, with every seed."""

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
        return combinations(self.grid)


def combinations(keys: dict[str, list[str]]) -> list[Values]:
    """Every choice of one value for each key, the last key changing fastest."""
    return [dict(zip(keys, values)) for values in itertools.product(*keys.values())]


def parse_values(option: str, texts: Sequence[str]) -> dict[str, list[str]]:
    """["clients.lr=0.1,0.2"] -> {"clients.lr": ["0.1", "0.2"]}; values stay as written, lists are [1, 2]."""
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


def sweep(config: Config, grid: Grid, ranks: int) -> list[dict[str, Any]]:
    """Play all runs that are not finished yet; returns the rows of results.csv, in order.

    Raises ValueError where a run's configuration is not valid, before the first one starts, where the directory holds
    another sweep, or where a run cannot be started.
    """
    if ranks < 1:
        raise ValueError(f"--ranks: must be at least 1, got {ranks}")
    settings = check_settings(config, grid)
    directory = Path(config.output_dir)
    rundir.check_writable("output_dir", directory)
    with rundir.claim(directory):
        write_text(directory / BASE, to_yaml(config))
        return _play_all(config, grid, ranks, settings)


def check_settings(config: Config, grid: Grid) -> int:
    """How many settings may be tried; ValueError where one is not valid or the directory holds another sweep."""
    if config.clients.state_dir is not None:
        raise ValueError("clients.state_dir: belongs to one run, and these are several")
    directory = Path(config.output_dir)
    everything = [{**point, **choice} for point in grid.points() for choice in combinations(grid.tune)]
    for values in everything:
        with_arguments(config, _arguments(values))
    base = directory / BASE
    saved = _read_base(base) if base.exists() else as_dict(config)
    changed = list(differing_keys(saved, as_dict(config)))
    if changed:
        raise ValueError(
            f"output_dir: {directory} holds a sweep of another configuration (different: {', '.join(changed)}); choose "
            "another output_dir"
        )
    return len(everything)


def _read_base(path: Path) -> dict[str, Any]:
    """The configuration of the sweep that a directory holds."""
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"output_dir: {path} is not the configuration of a sweep: {reason}") from error


def _play_all(config: Config, grid: Grid, ranks: int, settings: int) -> list[dict[str, Any]]:
    """The runs in order, and results.csv after each of them; `settings` are all that may be tried."""
    directory = Path(config.output_dir)
    count = len(grid.points()) * len(grid.seeds) + (settings if grid.tune else 0)
    rows: list[dict[str, Any]] = []
    started = time.monotonic()

    def play(run: Run) -> dict[str, Any]:
        row = _play(run, config, directory, ranks)
        rows.append(row)
        write_csv(directory / RESULTS, rows)
        eta = (count - len(rows)) * (time.monotonic() - started) / len(rows)
        log.info("%d/%d  %s  ETA %.0f s", len(rows), count, describe(row), eta)
        return row

    for point in grid.points():
        tried = [play(Run({**point, **choice}, grid.seeds[0], tuning=True)) for choice in _choices(grid)]
        chosen = _best(tried, grid.tune)
        if chosen is None:
            log.warning("%s: every value of %s diverged", point or "the configuration", ", ".join(grid.tune))
            continue
        for seed in grid.seeds:
            play(Run({**point, **chosen}, seed, tuning=False))
    return rows


def _choices(grid: Grid) -> list[Values]:
    return combinations(grid.tune) if grid.tune else []


def _best(tried: list[dict[str, Any]], tune: dict[str, list[str]]) -> Values | None:
    """The values of the tuned keys that are best on the validation set, the first of equals; none to choose: {}."""
    if not tune:
        return {}
    finished = [row for row in tried if row["status"] == "finished"]
    if not finished:
        return None
    metric, direction = best_of(finished)
    key_metric = f"validation_{metric}"
    best = max(finished, key=lambda row: goodness((metric, direction), row[key_metric]))
    for key, values in tune.items():
        if best[key] in _ends(values):
            log.warning("%s = %s is at the edge of what was tried: a better value may lie beyond it", key, best[key])
    for row in finished:
        log.info(
            "%s %s: validation %s %.4f",
            "chosen:" if row is best else "  not:",
            ", ".join(f"{key} = {row[key]}" for key in tune),
            metric,
            row[key_metric],
        )
    return {key: best[key] for key in tune}


def _ends(values: list[str]) -> list[str]:
    """The smallest and the largest of several numbers, as written; nothing where they are no numbers."""
    try:
        ordered = sorted(values, key=float)
    except ValueError:
        return []
    return [ordered[0], ordered[-1]] if len(ordered) > 1 else []


def _arguments(values: Values) -> list[str]:
    return [argument for key, value in values.items() for argument in (f"--{key}", value)]


def _play(run: Run, config: Config, sweep_directory: Path, ranks: int) -> dict[str, Any]:
    """One run in a process of its own, if it is not finished; its row of results."""
    directory = run.directory(sweep_directory)
    values = {**run.values, "seed": str(run.seed), "output_dir": str(directory)}
    if run.tuning and not config.data.validation:
        values["data.validation"] = str(TUNING_VALIDATION)
    launcher = [sys.executable, "-m"]
    if ranks > 1:
        launcher += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), "-m"]
    command = [*launcher, "flare_dist", "train", "--config", str(sweep_directory / BASE), *_arguments(values)]
    directory.parent.mkdir(parents=True, exist_ok=True)
    output = directory.parent / f"{directory.name}.log"
    summary = rundir.read_summary(directory)
    if summary is None and not _diverged(output):
        status = _run(command, output)
        summary = rundir.read_summary(directory)
        if summary is None and not _diverged(output):
            lines = [line for line in output.read_text().splitlines() if line.strip()] or ["(nothing)"]
            found = next((line for line in lines if line.startswith("error: ")), lines[-1])
            raise ValueError(f"{directory.name}: the run ended with status {status}: {found} (all of it: {output})")
    row: dict[str, Any] = {**run.values, "seed": run.seed, "purpose": "tuning" if run.tuning else "result"}
    row["status"] = "diverged" if summary is None else "finished"
    row |= {key: (summary or {}).get(key) for key in MEASURED}
    metric = (summary or {}).get("metric", "accuracy")
    if summary and metric != "accuracy":
        row |= {key: summary.get(key) for key in (f"validation_{metric}", f"test_{metric}", "metric", "better")}
    return row | {"directory": str(directory)}


def _run(command: list[str], output: Path) -> int:
    """The exit status of a command whose output goes into a file; this process takes it along if it can."""
    with output.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise


def _diverged(output: Path) -> bool:
    """Whether a run's output has the error of one that no client's update could save."""
    lines = output.read_text().splitlines() if output.exists() else []
    return any(line.startswith(f"error: {DIVERGED}") for line in lines)
