"""The page of the study of outer steps: what lies between its marks, and the points of its figures, from the runs."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import stdev

from outer_study_plan import Plan
from outer_study_rows import Row
from outer_study_table import (
    HEADER,
    LINKS,
    NAMES,
    Result,
    by_size,
    results_of,
    results_table,
    to_come,
    trials_table,
    verdicts,
)
from timing import print_table

MARKS = ("<!-- runs -->", "<!-- end of runs -->")
POINTS = ("method", "every", "loss", "deviation", "bytes", "seconds_at_100mbit", "seconds_at_1gbit")


def write_page(docs: Path, rows: Sequence[Row], plans: Sequence[Plan]) -> None:
    """Put the tables into their place on the page, and the points of the figures beside draw.py."""
    page = docs / "results" / "outer.md"
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(".*?".join(map(re.escape, MARKS)), re.DOTALL)
    page.write_text(pattern.sub(lambda _: section(rows, plans), text), encoding="utf-8")
    with (docs / "figures" / "outer.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(POINTS)
        writer.writerows(points(rows, plans))


def section(rows: Sequence[Row], plans: Sequence[Plan]) -> str:
    """Write what lies between the marks, with them."""
    sizes = [_of_one_size(rows, own) for own in by_size(plans)]
    hours = sum(row.seconds for row in rows) / 3600
    versions = ", ".join(sorted({row.torch for row in rows}))
    last = f"{len(rows)} runs in {hours:.1f} hours; torch {versions}. A star: the search has not ended."
    return "\n\n".join([MARKS[0], *filter(None, sizes), last, MARKS[1]])


def _of_one_size(rows: Sequence[Row], plans: Sequence[Plan]) -> str:
    results = results_of(rows, plans)
    missing = to_come(rows, plans)
    come = f"To come: {'; '.join(missing)}." if missing else ""
    if not results:
        setting = plans[0].setting
        return f"## At a width of {setting.width} and {setting.steps:,} steps\n\n{come}"
    first = results[0].best[0]
    title = f"## {first.parameters / 1e6:.1f} M parameters, {first.tokens / 1e6:.1f} M tokens"
    table = printed(HEADER, results_table(results))
    trials = printed(("method", "H", "validation loss at rate & outer rate"), trials_table(rows, plans))
    return "\n\n".join(filter(None, [title, table, "\n".join(verdicts(results)), trials, come]))


def printed(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Write a table as `print_table` prints it."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        print_table(header, lines)
    return text.getvalue().strip()


def points(rows: Sequence[Row], plans: Sequence[Plan]) -> list[list[str]]:
    """Write the points of the figures: the settings of the first grid's model that are as the presets say.

    What has the rates of another method is not compared with it.
    """
    own = [plan for plan in by_size(plans)[0] if not plan.setting.settings and _has_own_rates(plan)]
    return [_point(result) for result in results_of(rows, own)]


def _has_own_rates(plan: Plan) -> bool:
    return plan.follows is None or plan.follows.method == plan.setting.method


def _point(result: Result) -> list[str]:
    losses = [row.test_loss for row in result.best]
    deviation = stdev(losses) if len(losses) > 1 else 0.0
    setting = result.plan.setting
    seconds = [f"{result.seconds_on(link):.1f}" for link in LINKS]
    return [
        NAMES[setting.method],
        str(setting.every),
        f"{result.test_loss:.4f}",
        f"{deviation:.4f}",
        f"{result.wire_bytes:.0f}",
        *seconds,
    ]
