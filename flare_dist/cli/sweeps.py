"""Run the commands that start many runs: sweep, compare."""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from flare_dist.analysis.means import means_table
from flare_dist.analysis.run_amounts import sum_up
from flare_dist.analysis.seed_groups import Group
from flare_dist.cli.bandwidth import add_projections, compare_bytes, parse_projections
from flare_dist.cli.console import print_table
from flare_dist.cli.figures import add_curves, check_figures, draw_curves, save_means, save_page
from flare_dist.cli.sweep_settings import TECHNIQUE, finished_groups, settings_of
from flare_dist.comm.launch import Launch
from flare_dist.config.config import Config
from flare_dist.config.config_parser import ConfigParser
from flare_dist.config.load import build_config, config_parser, with_arguments
from flare_dist.engines.config import resolve_device
from flare_dist.progress import Steps
from flare_dist.rounds.diverged import DivergedError
from flare_dist.studies.grid import Grid, parse_values
from flare_dist.studies.sweep import RESULTS, check_settings, sweep
from flare_dist.studies.sweep_results import best_of, write_csv
from flare_dist.studies.techniques import DIFFERENCES, PLAIN, USUAL, find_techniques
from flare_dist.tasks.config import AUTO, find_task

log = logging.getLogger(__name__)


def sweep_parser() -> ConfigParser:
    parser = config_parser(
        description="Train every combination of some settings, one after another; the same command continues."
    )
    group = parser.add_argument_group("Settings to try")
    group.add_argument(
        "--grid", action="append", type=str, default=[], help="KEY=VALUE,VALUE,...: every combination is trained."
    )
    _add_repetitions(group, "combination of the grid", ranks=1)
    add_curves(group)
    return parser


def _add_repetitions(group: Any, each: str, ranks: int) -> None:
    """Add the options that say how often `each` is trained: tuned keys, seeds, and the ranks of a run."""
    group.add_argument(
        "--tune",
        action="append",
        type=str,
        default=[],
        help=f"KEY=VALUE,VALUE,...: for each {each} the best value on the validation set is chosen with the first "
        "seed (a tenth is held out unless data.validation is set), then all seeds are trained.",
    )
    group.add_argument("--seeds", type=str, default="0", help="Seeds, separated by commas.")
    group.add_argument("--ranks", type=int, default=ranks, help="Ranks of each run, on this node.")


def _begin(command: str, launch: Launch) -> None:
    """Refuse a launcher, and let SIGTERM end the run in progress as Ctrl-C does."""
    if launch.size > 1:
        raise ValueError(f"{command}: start it once, without a launcher; --ranks gives each run its ranks")
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _parse_grid(options: Any, grid: dict[str, list[str]]) -> Grid:
    """Read seeds and tuned keys from the options; ValueError if they are wrong."""
    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError:
        raise ValueError(f"--seeds: needs whole numbers separated by commas, got {options.seeds!r}") from None
    return Grid(grid, parse_values("--tune", options.tune), seeds)


def run_sweep(parser: ConfigParser, options: Any, launch: Launch, console: Console) -> None:
    _begin("sweep", launch)
    grid = _parse_grid(options, parse_values("--grid", options.grid))
    config = build_config(parser, options)
    check_figures(options)
    rows = sweep(config, grid, options.ranks)
    directory = Path(config.output_dir)
    _show(rows, [*grid.grid, *grid.tune], options, directory)


def _show(rows: list[dict[str, Any]], keys: list[str], options: Any, directory: Path) -> list[Group]:
    """Print the table of the settings, and write it and their curves to `directory`; returns the finished runs."""
    settings = settings_of(rows, keys)
    best = best_of(rows)
    print_table(means_table(settings, best))
    print(f"results: {directory / RESULTS}")
    save_means(settings, best, options, directory)
    groups = finished_groups(rows, keys)
    draw_curves(groups, options, directory)
    return groups


def compare_parser() -> ConfigParser:
    parser = config_parser(
        description="Train the same model with several ways of exchanging gradients, and set them side by side."
    )
    group = parser.add_argument_group("Techniques to compare")
    group.add_argument(
        "--techniques",
        type=str,
        default=",".join(USUAL),
        help=f"Separated by commas; the others are compared with the first: {', '.join(DIFFERENCES)}. They "
        "differ in the exchange alone; the density of topk is compression.density.",
    )
    _add_repetitions(group, "technique", ranks=2)
    add_projections(group)
    add_curves(group)
    return parser


def run_compare(parser: ConfigParser, options: Any, launch: Launch, console: Console) -> None:
    _begin("compare", launch)
    grid = _parse_grid(options, {})
    config = build_config(parser, options)
    links = parse_projections(options, {_metric(config)})
    check_figures(options)
    if config.mode != "gradient":
        raise ValueError(f"mode: compare needs mode=gradient, got {config.mode}")
    fixed = [key for key in grid.tune if key in PLAIN]
    if fixed:
        raise ValueError(f"--tune: {fixed[0]} tells techniques apart, so it cannot be tuned")
    directory = Path(config.output_dir)
    techniques = {
        name: with_arguments(config, [*arguments, f"--output_dir={directory / name}"])
        for name, arguments in find_techniques(options.techniques, config).items()
    }
    rows = _train_each(techniques, grid, options.ranks, directory / RESULTS)
    groups = list(map(_with_short_names, _show(rows, [TECHNIQUE, *grid.tune], options, directory)))
    if not groups:
        raise DivergedError("compare: every technique diverged; try a lower clients.lr")
    found = sum_up(groups, links, options.topology, options.target)
    compare_bytes(found, links, options, directory, _notes(list(techniques), rows))
    save_page(found, links, options, directory, [])


def _metric(config: Config) -> str:
    """Return the name of the metric by which the task of `config` compares models."""
    if config.task.best != AUTO:
        return config.task.best.partition(":")[0]
    return find_task(config.task.name, config.task.options).best[0]


def _train_each(techniques: dict[str, Config], grid: Grid, ranks: int, results: Path) -> list[dict[str, Any]]:
    """Sweep each technique, after all of them are known to be valid; returns the rows, which `results` holds too."""
    for own in techniques.values():
        resolve_device(own.engine)
        check_settings(own, grid)
    rows: list[dict[str, Any]] = []
    with Steps("runs", len(techniques) * grid.num_runs, at_once=True, has_lines=False) as shown:
        for name, own in techniques.items():
            log.info("%s", name)
            rows += [{TECHNIQUE: name} | row for row in sweep(own, grid, ranks, shown)]
            write_csv(results, rows)
    return rows


def _with_short_names(group: Group) -> Group:
    """Name the runs of a technique by it, and by their own directories if there are several."""
    names = [group.label if len(group.runs) == 1 else f"{group.label}/{Path(run.name).name}" for run in group.runs]
    return replace(group, runs=[replace(run, name=name) for run, name in zip(group.runs, names)])


def _notes(techniques: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Write notes for the reader of the report: the techniques that diverged, and the baseline."""
    finished = list(dict.fromkeys(row[TECHNIQUE] for row in rows if _has_result(row)))
    notes = [f"{name} diverged." for name in techniques if name not in finished]
    if finished[0] != techniques[0]:
        notes.append(f"Percentages are against {finished[0]}, not {techniques[0]}.")
    return notes


def _has_result(row: dict[str, Any]) -> bool:
    return row["purpose"] == "result" and row["status"] == "finished"
