"""Measure each client's own model, as it is after local training, on what the client holds out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flare_dist.data.partition import Partition


class Personalised:
    """The personalised evaluation of a run's rounds: ranks measure those whom they train, and tell all.

    `measure` gives the task's best metric of the model as it stands, on examples at int64 indices. It is due in every
    `every`-th round and in round `last`.
    """

    def __init__(self, measure: Callable[[Tensor], float], held_out: Partition, every: int, last: int) -> None:
        self._measure = measure
        self.held_out = held_out
        self.every = every
        self.last = last
        self._measured: dict[int, float] = {}  # by client

    def is_due(self, round_: int) -> bool:
        """Tell whether a round ends with an evaluation."""
        return round_ % self.every == 0 or round_ == self.last

    def measure(self, client: int) -> None:
        """Measure the model as a client of this rank has trained it; a client that holds nothing out is left out."""
        own = self.held_out[client]
        if len(own):
            self._measured[client] = self._measure(own)

    def gather(self, cohort: Sequence[int], add_up: Callable[[Tensor], Tensor]) -> dict[int, float]:
        """Bring what the ranks have measured to all of them, by client of the cohort.

        `add_up` adds float64 tensors of all ranks, of which one alone has measured a client.
        """
        tested = [client for client in cohort if self.held_out.sizes[client]]
        found = torch.tensor([self._measured.get(client, 0.0) for client in tested], dtype=torch.float64)
        self._measured.clear()
        return dict(zip(tested, add_up(found).tolist()))
