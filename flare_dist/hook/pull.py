"""FLARE's pull in outer steps: local weights move to where error feedback has yet to take the global ones.

Ran Greidi, Kobi Cohen, "Sparse Training for Federated Learning with Regularized Error Correction", 2023,
https://arxiv.org/abs/2312.13795

In rounds it adds to the gradient (algorithms/flare.py). Here it is a move of its own behind each step of the inner
optimizer, as AdamW's decay is, so that no second moment divides it away: p <- p - lr * tau * M * sign(p - start - A),
with the global weights `start`, the residual A and the mask M of the entries whose |A| is above a percentile of their
tensor. Outer steps feed back start - p, so what the exchange holds is -A.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from flare_dist.algorithms.percentile import magnitude_percentile


def aim_at(residuals: Mapping[str, Tensor], percentile: float) -> dict[str, Tensor]:
    """Return by name what is fed back of each tensor, flat, but zeros where it does not pull."""
    return {
        name: F.hardshrink(residual.flatten(), magnitude_percentile(residual.flatten(), percentile))
        for name, residual in residuals.items()
    }


def pull(local: Tensor, start: Tensor, fed_back: Tensor, distance: float) -> None:
    """Move a tensor by `distance` in each pulled entry, in place, from the global weights' `start` to what is fed back.

    `fed_back` is what `aim_at` gave of it, in units of start - local.
    """
    towards = (local.float() - start).flatten().add_(fed_back).sign_()
    towards.mul_(fed_back.sign().square_()).mul_(distance)
    local.sub_(towards.view_as(local))
