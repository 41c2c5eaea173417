"""Compare the bytes and seconds of settings with the first of them: a table for the terminal, and each run as CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from flare_dist.analysis.bandwidth import Totals
from flare_dist.units import show_bytes, show_seconds

Lines = list[tuple[str, list[str]]]  # (title, a cell for each run)

AMOUNTS = {
    "buffer_bytes": "of these, buffers",
    "mask_bytes": "of these, changes of masks",
    "downlink_bytes": "bytes down",
    "wire_bytes": "bytes on the wire",
    "round_seconds": "seconds",
    "compute_seconds": "seconds computing",
    "select_seconds": "seconds selecting",
    "slowest_client_seconds": "seconds of the slowest client",
    "communication_seconds": "seconds communicating",
    "waiting_seconds": "seconds waiting",
}


def lines(runs: Sequence[Totals], target: float | None) -> Lines:
    """Build the lines of the table; percentages are differences to the first run."""
    rows: Lines = [("rounds", [str(run.rounds) for run in runs])]
    rows += _amount_lines(runs)
    rows.append(("compression of the uplink", _against_first([run.compression for run in runs], "{:.1f} x".format)))
    rows.append(("share of time communicating", [_plain(run.communicating, "{:.1%}") for run in runs]))
    metric = " or ".join(dict.fromkeys(run.metric for run in runs))
    rows.append((f"final test {metric}", [_plain(run.value, "{:.4f}") for run in runs]))
    for link in runs[0].projected:
        a_round = [run.projected[link] / max(run.rounds, 1) for run in runs]
        rows.append((f"a round at {link}", _against_first(a_round, show_seconds)))
        rows.append((f"all rounds at {link}", _against_first([run.projected[link] for run in runs], show_seconds)))
    return rows if target is None else rows + _target_lines(runs, metric, target)


def _amount_lines(runs: Sequence[Totals]) -> Lines:
    """Build the lines of bytes and seconds, of those kinds that a run has."""
    rows: Lines = []
    if any(run.bytes_up is not None for run in runs):
        rows.append(("bytes up", _against_first([run.bytes_up for run in runs], show_bytes)))
    for key, title in AMOUNTS.items():
        if any(run.amounts.get(key) or (key in run.amounts and key != "buffer_bytes") for run in runs):
            show = show_bytes if "bytes" in key else show_seconds
            rows.append((title, _against_first([run.amounts.get(key) for run in runs], show)))
    return rows


def _target_lines(runs: Sequence[Totals], metric: str, target: float) -> Lines:
    """Build the lines of what each run needed to reach the target."""
    titles = {"round": f"round with {metric} {target:g}", "bytes_up": "bytes up until then"}
    titles |= {"downlink_bytes": "bytes down until then", "round_seconds": "seconds until then"}
    titles |= {link: f"the same at {link}" for link in runs[0].projected}
    rows: Lines = []
    for key, title in titles.items():
        show = show_bytes if "bytes" in key else "{:.4g}".format if key == "round" else show_seconds
        rows.append((title, [show(run.target[key]) if run.target else "not reached" for run in runs]))
    return rows


def _plain(value: float | None, template: str) -> str:
    return "-" if value is None else template.format(value)


def _against_first(values: Sequence[float | None], show: Callable[[float], str]) -> list[str]:
    """Show each value, and by how many percent it differs from the first."""
    cells = ["-" if value is None else show(value) for value in values]
    for place, value in enumerate(values[1:], 1):
        if value is not None and values[0]:
            cells[place] += f" ({value / values[0] - 1:+.1%})"
    return cells


def terminal_table(runs: Sequence[Totals], rows: Lines) -> Table:
    """Build the table for the terminal, a column for each setting."""
    table = Table("", *[escape(run.name) for run in runs])
    for title, cells in rows:
        table.add_row(escape(title), *map(escape, cells))
    return table


def csv_row(run: Totals) -> dict[str, object]:
    """Make the row of one run, in bytes and seconds; bytes_up counts payloads and buffers."""
    row: dict[str, object] = {"run": run.name, "rounds": run.rounds, "bytes_up": run.bytes_up, **run.amounts}
    row |= {"compression": run.compression, f"test_{run.metric}": run.value}
    row |= {f"seconds at {link}": seconds for link, seconds in run.projected.items()}
    row |= {f"until target: {key}": value for key, value in (run.target or {}).items()}
    return row


def write_csv(path: Path, runs: Sequence[Totals]) -> None:
    """Write a row for each run; ValueError if the file cannot be written."""
    table = [csv_row(run) for run in runs]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in table for key in row)))
            writer.writeheader()
            writer.writerows(table)
    except OSError as error:
        raise ValueError(f"output_dir: cannot write {path}: {error.strerror}") from error
