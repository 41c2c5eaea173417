"""The command line: train, evaluate, partition, sweep, bandwidth, densities."""

from __future__ import annotations

import contextlib
import logging
import signal
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from flare_dist.analysis.bandwidth import check_same_work, parse_tags, read_run, totals
from flare_dist.analysis.densities import densities_table, read_densities
from flare_dist.analysis.links import TOPOLOGIES, Link
from flare_dist.analysis.plots import (
    MissingMatplotlibError,
    plot_accuracy_against_bytes,
    plot_densities,
    plot_label_table,
)
from flare_dist.analysis.report import lines, terminal_table, write_report
from flare_dist.comm.distributed import Launch
from flare_dist.data.datasets import load
from flare_dist.data.partition import label_table
from flare_dist.run.config import build_config, config_parser, to_yaml
from flare_dist.run.evaluation import evaluate_run
from flare_dist.run.gather import divide
from flare_dist.run.rounds import DivergedError
from flare_dist.run.sweep import PLOT, RESULTS, Grid, parse_values, sweep
from flare_dist.run.sweep_results import by_point, results_table
from flare_dist.run.trainer import train

log = logging.getLogger("flare_dist")

DENSITIES = "densities.png"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 where training diverged, 2 for wrong input, 130 for Ctrl-C."""
    launch = Launch.from_environment()
    console = Console(stderr=True, quiet=launch.rank != 0)
    _start_logging(launch, console)
    if launch.size > 1:
        # A rank that waits in a collective never returns to Python to see an interrupt: let the signal end it.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        parsers = {
            "train": _train_parser(),
            "evaluate": _evaluate_parser(),
            "partition": _partition_parser(),
            "sweep": _sweep_parser(),
            "bandwidth": _bandwidth_parser(),
            "densities": _densities_parser(),
        }
        command, options = _parse(parsers, arguments)
        COMMANDS[command](parsers[command], options, launch, console)
    except (ArgumentError, ValueError) as error:
        return _fail(" ".join(str(error).split()), 2)
    except DivergedError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command continues from the last checkpoint, if there is one", 130)
    return 0


def _fail(message: str, status: int) -> int:
    """Say what went wrong in one line and hand the exit status on."""
    log.error("error: %s", message)
    return status


def _start_logging(launch: Launch, console: Console) -> None:
    """Rank 0 speaks, above the progress bar; the first rank of every other node reports errors; the rest are silent."""
    handler: logging.Handler = logging.StreamHandler()
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="%X")
    if launch.rank != 0:
        handler = logging.StreamHandler() if launch.local_rank == 0 else logging.NullHandler()
    handler.addFilter(_mark_warning)
    log.handlers = [handler]
    log.setLevel(logging.INFO if launch.rank == 0 else logging.ERROR)
    log.propagate = False


def _mark_warning(record: logging.LogRecord) -> bool:
    """Begin warnings with the word, as errors do."""
    if record.levelno == logging.WARNING and not str(record.msg).startswith("warning: "):
        record.msg = f"warning: {record.msg}"
    return True


def _parse(parsers: dict[str, ArgumentParser], arguments: Sequence[str] | None) -> tuple[str, Any]:
    parser = ArgumentParser(
        prog="flare-dist",
        description="Federated training with sparse updates.",
        version=version("flare_dist"),
        exit_on_error=False,
    )
    parser.add_argument("--local_rank", type=int | None, default=None, help="Given by some launchers; not used.")
    commands = parser.add_subcommands()
    for name, subparser in parsers.items():
        commands.add_subcommand(name, subparser, help=subparser.description)
    chosen = parser.parse_args(arguments)
    return chosen.subcommand, chosen[chosen.subcommand]


def _train_parser() -> ArgumentParser:
    return config_parser(description="Train a model as configured; the same command continues an interrupted run.")


def _run_train(parser: ArgumentParser, options: Any, launch: Launch, console: Console) -> None:
    config = build_config(parser, options)
    train(config, launch, console)
    if launch.rank == 0 and config.sparse_training.is_sparse:
        directory = Path(config.output_dir)
        with contextlib.suppress(MissingMatplotlibError):
            plot_densities(read_densities(directory), directory / DENSITIES)


def _evaluate_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Report the test accuracy of the model that a run saved.", exit_on_error=False)
    parser.add_argument("run", type=Path, help="Run directory.")
    parser.add_argument("--which", choices=["final", "best"], default="final", help="Which of the saved models.")
    parser.add_argument("--root", type=str | None, default=None, help="Where the data lies, if not where it was.")
    return parser


def _run_evaluate(parser: ArgumentParser, options: Any, launch: Launch, console: Console) -> None:
    loss, accuracy = evaluate_run(options.run, options.which, options.root)
    print(f"test accuracy {accuracy:.4f}  test loss {loss:.4f}")


def _partition_parser() -> ArgumentParser:
    return config_parser(description="Show how the examples are divided among the clients, without training.")


def _run_partition(parser: ArgumentParser, options: Any, launch: Launch, console: Console) -> None:
    config = build_config(parser, options)
    data = load(config.data, config.seed)
    counts = label_table(divide(config, data), data.train.labels, data.num_classes)
    table = Table("client", *map(str, range(data.num_classes)), "examples")
    for client, row in enumerate(counts.tolist()):
        table.add_row(str(client), *map(str, row), str(sum(row)))
    _wide_console().print(table)
    path = Path(config.output_dir) / "partition.png"
    plot_label_table(counts, path)
    print(f"plot: {path}")


def _sweep_parser() -> ArgumentParser:
    parser = config_parser(
        description="Train every combination of some settings, one after another; the same command continues."
    )
    group = parser.add_argument_group("What is tried")
    group.add_argument(
        "--grid", action="append", type=str, default=[], help="KEY=VALUE,VALUE,...: every combination is trained."
    )
    group.add_argument(
        "--tune",
        action="append",
        type=str,
        default=[],
        help="KEY=VALUE,VALUE,...: for each combination of the grid the best value by validation accuracy is chosen "
        "with the first seed (a tenth is held out unless data.validation says otherwise), then all seeds are trained.",
    )
    group.add_argument("--seeds", type=str, default="0", help="Seeds, separated by commas.")
    group.add_argument("--ranks", type=int, default=1, help="Ranks of each run, on this node.")
    return parser


def _run_sweep(parser: ArgumentParser, options: Any, launch: Launch, console: Console) -> None:
    if launch.size > 1:
        raise ValueError("sweep: start it once, without a launcher; --ranks gives each run its ranks")
    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError:
        raise ValueError(f"--seeds: needs whole numbers separated by commas, got {options.seeds!r}") from None
    grid = Grid(parse_values("--grid", options.grid), parse_values("--tune", options.tune), seeds)
    config = build_config(parser, options)
    train_parser = _train_parser()
    base = train_parser.parse_string(to_yaml(config))

    def check(arguments: Sequence[str]) -> None:
        build_config(train_parser, train_parser.parse_args(list(arguments), namespace=base.clone()))

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that the run in progress ends as well
    rows = sweep(config, grid, options.ranks, check)
    keys, directory = [*grid.grid, *grid.tune], Path(config.output_dir)
    _wide_console().print(results_table(rows, keys))
    print(f"results: {directory / RESULTS}")
    finished = {
        name: [read_run(Path(row["directory"]), {}) for row in runs if row["status"] == "finished"]
        for name, runs in by_point(rows, keys).items()
    }
    plot_accuracy_against_bytes(finished, directory / PLOT)
    print(f"plot: {directory / PLOT}")


def _bandwidth_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Compare what runs sent and took, and project it on other links, from their logs.",
        exit_on_error=False,
    )
    parser.add_argument("runs", nargs="+", type=Path, help="Directories with metrics.jsonl or TensorBoard event files.")
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
    parser.add_argument("--target", type=float | None, default=None, help="Test accuracy to be reached, in [0, 1].")
    parser.add_argument("--ranks", type=int | None, default=None, help="How many ranks ran, where logs do not say.")
    parser.add_argument(
        "--tag",
        action="append",
        type=str,
        default=[],
        help="KEY=TAG: the TensorBoard tag under which another trainer logs a key of metrics.jsonl, e.g. "
        "uplink_bytes=comm/sent or test_accuracy=eval/acc; may be repeated.",
    )
    parser.add_argument(
        "--allow_different", action="store_true", help="Compare runs of different batch size or accumulation as well."
    )
    parser.add_argument("--output_dir", type=Path, default=Path("runs/bandwidth"), help="For CSV, HTML and plots.")
    return parser


def _run_bandwidth(parser: ArgumentParser, options: Any, launch: Launch, console: Console) -> None:
    links = [Link.parse(text) for text in options.link]
    if options.ranks is not None and options.ranks < 1:
        raise ValueError(f"--ranks: must be at least 1, got {options.ranks}")
    if options.target is not None and not 0 < options.target <= 1:
        raise ValueError(f"--target: an accuracy in (0, 1], got {options.target}")
    tags = parse_tags(options.tag)
    logs = [read_run(directory, tags, options.ranks) for directory in options.runs]
    different = check_same_work(logs)
    if different and not options.allow_different:
        raise ValueError(f"bandwidth: {different}; --allow_different compares them all the same")
    runs = [totals(run, links, options.topology, options.target) for run in logs]
    rows = lines(runs, options.target)
    _wide_console().print(terminal_table(runs, rows))
    notes = [f"Beware: {different}."] if different else []
    for note in notes:
        log.warning(note)
    for path in write_report(options.output_dir, logs, runs, rows, notes):
        print(path)


def _densities_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Show how dense each layer of a sparse model is: a table and a plot, also while it trains.",
        exit_on_error=False,
    )
    parser.add_argument("run", type=Path, help="Run directory.")
    return parser


def _run_densities(parser: ArgumentParser, options: Any, launch: Launch, console: Console) -> None:
    densities = read_densities(options.run)
    _wide_console().print(densities_table(densities))
    plot_densities(densities, options.run / DENSITIES)
    print(f"plot: {options.run / DENSITIES}")


def _wide_console() -> Console:
    """A console for tables; a file or a pipe has no edge to wrap at."""
    output = Console()
    if not output.is_terminal:
        output.width = 10_000
    return output


COMMANDS: dict[str, Callable[[ArgumentParser, Any, Launch, Console], None]] = {
    "train": _run_train,
    "evaluate": _run_evaluate,
    "partition": _run_partition,
    "sweep": _run_sweep,
    "bandwidth": _run_bandwidth,
    "densities": _run_densities,
}
