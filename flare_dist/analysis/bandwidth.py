"""Add up what a run sent, how long it took and how good its model became; project it on other links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flare_dist.analysis.event_rows import Row
from flare_dist.analysis.links import Link, adds_up_clients, project
from flare_dist.analysis.run_logs import RunLog
from flare_dist.tasks.metrics import goodness

UP = ("uplink_bytes", "buffer_bytes")


@dataclass(frozen=True)
class Totals:
    """Hold the sums over the rounds of one run."""

    name: str
    rounds: int
    amounts: dict[str, float]  # by key of metrics.jsonl: bytes and seconds
    projected: dict[str, float]  # by link: seconds of all rounds
    metric: str  # by which its task compares models, mostly "accuracy"
    value: float | None  # of the metric, in the last evaluation
    target: dict[str, float] | None  # when the target was reached: round, bytes, seconds and seconds by link

    @property
    def compression(self) -> float | None:
        """Divide the bytes of a dense uplink by those sent; the model's buffers travel with either."""
        dense = self.amounts.get("dense_bytes")
        return (dense + self.amounts.get("buffer_bytes", 0)) / self.bytes_up if dense and self.bytes_up else None

    @property
    def bytes_up(self) -> float | None:
        """Count all that clients sent, buffers included; None if it was not logged."""
        return bytes_up([self.amounts]) if self.amounts.keys() & UP else None

    @property
    def communicating(self) -> float | None:
        """Give the share of the measured time that was spent communicating; None if it was not logged."""
        seconds = self.amounts.get("round_seconds")
        if not seconds or "communication_seconds" not in self.amounts:
            return None
        return self.amounts["communication_seconds"] / seconds


def totals(run: RunLog, links: Sequence[Link], topology: str, target: float | None) -> Totals:
    """Add up bytes and seconds, project them on `links`, and find when the best metric reached `target`.

    Raises ValueError if the log lacks what a projection needs.
    """
    rounds = [row for row in run.rows if _has_bytes(row)]
    played = sum("stage_one" not in row for row in rounds)  # what comes before the rounds costs, and is none
    keys = dict.fromkeys(key for row in run.rows for key in row if key.endswith(("_bytes", "_seconds")))
    amounts = {key: sum(row.get(key, 0.0) for row in run.rows) for key in keys if key != "elapsed_seconds"}
    by_link = {link.text: [project_row(run, row, link, topology) for row in run.rows] for link in links}
    projected = {link: sum(seconds) for link, seconds in by_link.items()}
    metric, _ = run.best
    values = [row[f"test_{metric}"] for row in run.rows if f"test_{metric}" in row]
    last = values[-1] if values else None
    reached = None if target is None else _when_reached(run, by_link, target)
    return Totals(run.name, played, amounts, projected, metric, last, reached)


def _when_reached(run: RunLog, by_link: Mapping[str, Sequence[float]], target: float) -> dict[str, float] | None:
    """Add up the rows until the first evaluation that is at least as good as `target`; None if there is none."""
    key = f"test_{run.best[0]}"
    least = goodness(run.best, target)
    for count, row in enumerate(run.rows, 1):
        if key in row and goodness(run.best, row[key]) >= least:
            until = run.rows[:count]
            reached = {"round": float(row["round"]), "bytes_up": bytes_up(until)}
            reached |= {name: sum(row.get(name, 0.0) for row in until) for name in ("downlink_bytes", "round_seconds")}
            return reached | {link: sum(seconds[:count]) for link, seconds in by_link.items()}
    return None


def project_row(run: RunLog, row: Row, link: Link, topology: str) -> float:
    """Project the seconds of a round on a link; 0 for an evaluation beside the rounds."""
    try:
        return project(row, link, topology) if _has_bytes(row) else 0.0
    except ValueError as error:
        raise ValueError(f"bandwidth: {run.name}: {error}") from error


def _has_bytes(row: Row) -> bool:
    return any(key.endswith("_bytes") for key in row)


def bytes_up(rows: Sequence[Mapping[str, Any]]) -> float:
    """Add up what clients sent in these rounds: payloads, and the model's buffers, which travel with them."""
    return sum(row.get(key, 0) for row in rows for key in UP)


def sends_nothing(run: RunLog) -> bool:
    """Tell whether no byte of a run went from rank to rank, so that no link between ranks changes its times."""
    return not any(row.get("wire_bytes") for row in run.rows)


def unknown_slowest(run: RunLog) -> str | None:
    """Count the rounds of which a star cannot tell how long the slowest client took; None if there are none."""
    count = sum(adds_up_clients(row) for row in run.rows if _has_bytes(row))
    why = "older logs and clients trained as one batch lack them"
    added = "the star adds up the clients that a process trained in turn"
    return f"{run.name}: rounds without slowest_client_seconds: {count} ({why}); {added}" if count else None
