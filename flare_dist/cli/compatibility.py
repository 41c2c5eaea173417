"""Print which options go together: the page docs/reference/compatibility.md, made from the tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console

from flare_dist.cautions import CAUTIONS, NEEDS
from flare_dist.comm.launch import Launch
from flare_dist.compatibility import EXCLUSIONS
from flare_dist.config.parser import Parser
from flare_dist.exclusion import Exclusion

INTRODUCTION = """\
# What goes with what

Options that are not listed here go together. A run also checks that each value is in its range, that files can be read
and that the model takes the data. "In steps" means `flare_dist.attach`, and mode gradient with
`gradients.hook: sparse`.

`flare-dist compatibility` prints this page from `flare_dist/compatibility.py`, `flare_dist/cautions.py` and the methods
in `flare_dist/algorithms/`.
"""


def compatibility_parser() -> Parser:
    return Parser(description="List which options do not go together, and why (Markdown).")


def run_compatibility(parser: Parser, options: Any, launch: Launch, console: Console) -> None:
    print(page(), end="")


def page() -> str:
    """Write the page: combinations that are refused, those that are taken with a warning, and keys that need others."""
    refused = ["## Refused", "", *_table(EXCLUSIONS)]
    warned = ["## Taken, with a warning", "", *_table(CAUTIONS)]
    patterns: dict[str, list[str]] = {}
    for need in NEEDS:
        patterns.setdefault(need.needs, []).append(f"`{need.pattern}`")
    rows = [[", ".join(keys), needs] for needs, keys in patterns.items()]
    needing = ["## Without effect, with a warning", "", *_lines(["keys", "unless there is"], rows)]
    return "\n".join([INTRODUCTION, *refused, "", *warned, "", *needing, ""])


def _table(rows: Iterable[Exclusion]) -> list[str]:
    cells = [[row.condition, ", ".join(f"`{key}`" for key in row.keys), row.reason, row.remedy] for row in rows]
    return _lines(["options", "keys", "why", "instead"], cells)


def _lines(head: list[str], rows: list[list[str]]) -> list[str]:
    """Write the lines of a Markdown table; a bar within a cell is escaped."""
    table = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in table]
