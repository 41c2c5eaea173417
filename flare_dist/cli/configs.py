"""List the configurations that come with the package."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from flare_dist.cli.console import wide_console
from flare_dist.comm.launch import Launch
from flare_dist.config.packaged import description, packaged_configs
from flare_dist.config.parser import Parser


def configs_parser() -> Parser:
    return Parser(
        description="List the configurations that come with the package: train --config NAME, those of methods/ as "
        "further layers."
    )


def run_configs(parser: Parser, options: Any, launch: Launch, console: Console) -> None:
    table = Table("name", "what it is")
    for name, path in packaged_configs().items():
        table.add_row(name, description(path))
    wide_console().print(table)
