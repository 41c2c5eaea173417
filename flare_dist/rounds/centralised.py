"""mode: centralised: passes over the pooled data on rank 0, the twin that sends nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from flare_dist.clients.client import LocalTrainer
from flare_dist.clients.local_model import LocalModel
from flare_dist.comm.world import World
from flare_dist.config.config import Config
from flare_dist.rounds.diverged import DivergedError
from flare_dist.rounds.ledger import Stopwatch, centralised_report
from flare_dist.server.server import Server
from flare_dist.sparse_training.no_masks import NoMasks
from flare_dist.tasks.task import Task


@dataclass(frozen=True)
class Centralised:
    """The parties of mode: centralised; the server holds the parameters between rounds, and takes no step."""

    config: Config
    world: World
    task: Task
    trainer: LocalTrainer
    server: Server
    examples: Tensor  # int64: the indices of all of them
    masks = NoMasks()

    @property
    def model(self) -> LocalModel:
        """Return the model that trains and is evaluated here."""
        return self.trainer.model

    @property
    def view(self) -> Tensor:
        """Return the parameters, float32 [total]."""
        return self.server.parameters.data

    def held_alike(self) -> list[Tensor]:
        """Return nothing: rank 0 trains alone."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint saves; references, not copies."""
        optimizer = self.model.optimizer_state(self.config.clients.optimizer)
        return self.server.state_dict() | {"local_optimizer": optimizer}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over what a checkpoint saved, which may be another mode's."""
        self.server.load_state_dict(saved)
        if "local_optimizer" in saved:
            self.model.load_optimizer_state(self.config.clients.optimizer, saved["local_optimizer"])

    def memory_to_save(self, round_: int) -> dict[str, Any]:
        """Return no clients' memory."""
        return {"clients": {}}

    def take_over(self, saved: Mapping[int, dict[str, Tensor]], step: int | None) -> None:
        """Ignore the clients' memory of another mode."""

    def release(self, oldest: int) -> None:
        """Forget nothing: there is no memory."""


def centralised_round(round_: int, run: Centralised) -> dict[str, Any]:
    """Pass over the pooled data on rank 0, with an optimizer that keeps its state; the other ranks wait."""
    world = run.world
    trainer = run.trainer
    server = run.server
    watch = Stopwatch(world)
    train_loss = 0.0
    if world.rank == 0:
        with watch.phase("compute"):
            trainer.model.load(server.parameters.data, server.buffers)
            train_loss = trainer.run_steps(0, round_, run.examples)
            server.parameters.data.copy_(trainer.model.parameters)
            server.buffers.copy_(trainer.model.buffers)
    world.wait_for_all()
    if not world.all_true(math.isfinite(train_loss)):
        raise DivergedError(f"round {round_}: the training loss of the pooled data is not finite")
    return centralised_report(round_, train_loss, watch.totals())
