"""The bytes and seconds of a round: the numbers behind metrics.jsonl and TensorBoard.

Bytes are lengths of buffers that moved or, for the star that this run stands for, would have moved:

* `uplink_bytes`: the cohort's encoded payloads, headers and indices included, before padding; 4 bytes an entry dense.
* `downlink_bytes`: what a star sends to the round's cohort, so that its clients hold the global parameters (or the view
  of them that they train on); in mode: gradient the parameters, float32, to every rank.
* `buffer_bytes`: the model's floating-point buffers that travelled with the payloads.
* `dense_bytes`: the same uplink sent dense in float32, without buffers.
* `ranks`, `collectives`: how many processes moved them, in how many collectives, barriers among them.
* `wire_bytes`: what this round's collectives moved over all ranks, padding included (see comm/traffic.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flare_dist.clients.personalised import Personalised
from flare_dist.comm.exchange import Received
from flare_dist.comm.traffic import Traffic
from flare_dist.comm.world import World
from flare_dist.compression.payload import WORD
from flare_dist.hook.meter import HookTraffic
from flare_dist.rounds.data_parallel import DataParallel
from flare_dist.rounds.federation import Federation
from flare_dist.tasks.spread import mean_over_examples, spread


class Stopwatch:
    """Seconds of this rank by phase; a phase waits for the device, so that its work is not booked on the next."""

    def __init__(self, world: World) -> None:
        world.wait_for_all()  # rank 0 may still be busy with what came between the rounds
        world.traffic = Traffic()
        self.world = world
        self.seconds = {"compute": 0.0, "select": 0.0}
        self.client_seconds: dict[int, float] = {}  # of those that were trained one after another
        self.start = world.now()

    @contextmanager
    def phase(self, name: str, client: int | None = None) -> Iterator[None]:
        """Time a phase, also for the client that it is of, if that one was trained by itself."""
        start = self.world.now()
        yield
        seconds = self.world.now() - start
        self.seconds[name] += seconds
        if client is not None and (name == "compute" or client in self.client_seconds):
            self.client_seconds[client] = self.client_seconds.get(client, 0.0) + seconds

    def reassign(self, name: str, seconds: float) -> None:
        """Count `seconds` of the computing as `name`, select or communicate."""
        self.seconds["compute"] -= seconds
        if name == "communicate":
            self.world.traffic.communication_seconds += seconds
        else:
            self.seconds[name] += seconds

    def totals(self, cohort: Sequence[int] = ()) -> dict[str, float]:
        """Return `ranks`, and all `*_seconds` of the round, each the largest over the ranks.

        slowest_client_seconds are missing if no rank trained one client after another; `client_seconds` become those of
        the whole cohort.
        """
        traffic = self.world.traffic
        measured = {
            "round_seconds": self.world.now() - self.start,
            "compute_seconds": self.seconds["compute"],
            "select_seconds": self.seconds["select"],
            "communication_seconds": traffic.communication_seconds,
            "waiting_seconds": traffic.waiting_seconds,
            "slowest_client_seconds": max(self.client_seconds.values(), default=0.0),
        }
        of_clients = [self.client_seconds.get(client, 0.0) for client in cohort]
        everywhere = self.world.largest([*measured.values(), *of_clients])
        largest = dict(zip(measured, everywhere))
        self.client_seconds = dict(zip(cohort, everywhere[len(measured) :]))
        if not largest["slowest_client_seconds"]:
            del largest["slowest_client_seconds"]
        return {"ranks": self.world.size, **largest}


def federated_report(
    round_: int, received: Received, downlink_bytes: int, fed: Federation, watch: Stopwatch
) -> dict[str, Any]:
    """Return the row of one federated round; all ranks call it together."""
    seconds = watch.totals(sorted(received.accepted + received.rejected))  # before the collectives are counted
    traffic = fed.world.traffic
    accepted = len(received.accepted)
    entries = (1 + len(received.beside)) * fed.server.parameters.numel() * accepted
    of_shard = {
        "uplink_bytes": received.uplink_bytes,
        "downlink_bytes": downlink_bytes,
        "buffer_bytes": accepted * fed.server.buffers.numel() * WORD,
        "dense_bytes": WORD * entries,
        "wire_bytes": traffic.wire_bytes,
        "kept": received.kept,
        "total": entries,
    }
    return {
        "round": round_,
        "train_loss": received.train_loss,
        "clients": accepted + len(received.rejected),
        "rejected_clients": len(received.rejected),
        **dict(zip(of_shard, fed.world.host.sums(list(of_shard.values())))),
        "collectives": traffic.collectives,
        **seconds,
    }


def participants_report(round_: int, received: Received, fed: Federation, watch: Stopwatch) -> dict[str, Any]:
    """Return `participants`, a line for each client of the round, and how well their own models do if that is measured.

    The loss of a client that was rejected is null, and so are seconds if clients trained as one batch. All ranks call
    it together, after the watch has gathered the clients' seconds.
    """
    groups = fed.clients.groups
    nbytes = dict(zip(received.nbytes, fed.world.host.sums(list(received.nbytes.values()))))
    lines = {
        client: {
            "client": client,
            "examples": fed.clients.partition.sizes[client],
            "train_loss": received.losses.get(client),
            "uplink_bytes": nbytes.get(client, 0),
            "seconds": watch.client_seconds.get(client) or None,
            **({"group": groups[client]} if groups else {}),
        }
        for client in sorted(received.accepted + received.rejected)
    }
    personal = fed.clients.personal
    own = _personal_report(lines, personal, fed) if personal and personal.is_due(round_) else {}
    return {"participants": list(lines.values()), **own}


def _personal_report(lines: dict[int, dict[str, Any]], personal: Personalised, fed: Federation) -> dict[str, Any]:
    """Return the mean and the spread of the clients' own models' metric, and add each to its client's line."""
    metric, _ = fed.task.best
    world = fed.world
    measured = personal.gather(list(lines), lambda found: world.all_reduce_(found.to(world.device)))
    for client, value in measured.items():
        lines[client][f"personal_{metric}"] = None if math.isnan(value) else value
    sizes = personal.held_out.sizes
    name = fed.clients.name
    members = {name(client): {metric: value, "examples": sizes[client]} for client, value in measured.items()}
    mean = {f"personal_{metric}": mean_over_examples(members, metric)}
    return mean | spread(members, "personal", fed.task.best)


