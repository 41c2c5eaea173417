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

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flare_dist.comm.exchange import Received
from flare_dist.comm.traffic import Traffic, all_gather_wire, all_reduce_wire
from flare_dist.comm.world import World
from flare_dist.compression.compressor import Compressor
from flare_dist.compression.packing import Packing
from flare_dist.compression.payload import WORD
from flare_dist.config.config import Config
from flare_dist.hook.meter import HookTraffic
from flare_dist.rounds.data_parallel import DataParallel
from flare_dist.rounds.federation import Federation
from flare_dist.units import counted

log = logging.getLogger(__name__)


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
    def phase(self, name: str) -> Iterator[None]:
        start = self.world.now()
        yield
        self.seconds[name] += self.world.now() - start

    @contextmanager
    def client(self, client: int) -> Iterator[None]:
        """Note what one client's phases took."""
        before = sum(self.seconds.values())
        yield
        self.client_seconds[client] = sum(self.seconds.values()) - before

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


def break_even_density(packing: Packing, ranks: int, payloads: int) -> float:
    """Find the density below which an all-gather of `payloads` payloads a rank moves less than an all-reduce."""
    dense = all_reduce_wire(ranks, WORD * packing.total)
    least = packing.whole.numel()
    most = packing.total
    if all_gather_wire(ranks, payloads * packing.sizes(least).nbytes) >= dense:
        return 0.0
    while least < most:
        kept = (least + most + 1) // 2
        pays = all_gather_wire(ranks, payloads * packing.sizes(kept).nbytes) < dense
        least, most = (kept, most) if pays else (least, kept - 1)
    return least / packing.total


def report_break_even(config: Config, compressor: Compressor, ranks: int) -> None:
    """Log the density above which sparse payloads stop paying on the wire, and warn if the run's lies beyond."""
    if config.mode == "centralised" or config.exchanged.is_dense or ranks == 1:
        return
    payloads = -(-config.clients.cohort_size // ranks) if config.mode == "federated" else 1
    packing = compressor.final_plan.packing
    most = compressor.final_plan.max_kept
    limit = break_even_density(packing, ranks, payloads)
    sent = counted(payloads, "payload")
    log.info("on the wire of %d ranks with %s each, sparse pays below density %.3g", ranks, sent, limit)
    if most > limit * packing.total:
        log.warning(
            "compression.density: at %g the ranks move more than with dense float32, whose payloads are summed before "
            "the wire (sparse pays below %.3g here)", most / packing.total, limit,
        )  # fmt: skip


def federated_report(
    round_: int, received: Received, downlink_bytes: int, fed: Federation, watch: Stopwatch
) -> dict[str, Any]:
    """Return the row of one federated round; all ranks call it together."""
    seconds = watch.totals(sorted(received.accepted + received.rejected))  # before the collectives are counted
    traffic = fed.world.traffic
    accepted = len(received.accepted)
    total = (1 + len(received.beside)) * fed.server.parameters.numel() * accepted
    return {
        "round": round_,
        "train_loss": received.train_loss,
        "clients": accepted + len(received.rejected),
        "rejected_clients": len(received.rejected),
        "uplink_bytes": received.uplink_bytes,
        "downlink_bytes": downlink_bytes,
        "buffer_bytes": accepted * fed.server.buffers.numel() * WORD,
        "dense_bytes": WORD * total,
        "wire_bytes": traffic.wire_bytes,
        "collectives": traffic.collectives,
        "kept": received.kept,
        "total": total,
        **seconds,
    }


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
    communication_seconds. `buckets` has for each bucket of a step when it was sent, in seconds after the step's
    beginning, and its bytes on the wire; it is empty on a GPU.
    """
    seconds = watch.totals() | {"late_seconds": late_seconds}
    ranks = run.world.size
    traffic = run.world.traffic
    steps = run.config.eval_every
    total = ranks * steps * run.server.parameters.numel()
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
        "steps": steps,
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
