"""Run the command that writes one page about several runs: report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from flare_dist.analysis.bandwidth import unknown_slowest
from flare_dist.analysis.event_logs import parse_tags
from flare_dist.analysis.means import means_table
from flare_dist.analysis.metrics_file import METRICS
from flare_dist.analysis.run_amounts import sum_up
from flare_dist.analysis.run_logs import check_same_work, read_run
from flare_dist.analysis.seed_groups import group_runs
from flare_dist.cli.bandwidth import add_logs, add_projections, parse_projections
from flare_dist.cli.console import print_table
from flare_dist.cli.figures import add_curves, check_figures, draw_curves, save_means, save_page
from flare_dist.comm.launch import Launch
from flare_dist.config.parser import Parser, user_path
from flare_dist.errors import check_least
from flare_dist.records.resume import FREE_KEYS
from flare_dist.studies.grid import TUNING

log = logging.getLogger(__name__)


def report_parser() -> Parser:
    parser = Parser(
        description="Write one page about several runs, their seeds as one: tables, plots and a link to drag; and the "
        "same as a figure and a table for a paper.",
    )
    parser.add_argument("runs", nargs="+", type=str, help="Directories of runs, or of sweeps for all of their runs.")
    add_projections(parser)
    add_logs(parser)
    add_curves(parser)
    parser.add_argument("--output_dir", type=str, default="runs/report", help="For the page, the table and the figure.")
    return parser


def run_report(parser: Parser, options: Any, launch: Launch, console: Console) -> None:
    check_least("--ranks", options.ranks, 1)
    check_figures(options)
    tags = parse_tags(options.tag)
    logs = [read_run(directory, tags, options.ranks) for directory in find_runs(options.runs)]
    links = parse_projections(options, {run.best[0] for run in logs})
    different = check_same_work(logs)
    notes = [f"Beware of bytes and seconds: {different}."] if different else []
    if options.topology == "star":
        notes += filter(None, map(unknown_slowest, logs))
    groups = group_runs(logs, FREE_KEYS)
    found = sum_up(groups, links, options.topology, options.target)
    if options.target is not None and not any(run.target for one in found for run in one.totals):
        notes.append(f"No run reached the target, {logs[0].best[0]} {options.target:g}.")
    settings = [one.setting for one in found]
    best = logs[0].best
    print_table(means_table(settings, best))
    for note in notes:
        log.warning("%s", note)
    directory = user_path(options.output_dir)
    save_means(settings, best, options, directory)
    draw_curves(groups, options, directory)
    if not save_page(found, links, options, directory, notes):
        raise ValueError("report: the page was not written; pip install 'flare_dist[plots]'")


def find_runs(names: Sequence[str]) -> list[Path]:
    """List the runs that are named, each once; a directory that holds several, as of a sweep, stands for them."""
    found: dict[Path, None] = {}
    for name in names:
        directory = user_path(name)
        below = [log.parent for pattern in ("*", "*/*") for log in sorted(directory.glob(f"{pattern}/{METRICS}"))]
        inside = [run for run in below if TUNING not in run.relative_to(directory).parts]
        is_run = (directory / METRICS).exists() or not inside
        found |= dict.fromkeys([directory] if is_run else inside)
    return list(found)
