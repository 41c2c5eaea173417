"""mode: centralised: passes over the pooled data on rank 0, the twin that sends nothing."""

from __future__ import annotations

import math
from typing import Any

from flare_dist.config.config import Config
from flare_dist.rounds.ledger import Stopwatch, centralised_report
from flare_dist.rounds.parties import DivergedError, Parties


def centralised_round(round_: int, config: Config, parties: Parties) -> dict[str, Any]:
    """Passes over the pooled data on rank 0, with an optimizer that keeps its state; the other ranks wait."""
    world, trainer, server = parties.world, parties.trainer, parties.server
    watch = Stopwatch(world)
    train_loss = 0.0
    if world.rank == 0:
        with watch.phase("compute"):
            trainer.model.load(server.parameters.data, server.buffers)
            train_loss = trainer.run_steps(0, round_, parties.partition[0])
            server.parameters.data.copy_(trainer.model.parameters)
            server.buffers.copy_(trainer.model.buffers)
    world.wait_for_all()
    if not world.all_true(math.isfinite(train_loss)):
        raise DivergedError(f"round {round_}: the training loss of the pooled data is not finite")
    return centralised_report(round_, train_loss, watch.totals())
