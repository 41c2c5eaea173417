"""What clients remember between rounds, and where it lives.

Client i's memory is homed on rank i mod world_size and never moves; it is allocated when the client first takes part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def hosting_ranks(cohort: Sequence[int], world_size: int, stateful: bool) -> list[tuple[int, int]]:
    """(client, rank) in ascending client order: homes where clients have state, otherwise an even split."""
    ordered = sorted(cohort)
    if stateful:
        return [(client, client % world_size) for client in ordered]
    return [(client, position * world_size // len(ordered)) for position, client in enumerate(ordered)]


class ClientStates:
    """The memory of the clients homed on this rank: for each a dict of flat vectors, zero at first use."""

    def __init__(self, names: Sequence[str], total: int, device: torch.device) -> None:
        self.names = names
        self.total = total
        self.device = device
        self.clients: dict[int, dict[str, Tensor]] = {}

    def __getitem__(self, client: int) -> dict[str, Tensor]:
        if client not in self.clients:
            self.clients[client] = {name: torch.zeros(self.total, device=self._roomy_device()) for name in self.names}
        return self.clients[client]

    def load(self, client: int, vectors: dict[str, Tensor]) -> None:
        """Take over a client's memory from a checkpoint."""
        for name, vector in self[client].items():
            vector.copy_(vectors[name])

    def _roomy_device(self) -> torch.device:
        """The training device while a quarter of its memory stays free for activations, otherwise the CPU."""
        if self.device.type == "cuda":
            free, capacity = torch.cuda.mem_get_info(self.device)
            if free - 4 * self.total * len(self.names) < capacity // 4:
                return torch.device("cpu")
        return self.device
