"""Aggregation of sparse models whose masks may differ: from the mean of what was sent to the mean of the models.

mean: a client's model is 0 outside its mask (FLASH, Babakniya et al. 2023). masked_mean: each weight over the clients
that have it (FedDST, Bibikar et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flare_dist.compression.payload import Masked


class ClientMasks:
    """The accepted clients' masks, and the share of the cohort's weight that holds each entry."""

    def __init__(self, total: int, device: torch.device) -> None:
        self._held = torch.zeros(total, device=device)
        self._weight = torch.zeros((), device=device)  # summed as `_held` is, so that what all hold is exactly 1
        self.masks: list[Tensor] = []  # in the clients' order
        self.weights: list[float] = []
        self.mask_nbytes = 0

    def add(self, payload: Masked, weight: float) -> None:
        """Note one client's mask."""
        self._held.add_(payload.mask.float(), alpha=weight)
        self._weight.add_(weight)
        self.masks.append(payload.mask)
        self.weights.append(weight)
        self.mask_nbytes += payload.mask_nbytes

    def shares(self) -> Tensor:
        """Return float32 [total], 1 if every client is active."""
        return self._held / self._weight

    def union(self) -> Tensor:
        """Return bool [total], true if any client is active."""
        return self._held > 0


def mean_of_models(mean_delta: Tensor, parameters: Tensor, clients: ClientMasks) -> Tensor:
    """Turn the mean of what was sent into that of the clients' models, less the global `parameters`; in place.

    A client's model is 0 outside its mask: its delta there is -w_t, which nobody needs to send.
    """
    return mean_delta.addcmul_(parameters, 1 - clients.shares(), value=-1)


def masked_mean_of_models(mean_delta: Tensor, parameters: Tensor, clients: ClientMasks) -> Tensor:
    """Take each weight's mean over the clients that have it, sum w_i / sum m_i; a weight that nobody has becomes 0."""
    nobody = clients.union().logical_not_()
    return mean_delta.div_(clients.shares().masked_fill_(nobody, 1)).sub_(parameters * nobody)


# sparse_training.update_mode
UPDATE_MODES: dict[str, Callable[[Tensor, Tensor, ClientMasks], Tensor]] = {
    "mean": mean_of_models,
    "masked_mean": masked_mean_of_models,
}
