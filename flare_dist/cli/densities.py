"""Run the command that shows the layers of a sparse model: densities."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from flare_dist.analysis.densities import densities_table, read_densities
from flare_dist.analysis.plots import plot_densities
from flare_dist.cli.console import print_table
from flare_dist.cli.figures import add_look, parse_look, print_plots
from flare_dist.comm.launch import Launch
from flare_dist.config.parser import Parser, user_path

DENSITIES = "densities"  # without the suffix of a format


def densities_parser() -> Parser:
    parser = Parser(
        description="Show how dense each layer of a sparse model is: a table and a plot, also while it trains.",
    )
    parser.add_argument("run", type=str, help="Run directory.")
    add_look(parser)
    return parser


def run_densities(parser: Parser, options: Any, launch: Launch, console: Console) -> None:
    look = parse_look(options)
    directory = user_path(options.run)
    densities = read_densities(directory)
    print_table(densities_table(densities))
    print_plots(lambda: plot_densities(densities, look, directory / DENSITIES))
