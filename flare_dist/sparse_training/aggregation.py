"""Aggregation of sparse models whose masks may differ: from the mean of what was sent to the mean of the models.

mean: a client's model is 0 outside its mask (FLASH, Babakniya et al. 2023). masked_mean: each weight over the clients
that have it (FedDST, Bibikar et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor

from flare_dist.compression.payload import Masked


@dataclass
class ClientMasks:
    """The accepted clients' masks, bool [total] each and at least one, in their order, and their weights."""

    masks: list[Tensor] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    mask_nbytes: int = 0

    def add(self, payload: Masked, weight: float) -> None:
        """Note one client's mask."""
        self.masks.append(payload.mask)
        self.weights.append(weight)
        self.mask_nbytes += payload.mask_nbytes

    def shares(self) -> Tensor:
        """Return the share of the cohort's weight that holds each entry: float32 [total], 1 if all clients do."""
        held = torch.zeros_like(self.masks[0], dtype=torch.float32)
        present = held.new_zeros(())  # summed as `held` is, so that what all hold is exactly 1
        for mask, weight in zip(self.masks, self.weights):
            held.add_(mask.float(), alpha=weight)
            present.add_(weight)
        return held / present

    def union(self) -> Tensor:
        """Return bool [total], true if any client is active."""
        return reduce(torch.logical_or, self.masks)


def mean_of_models(mean_delta: Tensor, parameters: Tensor, clients: ClientMasks) -> Tensor:
    """Turn the mean of what was sent into that of the clients' models, less the global `parameters`; in place.

    A client's model is 0 outside its mask: its delta there is -w_t, which nobody needs to send.
    """
    return mean_delta.addcmul_(parameters, 1 - clients.shares(), value=-1)


def masked_mean_of_models(mean_delta: Tensor, parameters: Tensor, clients: ClientMasks) -> Tensor:
    """Take each weight's mean over the clients that have it, sum w_i / sum m_i; a weight that nobody has becomes 0."""
    nobody = ~clients.union()
    return mean_delta.div_(clients.shares().masked_fill_(nobody, 1)).sub_(parameters * nobody)


# sparse_training.update_mode
UPDATE_MODES: dict[str, Callable[[Tensor, Tensor, ClientMasks], Tensor]] = {
    "mean": mean_of_models,
    "masked_mean": masked_mean_of_models,
}
