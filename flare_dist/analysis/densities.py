"""Read and tabulate the density of each layer of a sparse model: as stage 1 found it, and over the rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from flare_dist.analysis.event_rows import Row
from flare_dist.analysis.metrics_file import METRICS, read_metrics


@dataclass(frozen=True)
class Densities:
    """Hold the layer densities of a run, each list in the order of `layers`."""

    layers: list[str]
    sensitivities: dict[str, list[float]]  # by client of stage 1; empty if there was none
    rounds: list[tuple[int, list[float]]]  # (round, densities), 0 being the first mask


def read_densities(directory: Path) -> Densities:
    """Read the masks' densities from metrics.jsonl; ValueError if it is not that of a sparse model, or damaged."""
    rows: list[Row] = []
    if (directory / METRICS).exists():
        rows = [row for row in read_metrics(directory) if row.get("layer_densities")]
    if not rows:
        raise ValueError(f"densities: {directory} holds no run of a sparse model (sparse_training.method)")
    try:
        found = {k: v for row in rows if "stage_one" in row for k, v in row["stage_one"]["sensitivities"].items()}
        layers = list(rows[0]["layer_densities"])
        rounds = [(row["round"], [float(row["layer_densities"][name]) for name in layers]) for row in rows]
        own = {
            client: [float(value) for _, value in zip(layers, values, strict=True)] for client, values in found.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"densities: {directory / METRICS} has a damaged line ({error!r})") from error
    return Densities(layers, own, rounds)


def densities_table(densities: Densities) -> Table:
    """Tabulate, for each layer, the clients' mean in stage 1 and the density of the first mask and of the last."""
    first = densities.rounds[0]
    last = densities.rounds[-1]
    table = Table("layer")
    titles = [*(["stage 1, mean"] if densities.sensitivities else []), f"round {first[0]}", f"round {last[0]}"]
    for title in titles:
        table.add_column(title, justify="right")
    for place, name in enumerate(densities.layers):
        own = [row[place] for row in densities.sensitivities.values()]
        shown = [*([sum(own) / len(own)] if own else []), first[1][place], last[1][place]]
        table.add_row(name, *(f"{value:.4f}" for value in shown))
    return table


def spread(rows: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Find the least and the greatest value of each column."""
    columns = list(zip(*rows))
    return [min(column) for column in columns], [max(column) for column in columns]
