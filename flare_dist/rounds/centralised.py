"""mode: centralised: passes over the pooled data on rank 0, the twin that sends nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from flare_dist.rounds.diverged import DivergedError
from flare_dist.rounds.ledger import Stopwatch, centralised_report
from flare_dist.rounds.local_run import LocalRun


@dataclass(frozen=True)
class Centralised(LocalRun):
    """The parties of mode: centralised."""

    examples: Tensor  # int64: the indices of all of them

    def held_alike(self) -> list[Tensor]:
        """Return nothing: rank 0 trains alone."""
        return []

    def memory_to_save(self, round_: int) -> dict[str, Any]:
        """Return no clients' memory."""
        return {"clients": {}}

    def take_over(self, saved: Mapping[int, dict[str, Tensor]], step: int | None) -> None:
        """Ignore the clients' memory of another mode."""


def centralised_round(round_: int, run: Centralised) -> dict[str, Any]:
    """Pass over the pooled data on rank 0, with an optimizer that keeps its state; the other ranks wait."""
    world = run.world
    trainer = run.trainer
    server = run.server
    watch = Stopwatch(world)
    train_loss = 0.0
    if world.host_number == 0:
        with watch.phase("compute"):
            trainer.model.load(server.parameters.data, server.buffers)
            train_loss = trainer.run_steps(0, round_, run.examples)
            server.parameters.data.copy_(trainer.model.parameters)
            server.buffers.copy_(trainer.model.buffers)
    world.wait_for_all()
    if not world.all_true(math.isfinite(train_loss)):
        raise DivergedError(f"round {round_}: the training loss of the pooled data is not finite")
    return centralised_report(round_, train_loss, watch.totals())
