"""Keep what clients remember between rounds, in memory.

The state of client i lives on host i mod hosts and never moves (`hosting.py`); a host is one rank, or several of which
each has its rows. It is allocated when the client first takes part. records/checkpoint.py saves it; with
`clients.state_dir` it is in files instead (mapped_states.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from flare_dist.devices import roomy


@contextmanager
def on_device(home: dict[str, Tensor], device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Lend the vectors of `home`, or copies on `device`, and write back what was changed in the copies."""
    lent = {name: vector.to(device) for name, vector in home.items()}
    yield lent
    for name, vector in home.items():
        if vector is not lent[name]:
            vector.copy_(lent[name])


def copy_by_name(saved: Mapping[str, Tensor], vectors: Mapping[str, Tensor]) -> None:
    """Copy what a checkpoint has saved of a client into its vectors; one that it does not hold starts at zero.

    Raises ValueError if a vector has another length, which only an optimizer's may.
    """
    for name, vector in vectors.items():
        if name in saved and saved[name].shape != vector.shape:
            raise ValueError(
                f"clients.optimizer: clients have kept {saved[name].numel()} numbers of theirs, got one that keeps "
                f"{vector.numel()}; go on with the optimizer that the run was started with"
            )
        vector.copy_(saved[name]) if name in saved else vector.zero_()


class ClientStates:
    """Keep the states of the clients that live on this rank: a dict of flat vectors for each, zero at first use.

    A vector has `total` entries, but for those in `sizes`.
    """

    def __init__(
        self,
        names: Sequence[str],
        total: int,
        device: torch.device,
        sizes: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.names = names
        self.sizes = {name: sizes.get(name, total) for name in names}
        self.device = device
        self.clients: dict[int, dict[str, Tensor]] = {}

    def __getitem__(self, client: int) -> dict[str, Tensor]:
        if client not in self.clients:
            home = roomy(self.device, 4 * sum(self.sizes.values()))
            self.clients[client] = {name: torch.zeros(size, device=home) for name, size in self.sizes.items()}
        return self.clients[client]

    @contextmanager
    def lend(self, client: int) -> Iterator[dict[str, Tensor]]:
        """Lend a client's state on the training device; what is changed in it is kept where the state lives."""
        if not self.names:
            yield {}
            return
        with on_device(self[client], self.device) as lent:
            yield lent

    def load(self, client: int, vectors: dict[str, Tensor]) -> None:
        """Take over a client's state from a checkpoint; a vector that the checkpoint does not hold starts at zero."""
        copy_by_name(vectors, self[client])

    def take_over(self, saved: Mapping[int, dict[str, Tensor]]) -> None:
        """Begin with the states that a checkpoint holds, by client."""
        for client, vectors in saved.items():
            self.load(client, vectors)

    def for_checkpoint(self, round_: int) -> dict[str, Any]:
        """Return what this rank's file of the checkpoint of `round_` holds."""
        return {"clients": self.clients}

    def release(self, oldest: int) -> None:
        """Forget what only checkpoints before that of round `oldest` need: nothing, for each holds its own states."""