def gradient_report(
    round_: int,
    train_loss: float,
    run: DataParallel,
    moved: HookTraffic,
    buckets: list[tuple[float, int]],
    watch: Stopwatch,
    late_seconds: float,
) -> dict[str, Any]:
    """Return the row of one round of mode: gradient, in which a rank is a client; all ranks call it together.

    `moved` is the hook's traffic. `late_seconds` is how long the steps waited for their last buckets, a part of
    communication_seconds. `buckets` has for each bucket of a step when it was sent, in seconds, and its bytes.
    """
    seconds = watch.totals() | {"late_seconds": late_seconds}
    ranks = run.world.hosts
    traffic = run.world.traffic
    total = ranks * run.config.eval_every * run.server.parameters.numel()
    return {
        "round": round_,
        "train_loss": train_loss,
        "clients": ranks,
        "rejected_clients": 0,
        "uplink_bytes": ranks * moved.uplink_bytes,
        "downlink_bytes": total * WORD,
        "buffer_bytes": WORD * run.server.buffers.numel() * ranks,
        "dense_bytes": total * WORD,
        "wire_bytes": moved.wire_bytes + traffic.wire_bytes,
        "collectives": moved.collectives + traffic.collectives,
        "steps": run.config.eval_every,
        "bucket_sent_after": [after for after, _ in buckets],
        "bucket_wire": [wire for _, wire in buckets],
        "kept": ranks * moved.kept,
        "total": total,
        **seconds,
    }


def centralised_report(round_: int, train_loss: float, seconds: dict[str, float]) -> dict[str, Any]:
    """Return the row of one centralised round: nothing is sent."""
    kinds = ("uplink", "downlink", "buffer", "dense", "wire")
    unsent = [*(f"{kind}_bytes" for kind in kinds), "collectives", "kept", "total"]
    return {
        "round": round_,
        "train_loss": train_loss,
        "clients": 1,
        "rejected_clients": 0,
        **dict.fromkeys(unsent, 0),
        **seconds,
    }
