"""Train a plain grid of runs, one after another: the same search for every method, and one table of the results.

    runs/my_sweep/results.csv                            a row for each run
                  means.csv                            a row for each setting, over its seeds
                  accuracy_against_uplink.png          or another metric, against what --x names
                  clients.lr=0.1,seed=0/                 an ordinary run directory for each run, with its output
                  clients.lr=0.1,seed=0.log              beside it
                  tuning/clients.lr=0.1,seed=0/          runs that only choose the value of a tuned key

Each run is a process of its own. The same command continues an interrupted sweep: finished runs are not repeated.
"""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml

from flare_dist.config.config import Config
from flare_dist.config.load import with_arguments
from flare_dist.config.saved import as_dict, differing_keys, to_yaml
from flare_dist.errors import check_least
from flare_dist.progress import Steps
from flare_dist.records import rundir
from flare_dist.records.files import write_text
from flare_dist.records.resume import FREE_KEYS
from flare_dist.records.summary import bytes_up
from flare_dist.studies.grid import Grid, Run, arguments
from flare_dist.studies.sweep_results import describe, write_csv
from flare_dist.studies.sweep_run import BASE, play
from flare_dist.studies.tuning import choose

log = logging.getLogger(__name__)

RESULTS = "results.csv"


def sweep(config: Config, grid: Grid, ranks: int, shown: Steps | None = None) -> list[dict[str, Any]]:
    """Train all runs that are not finished yet; returns the rows of results.csv, in order.

    Each of them is a step of `shown`, or of a bar of its own.

    Before the first run starts, raises ValueError if the configuration of a run is not valid or if the directory holds
    another sweep; later, if a run cannot be started.
    """
    check_least("--ranks", ranks, 1)
    check_settings(config, grid)
    directory = Path(config.output_dir)
    rundir.check_writable("output_dir", directory)
    with rundir.claim(directory):
        write_text(directory / BASE, to_yaml(config))
        own = Steps("runs", grid.num_runs, at_once=True, has_lines=False) if shown is None else nullcontext(shown)
        with own as bar:
            return _play_all(config, grid, ranks, bar)


def check_settings(config: Config, grid: Grid) -> None:
    """Raise ValueError if a setting of the grid is not valid or if the directory holds another sweep."""
    if config.clients.state_dir is not None:
        raise ValueError("clients.state_dir: belongs to one run, and these are several")
    for values in grid.settings():
        with_arguments(config, arguments(values))
    directory = Path(config.output_dir)
    base = directory / BASE
    saved = _read_base(base) if base.exists() else as_dict(config)
    changed = [key for key in differing_keys(saved, as_dict(config)) if key not in FREE_KEYS]
    if changed:
        raise ValueError(
            f"output_dir: {directory} holds a sweep of another configuration (different: {', '.join(changed)}); choose "
            "another output_dir"
        )


def _read_base(path: Path) -> dict[str, Any]:
    """Read the configuration of the sweep that a directory holds."""
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"output_dir: {path} is not the configuration of a sweep: {reason}") from error


def _play_all(config: Config, grid: Grid, ranks: int, shown: Steps) -> list[dict[str, Any]]:
    """Train the runs in order, and write results.csv after each of them."""
    directory = Path(config.output_dir)
    rows: list[dict[str, Any]] = []
    started = time.monotonic()

    def play_next(run: Run) -> dict[str, Any]:
        row = play(run, config, directory, ranks)
        rows.append(row)
        write_csv(directory / RESULTS, rows)
        shown.advance(1, bytes_up(row) if row["status"] == "finished" else 0)
        eta = (grid.num_runs - len(rows)) * (time.monotonic() - started) / len(rows)
        log.info("%d/%d  %s  ETA %.0f s", len(rows), grid.num_runs, describe(row), eta)
        return row

    for point in grid.points():
        tried = [play_next(Run({**point, **choice}, grid.seeds[0], tuning=True)) for choice in grid.choices()]
        chosen = choose(tried, grid.tune)
        if chosen is None:
            log.warning("%s: every value of %s diverged", point or "the configuration", ", ".join(grid.tune))
            continue
        for seed in grid.seeds:
            play_next(Run({**point, **chosen}, seed, tuning=False))
    return rows
