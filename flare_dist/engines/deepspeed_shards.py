"""Gather whole vectors from the shards in which ZeRO divides an optimizer's weights and state, and scatter them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from flare_dist.comm.collectives import rank_and_size, start_gather


class Shards:
    """Address the tensors that an optimizer of ZeRO stage 0 to 2 steps as parts of flat vectors of `total` entries.

    With one shard they are whole, one for each parameter in the layout's order. With several, one for each rank, each
    rank holds a flat one of its own, and the last ones are padded behind the vector's end.
    """

    def __init__(self, optimizer: Optimizer, total: int, shards: int, device: torch.device) -> None:
        self.optimizer = optimizer
        self.total = total
        self.shards = shards
        self.device = device

    @property
    def weights(self) -> list[Tensor]:
        """List the float32 tensors that the optimizer steps."""
        return [part for group in self.optimizer.param_groups for part in group["params"]]

    def gather(self, parts: list[Tensor]) -> Tensor:
        """Join `parts`, shaped as the weights, and the other ranks' into one vector; all ranks call it together."""
        own = torch.cat([part.detach().flatten() for part in parts]).to(self.device)
        if self.shards > 1:
            own, work = start_gather(own, None)
            work.wait()
        return own[: self.total].clone()

    def scatter(self, vector: Tensor, parts: list[Tensor]) -> None:
        """Write this rank's share of a whole vector to `parts`, shaped as the weights."""
        for own, share in self.shares(vector, parts):
            own.copy_(share)

    def shares(self, vector: Tensor, parts: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Pair each part with its share of a whole vector, as flat views without the padding behind its end."""
        start = rank_and_size(None)[0] * parts[0].numel() if self.shards > 1 else 0
        for part in parts:
            share = vector[start : start + part.numel()]
            yield part.data.view(-1)[: len(share)], share
            start += part.numel()

    def optimizer_state(self) -> dict[str, Any]:
        """Gather the optimizer's state, as of one flat vector; empty before the first step."""
        states = [self.optimizer.state[part] for part in self.weights]
        return {
            key: self.gather([state[key] for state in states]) if _is_vector(value) else value
            for key, value in states[0].items()
        }

    def load_optimizer_state(self, saved: dict[str, Any]) -> None:
        """Take over what `optimizer_state` returned, on any number of ranks."""
        weights = self.weights
        for key, value in saved.items():
            values = [torch.zeros_like(part.data) if _is_vector(value) else copy.deepcopy(value) for part in weights]
            if _is_vector(value):
                self.scatter(value, values)
            for part, own in zip(weights, values):
                self.optimizer.state[part][key] = own


def _is_vector(value: Any) -> bool:
    """Tell what the state keeps of each weight from what it keeps once, as a step's number."""
    return isinstance(value, Tensor) and value.dim() > 0
