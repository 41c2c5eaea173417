"""The commands that start many runs: sweep, compare."""

from __future__ import annotations

import logging
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from flare_dist.analysis.bandwidth import read_run
from flare_dist.analysis.plots import plot_accuracy_against_bytes
from flare_dist.cli.console import make_plot, wide_console
from flare_dist.cli.reports import add_projections, parse_projections, report
from flare_dist.comm.launch import Launch
from flare_dist.config.config import build_config, config_parser, with_arguments
from flare_dist.config.parser import ConfigParser
from flare_dist.engines.config import settle_device
from flare_dist.rounds.diverged import DivergedError
from flare_dist.studies.sweep import PLOT, RESULTS, Grid, check_settings, parse_values, sweep
from flare_dist.studies.sweep_results import by_point, results_table, write_csv
from flare_dist.studies.techniques import DIFFERENCES, PLAIN, USUAL, find_techniques
from flare_dist.tasks.config import AUTO, find_task

log = logging.getLogger(__name__)


def sweep_parser() -> ConfigParser:
    parser = config_parser(
        description="Train every combination of some settings, one after another; the same command continues."
    )
    group = parser.add_argument_group("What is tried")
    group.add_argument(
        "--grid", action="append", type=str, default=[], help="KEY=VALUE,VALUE,...: every combination is trained."
    )
    _add_repetitions(group, "combination of the grid", ranks=1)
    return parser


def _add_repetitions(group: Any, each: str, ranks: int) -> None:
    group.add_argument(
        "--tune",
        action="append",
        type=str,
        default=[],
        help=f"KEY=VALUE,VALUE,...: for each {each} the best value on the validation set is chosen with the first "
        "seed (a tenth is held out unless data.validation says otherwise), then all seeds are trained.",
    )
    group.add_argument("--seeds", type=str, default="0", help="Seeds, separated by commas.")
    group.add_argument("--ranks", type=int, default=ranks, help="Ranks of each run, on this node.")


def _begin(command: str, launch: Launch) -> None:
    """Refuse a launcher, and let SIGTERM end the run in progress as Ctrl-C does."""
    if launch.size > 1:
        raise ValueError(f"{command}: start it once, without a launcher; --ranks gives each run its ranks")
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _parse_grid(options: Any, grid: dict[str, list[str]]) -> Grid:
    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError:
        raise ValueError(f"--seeds: needs whole numbers separated by commas, got {options.seeds!r}") from None
    return Grid(grid, parse_values("--tune", options.tune), seeds)


def run_sweep(parser: ConfigParser, options: Any, launch: Launch, console: Console) -> None:
    _begin("sweep", launch)
    grid = _parse_grid(options, parse_values("--grid", options.grid))
    config = build_config(parser, options)
    rows = sweep(config, grid, options.ranks)
    keys, directory = [*grid.grid, *grid.tune], Path(config.output_dir)
    wide_console().print(results_table(rows, keys))
    print(f"results: {directory / RESULTS}")
    finished = {
        name: [read_run(Path(row["directory"]), {}) for row in runs if row["status"] == "finished"]
        for name, runs in by_point(rows, keys).items()
    }
    make_plot(directory / PLOT, partial(plot_accuracy_against_bytes, finished))


def compare_parser() -> ConfigParser:
    parser = config_parser(
        description="Train the same model with several ways of exchanging gradients, and set them side by side."
    )
    group = parser.add_argument_group("What is compared")
    group.add_argument(
        "--techniques",
        type=str,
        default=",".join(USUAL),
        help=f"Separated by commas, the first being what the others are compared with: {', '.join(DIFFERENCES)}. They "
        "differ in the exchange alone; the density of topk is compression.density.",
    )
    _add_repetitions(group, "technique", ranks=2)
    add_projections(group)
    return parser


def run_compare(parser: ConfigParser, options: Any, launch: Launch, console: Console) -> None:
    _begin("compare", launch)
    grid = _parse_grid(options, {})
    config = build_config(parser, options)
    best = "accuracy" if config.task.name == AUTO else find_task(config.task.name).best[0]
    links = parse_projections(options, {best})
    if config.mode != "gradient":
        raise ValueError(f"mode: compare is about gradients; it needs mode=gradient, not {config.mode}")
    directory, rows = Path(config.output_dir), []
    fixed = [key for key in grid.tune if key in PLAIN]
    if fixed:
        raise ValueError(f"--tune: {fixed[0]} is what tells techniques apart")
    techniques = {
        name: with_arguments(config, [*arguments, f"--output_dir={directory / name}"])
        for name, arguments in find_techniques(options.techniques, config).items()
    }
    for own in techniques.values():  # before the first one starts
        settle_device(own.engine)
        check_settings(own, grid)
    for name, own in techniques.items():
        log.info("%s", name)
        rows += [{"technique": name} | row for row in sweep(own, grid, options.ranks)]
        write_csv(directory / RESULTS, rows)
    wide_console().print(results_table(rows, ["technique", *grid.tune]))
    print(f"results: {directory / RESULTS}")
    firsts = [row for row in rows if row["purpose"] == "result" and row["seed"] == grid.seeds[0]]
    logs = [
        replace(read_run(Path(row["directory"]), {}), name=row["technique"])
        for row in firsts
        if row["status"] == "finished"
    ]
    if not logs:
        raise DivergedError("compare: every technique diverged; try a lower clients.lr")
    notes = [f"Bytes, seconds and curves are those of seed {grid.seeds[0]}."] if len(grid.seeds) > 1 else []
    there, baseline = [run.name for run in logs], next(iter(techniques))
    notes += [f"{name} diverged." for name in techniques if name not in there]
    if there[0] != baseline:
        notes.append(f"Percentages are against {there[0]}, not {baseline}.")
    report(logs, links, options, directory, notes)
