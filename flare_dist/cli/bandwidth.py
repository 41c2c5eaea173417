"""Run the command that compares bytes and seconds of runs: bandwidth."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from flare_dist.analysis.bandwidth import unknown_slowest
from flare_dist.analysis.bandwidth_table import lines, terminal_table, write_csv
from flare_dist.analysis.event_logs import parse_tags
from flare_dist.analysis.links import TOPOLOGIES, Link
from flare_dist.analysis.plots import plot_seconds
from flare_dist.analysis.run_amounts import Summed, sum_up
from flare_dist.analysis.run_logs import check_same_work, read_run
from flare_dist.analysis.seed_groups import group_runs
from flare_dist.cli.console import print_table
from flare_dist.cli.figures import add_curves, check_figures, draw_curves, parse_look, print_plots, save_means
from flare_dist.comm.launch import Launch
from flare_dist.config.parser import Parser, user_path
from flare_dist.errors import check_least
from flare_dist.records.resume import FREE_KEYS

log = logging.getLogger(__name__)

SHARES = {"accuracy", "balanced_accuracy", "iou", "f1", "precision", "auroc", "average_precision"}  # from 0 to 1

SECONDS = "seconds"  # without the suffix of a format
CSV = "bandwidth.csv"


def bandwidth_parser() -> Parser:
    parser = Parser(
        description="Compare bytes and seconds of runs, their seeds as one, from their logs, and project them on other "
        "links.",
    )
    parser.add_argument("runs", nargs="+", type=str, help="Directories with metrics.jsonl or TensorBoard event files.")
    add_projections(parser)
    add_logs(parser)
    add_curves(parser)
    parser.add_argument(
        "--allow_different", action="store_true", help="Compare runs of different batch size or accumulation as well."
    )
    parser.add_argument("--output_dir", type=str, default="runs/bandwidth", help="For tables and plots.")
    return parser


def add_logs(parser: Any) -> None:
    """Add the options that tell what the logs of other trainers mean."""
    parser.add_argument("--ranks", type=int | None, default=None, help="Number of ranks, if the logs do not tell it.")
    parser.add_argument(
        "--tag",
        action="append",
        type=str,
        default=[],
        help="KEY=TAG: the TensorBoard tag under which another trainer logs a key of metrics.jsonl, e.g. "
        "uplink_bytes=comm/sent or test_accuracy=eval/acc; may be repeated.",
    )


def add_projections(parser: Any) -> None:
    """Add the options of projections: other links, and a value of the metric to be reached."""
    parser.add_argument(
        "--link",
        action="append",
        type=str,
        default=[],
        help="RATE[/LATENCY][/full|half|shared], e.g. 100Mbps or 1Gbps/20ms; may be repeated. shared: all ranks take "
        "turns on one medium.",
    )
    parser.add_argument(
        "--topology",
        choices=TOPOLOGIES,
        default="ranks",
        help="Who has such a link: every rank, or, in a star around the server, every client.",
    )
    parser.add_argument(
        "--target",
        type=float | None,
        default=None,
        help="Value to be reached on the test set, of the metric by which the task compares models: at least that "
        "accuracy, at most that loss.",
    )


def run_bandwidth(parser: Parser, options: Any, launch: Launch, console: Console) -> None:
    check_least("--ranks", options.ranks, 1)
    check_figures(options)
    tags = parse_tags(options.tag)
    logs = [read_run(user_path(directory), tags, options.ranks) for directory in options.runs]
    links = parse_projections(options, {log.best[0] for log in logs})
    different = check_same_work(logs)
    if different and not options.allow_different:
        raise ValueError(f"bandwidth: {different}; --allow_different compares them all the same")
    notes = [f"Beware: {different}."] if different else []
    directory = user_path(options.output_dir)
    groups = group_runs(logs, FREE_KEYS)
    found = sum_up(groups, links, options.topology, options.target)
    compare_bytes(found, links, options, directory, notes)
    save_means([one.setting for one in found], logs[0].best, options, directory)
    draw_curves(groups, options, directory)


def parse_projections(options: Any, metrics: Collection[str]) -> list[Link]:
    """Parse the links; ValueError if one of them is wrong, or if the target is out of range for one of `metrics`."""
    target = options.target
    share = next((metric for metric in sorted(metrics) if metric in SHARES), None)
    if target is not None and share and not 0 < target <= 1:
        raise ValueError(f"--target: out of range for {share}, got {target}; choose a number in (0, 1]")
    if target is not None and not math.isfinite(target):
        raise ValueError(f"--target: must be finite, got {target}; choose a number")
    return [Link.parse(text) for text in options.link]


def compare_bytes(
    found: Sequence[Summed], links: Sequence[Link], options: Any, directory: Path, notes: Sequence[str]
) -> None:
    """Compare the settings with the first of them, each the mean over its seeds.

    Prints the table, logs `notes`, and writes the plot of seconds, and all runs as CSV.
    """
    settings = [one.mean for one in found]
    print_table(terminal_table(settings, lines(settings, options.target)))
    if links and options.topology == "star":
        notes = [*notes, *filter(None, (unknown_slowest(run) for one in found for run in one.group.runs))]
    for note in notes:
        log.warning("%s", note)
    write_csv(directory / CSV, [run for one in found for run in one.totals])
    print(directory / CSV)
    print_plots(lambda: plot_seconds(settings, parse_look(options), directory / SECONDS))
