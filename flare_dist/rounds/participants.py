"""Who took part in a round, and with what: the lines of clients.jsonl."""

from __future__ import annotations

import math
from typing import Any

from flare_dist.comm.exchange import Received
from flare_dist.rounds.federation import Federation
from flare_dist.rounds.ledger import Stopwatch
from flare_dist.tasks.spread import mean_over_examples, spread


def participants_report(round_: int, received: Received, fed: Federation, watch: Stopwatch) -> dict[str, Any]:
    """Return `participants`, a line for each client of the round, and how well their own models do if that is measured.

    All ranks call it together, after the watch has gathered the clients' seconds.
    """
    cohort = sorted(received.accepted + received.rejected)
    lines = {client: _line(client, received, fed, watch) for client in cohort}
    personal = fed.clients.personal
    if personal is None or not personal.is_due(round_):
        return {"participants": list(lines.values())}
    metric, _ = fed.task.best
    world = fed.world
    measured = personal.gather(cohort, lambda found: world.all_reduce_(found.to(world.device)))
    for client, value in measured.items():
        lines[client][f"personal_{metric}"] = None if math.isnan(value) else value
    sizes = personal.held_out.sizes
    members = {str(client): {metric: value, "examples": sizes[client]} for client, value in measured.items()}
    mean = {f"personal_{metric}": mean_over_examples(members, metric)}
    return {"participants": list(lines.values()), **mean, **spread(members, "personal", fed.task.best)}


def _line(client: int, received: Received, fed: Federation, watch: Stopwatch) -> dict[str, Any]:
    """Describe one client's part; its loss is null if it was rejected, seconds are if clients trained as one batch."""
    return {
        "client": client,
        "examples": fed.clients.partition.sizes[client],
        "train_loss": received.losses.get(client),
        "uplink_bytes": received.nbytes.get(client, 0),
        "seconds": watch.client_seconds.get(client) or None,
    }
