"""The density above which sparse payloads stop paying on the wire."""

from __future__ import annotations

import logging

from flare_dist.comm.traffic import all_gather_wire, all_reduce_wire
from flare_dist.compression.compressor import Compressor
from flare_dist.compression.packing import Packing
from flare_dist.compression.payload import WORD
from flare_dist.config.config import Config
from flare_dist.units import counted

log = logging.getLogger(__name__)


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
