"""The clients of a federation: which rank trains which, and what this rank trains and remembers them by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flare_dist.clients.batched import BatchedTrainer
from flare_dist.clients.client import LocalTrainer
from flare_dist.clients.mapped_states import FileStates
from flare_dist.clients.personalised import Personalised
from flare_dist.clients.state import ClientStates
from flare_dist.data.partition import Partition


def hosting_ranks(cohort: Sequence[int], world_size: int, stateful: bool) -> dict[int, int]:
    """Assign a rank to each client of a cohort, in ascending client order.

    Clients that remember something are `stateful` and train at home, on rank client mod `world_size`. The others are
    split evenly, in runs of consecutive clients.
    """
    ordered = sorted(cohort)
    if stateful:
        return {client: client % world_size for client in ordered}
    return {client: position * world_size // len(ordered) for position, client in enumerate(ordered)}


@dataclass(frozen=True)
class Clients:
    """Local training, the clients' memory and their examples."""

    trainer: LocalTrainer
    states: ClientStates | FileStates
    partition: Partition  # the indices of each client's examples
    cohort_size: int  # clients of a round
    batched: BatchedTrainer | None  # if clients are trained as one batch
    personal: Personalised | None = None  # if clients' own models are measured
    groups: Sequence[str] = ()  # of each client by name, if every client is a group of the data

    def name(self, client: int) -> str:
        """Name a client for a reader: its number, and its group if it is one."""
        return f"{client} ({self.groups[client]})" if self.groups else str(client)
