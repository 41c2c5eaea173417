"""The clients of a federation, as this rank trains and remembers those that it hosts."""

from __future__ import annotations

from dataclasses import dataclass

from flare_dist.clients.batched import BatchedTrainer
from flare_dist.clients.client import LocalTrainer
from flare_dist.clients.mapped_states import FileStates
from flare_dist.clients.state import ClientStates
from flare_dist.data.partition import Partition


@dataclass(frozen=True)
class Clients:
    """Local training, the clients' memory and their examples."""

    trainer: LocalTrainer
    states: ClientStates | FileStates
    partition: Partition  # the indices of each client's examples
    cohort_size: int  # clients of a round
    batched: BatchedTrainer | None  # if clients are trained as one batch

    def steps(self, client: int) -> tuple[int, int]:
        """Return a client's local steps in a round, and the steps of one of its epochs."""
        size = self.partition.sizes[client]
        return self.trainer.steps_with(size), self.trainer.epoch_steps(size)
