"""Mean and deviation of settings over their seeds: the table of the terminal, means.csv, and LaTeX for a paper."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

from rich.markup import escape
from rich.table import Table

from flare_dist.tasks.metrics import goodness
from flare_dist.tasks.task import Best
from flare_dist.units import show_bytes, show_seconds

LATEX_ESCAPES = {c: f"\\{c}" for c in "&%$#_{}"}
LATEX_ESCAPES |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}

SIZES = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "ms": 1e-3, "s": 1, "h": 3600, "x": 1}  # of units


@dataclass(frozen=True)
class Setting:
    """Hold what the runs of one setting came to."""

    label: str
    values: Mapping[str, str]  # of the keys in which settings differ
    amounts: Mapping[str, Sequence[float]]  # by column: a value for each run that has one
    runs: int  # those that diverged among them


@dataclass(frozen=True)
class MeanAndDeviation:
    """Hold a mean, and the standard deviation of several values."""

    mean: float
    deviation: float | None

    @staticmethod
    def of(values: Sequence[float]) -> MeanAndDeviation | None:
        """Summarise values; None if there are none."""
        if not values:
            return None
        return MeanAndDeviation(fmean(values), stdev(values) if len(values) > 1 else None)

    def shown(self, show: Callable[[float], str], plus_minus: str = " ± ") -> str:
        """Write mean ± deviation in one unit; of values that are all the same, as bytes often are, the mean alone."""
        mean = show(self.mean)
        if not self.deviation:
            return mean
        number, _, unit = mean.partition(" ")
        if unit not in SIZES:
            return f"{mean}{plus_minus}{show(self.deviation)}"
        return f"{number}{plus_minus}{self.deviation / SIZES[unit]:.3g} {unit}"


def unit_of(column: str) -> Callable[[float], str]:
    """Return the function that writes the values of a column."""
    if column.startswith("bytes"):
        return show_bytes
    if column.startswith("seconds"):
        return show_seconds
    return {"rounds": _show_rounds, "compression": "{:.1f} x".format}.get(column.split()[0], "{:.4f}".format)


def _show_rounds(rounds: float) -> str:
    """Write a mean number of rounds, to a tenth of a round."""
    return f"{rounds:,.1f}".removesuffix(".0")


def title_of(column: str) -> str:
    """Write the name of a column for a reader."""
    return column.replace("_", " ", 1) if column.startswith(("test_", "validation_", "best_", "bytes_")) else column


def columns_of(settings: Sequence[Setting]) -> list[str]:
    """List the columns of which some setting has a value, in their order."""
    return list(dict.fromkeys(c for setting in settings for c, values in setting.amounts.items() if values))


def best_of_column(settings: Sequence[Setting], column: str, best: Best) -> set[int]:
    """Find the settings with the best mean in a column of the metric, to the digits shown; empty for other columns.

    A setting of which a run diverged is none of them, nor is any if there is only one setting.
    """
    metric, direction = best
    if column not in (f"test_{metric}", f"validation_{metric}", f"best_{metric}") or len(settings) < 2:
        return set()
    means = {n: found.mean for n, setting in enumerate(settings) if (found := _whole(setting, column)) is not None}
    top = max(means.values(), key=partial(goodness, (metric, direction)), default=None)
    return {n for n, mean in means.items() if top is not None and f"{mean:.4f}" == f"{top:.4f}"}


def _whole(setting: Setting, column: str) -> MeanAndDeviation | None:
    """Summarise a column if every run of the setting has a value in it."""
    values = setting.amounts.get(column, ())
    return MeanAndDeviation.of(values) if len(values) == setting.runs else None


def cell(setting: Setting, column: str, plus_minus: str = " ± ") -> str:
    """Write one cell: mean ± deviation, and how many runs diverged or never reached a target; - without a value."""
    values = setting.amounts.get(column, ())
    found = MeanAndDeviation.of(values)
    lost = setting.runs - len(values)
    words = "diverged" if column.startswith("test_") else "never" if " until " in column else ""
    note = f" ({lost} {words})" if lost and words else ""
    return "-" if found is None else found.shown(unit_of(column), plus_minus) + note


def means_table(settings: Sequence[Setting], best: Best) -> Table:
    """Tabulate mean and deviation of every setting, the best in bold; * marks the best on the validation set."""
    columns = columns_of(settings)
    table = Table("setting", "seeds")
    for column in columns:
        table.add_column(title_of(column), justify="right")
    tops = {column: best_of_column(settings, column, best) for column in columns}
    chosen = tops.get(f"validation_{best[0]}", set())
    for n, setting in enumerate(settings):
        cells = [f"[bold]{cell(setting, c)}[/bold]" if n in tops[c] else cell(setting, c) for c in columns]
        table.add_row(escape(setting.label) + (" *" if n in chosen else ""), str(setting.runs), *cells)
    if chosen:
        table.caption = f"* best by validation {best[0]}"
    return table


def write_means(path: Path, settings: Sequence[Setting]) -> Path:
    """Write means.csv: a row for each setting, with mean and deviation of each column in plain units."""
    columns = columns_of(settings)
    keys = list(dict.fromkeys(key for setting in settings for key in setting.values))
    head = ["setting", *keys, "seeds", *(f"{column} {word}" for column in columns for word in ("mean", "deviation"))]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for setting in settings:
            found = [MeanAndDeviation.of(setting.amounts.get(column, ())) for column in columns]
            numbers = [number for spread in found for number in (spread and spread.mean, spread and spread.deviation)]
            writer.writerow([setting.label, *(setting.values.get(key) for key in keys), setting.runs, *numbers])
    return path


def write_latex(path: Path, settings: Sequence[Setting], best: Best) -> Path:
    """Write a tabular with the rules of booktabs: mean ± deviation, the best in bold."""
    columns = columns_of(settings)
    tops = {column: best_of_column(settings, column, best) for column in columns}
    head = [r"setting", *(latex_text(title_of(column)) for column in columns)]
    lines = [r"\begin{tabular}{l" + "r" * len(columns) + "}", r"\toprule", " & ".join(head) + r" \\", r"\midrule"]
    for n, setting in enumerate(settings):
        cells = [latex_text(cell(setting, c)).replace("±", r"$\pm$") for c in columns]
        bold = [rf"\textbf{{{text}}}" if n in tops[c] else text for c, text in zip(columns, cells)]
        lines.append(" & ".join([latex_text(setting.label), *bold]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    path.write_text("% needs \\usepackage{booktabs}\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def latex_text(text: str) -> str:
    """Escape what LaTeX would read as a command."""
    return "".join(LATEX_ESCAPES.get(c, c) for c in text)
