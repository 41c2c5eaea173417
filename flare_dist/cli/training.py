"""Run the commands of one run: train, evaluate, export, partition."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flare_dist.analysis.densities import read_densities
from flare_dist.analysis.figure_style import Look, MissingMatplotlibError
from flare_dist.analysis.partition_plot import plot_holdings
from flare_dist.analysis.plots import plot_densities
from flare_dist.cli.console import print_table
from flare_dist.cli.densities import DENSITIES
from flare_dist.cli.figures import add_look, parse_look, print_plots
from flare_dist.comm.launch import Launch
from flare_dist.config.config_parser import ConfigParser
from flare_dist.config.load import build_config, config_parser
from flare_dist.config.parser import Parser, user_path
from flare_dist.config.values import expand_home
from flare_dist.data.datasets import load
from flare_dist.data.holdings import holdings, rows, write_csv
from flare_dist.records.rundir import check_writable
from flare_dist.records.summary import summary_table
from flare_dist.rounds.build_run import divide
from flare_dist.rounds.num_clients import resolve_num_clients
from flare_dist.run.evaluation import evaluate_run
from flare_dist.run.formats import FORMATS, export_run
from flare_dist.run.trainer import train


def train_parser() -> ConfigParser:
    return config_parser(
        description="Train a model as configured; the same command continues an interrupted run. Which "
        "options do not go together: flare-dist compatibility."
    )


def run_train(parser: ConfigParser, options: Any, launch: Launch, console: Console) -> None:
    config = build_config(parser, options)
    with parser.located():
        summary = train(config, launch, console)
    if launch.rank == 0:
        output = Console()
        output.print(summary_table(summary))
        output.print(f"run directory: {config.output_dir}", soft_wrap=True)
    if launch.rank == 0 and config.sparse_training.is_sparse:
        directory = Path(config.output_dir)
        with contextlib.suppress(MissingMatplotlibError):
            plot_densities(read_densities(directory), Look(), directory / DENSITIES)


def evaluate_parser() -> Parser:
    parser = Parser(description="Report the test metrics of the model that a run saved.")
    parser.add_argument("run", type=str, help="Run directory.")
    parser.add_argument("--which", choices=["final", "best"], default="final", help="Which of the saved models.")
    parser.add_argument("--root", type=str | None, default=None, help="Directory of the data, if it has moved.")
    return parser


def run_evaluate(parser: Parser, options: Any, launch: Launch, console: Console) -> None:
    root = options.root and expand_home(options.root, "--root")
    metrics = evaluate_run(user_path(options.run), options.which, root)
    print("  ".join(f"test {name} {value:.4f}" for name, value in metrics.items()))


def export_parser() -> Parser:
    parser = Parser(
        description="Write the model that a run saved as a file that others load, with what it expects of its inputs "
        "beside it as JSON."
    )
    parser.add_argument("run", type=str, help="Run directory.")
    parser.add_argument("--which", choices=["final", "best"], default="final", help="Which of the saved models.")
    parser.add_argument(
        "--format",
        choices=list(FORMATS),
        default="safetensors",
        help="safetensors or pt (state_dict of plain PyTorch), onnx (needs flare_dist[onnx]) or hf (a folder, for "
        "models with save_pretrained).",
    )
    parser.add_argument("--to", type=str, required=True, help="File to write, or folder of hf.")
    parser.add_argument(
        "--root", type=str | None, default=None, help="Directory of the data, which runs of older versions need."
    )
    return parser


def run_export(parser: Parser, options: Any, launch: Launch, console: Console) -> None:
    root = options.root and expand_home(options.root, "--root")
    directory = user_path(options.run)
    for path in export_run(directory, options.which, options.format, user_path(options.to), root):
        print(path)


def partition_parser() -> ConfigParser:
    parser = config_parser(description="Show how the examples are divided among the clients, without training.")
    add_look(parser)
    return parser


def run_partition(parser: ConfigParser, options: Any, launch: Launch, console: Console) -> None:
    look = parse_look(options)
    config = build_config(parser, options)
    with parser.located():
        check_writable("output_dir", Path(config.output_dir))
        data = load(config.data, config.seed, config.task)
        config = resolve_num_clients(config, data)
        held = holdings(divide(config, data), data)
    head, *lines = rows(held)
    table = Table(*map(escape, head))
    for line in lines:
        table.add_row(*map(escape, line))
    print_table(table)
    stem = Path(config.output_dir) / "partition"
    stem.parent.mkdir(parents=True, exist_ok=True)
    print(f"counts: {write_csv(stem.with_suffix('.csv'), held)}")
    print_plots(lambda: plot_holdings(held.counts, held.classes, held.groups, look, stem, held.counted))
