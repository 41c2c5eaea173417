"""The next mask: how the server makes a new consensus of what the clients bring.

FLASH's jmwst (Babakniya et al. 2023): the largest weights of the aggregate, shared among layers as in clients' masks.
FedDST (Bibikar et al. 2022): the largest, as many in each layer as before. PruneFL (Jiang et al. 2022): readjust.py.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from flare_dist.sparse_training import flash
from flare_dist.sparse_training.aggregation import ClientMasks
from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.layers import Layers
from flare_dist.sparse_training.masks import budget, largest_mask, layer_counts
from flare_dist.sparse_training.methods import Method
from flare_dist.sparse_training.readjust import readjusted_mask


class Consensus(Protocol):
    """The present consensus, and the method that moves it."""

    config: SparseTrainingConfig
    method: Method
    layers: Layers
    mask: Tensor  # bool [total]
    uses: Sequence[float]


def next_mask(
    now: Consensus, rate: float, parameters: Tensor, clients: ClientMasks | None, squares: Tensor | None
) -> Tensor:
    """Choose the next consensus, bool [total], by the aggregated `parameters`, or by the clients' squared gradients.

    A method that measures moves the share `rate` of each layer; `squares` is None if nobody's were finite, and the mask
    stays. Raises ValueError if it is made of the clients' masks, and none were sent.
    """
    actives = layer_counts(now.mask, now.layers)
    if now.method.is_measured:
        if squares is None:
            return now.mask
        return readjusted_mask(now.layers, parameters, now.mask, squares, now.uses, rate, sum(actives))
    if clients is None:
        raise ValueError("a consensus is made of the clients' masks, and none were sent")
    union = clients.union()
    if now.method.keeps_layers:
        return largest_mask(parameters, now.layers, actives, union)
    shares = layer_shares(now, parameters, clients, union)
    keep = budget(now.config, now.layers.whole)
    return flash.projected_mask(now.config, now.layers, parameters, union, shares, keep)


def layer_shares(now: Consensus, parameters: Tensor, clients: ClientMasks, union: Tensor) -> list[float]:
    """Count the weights of each layer in the aggregate, or on average in the clients' masks."""
    if now.config.subsample == "aggregate":
        return [float(count) for count in layer_counts((parameters != 0) & union, now.layers)]
    counts = [layer_counts(mask, now.layers) for mask in clients.masks]
    shares = [math.fsum(map(operator.mul, clients.weights, layer)) for layer in zip(*counts)]
    return [share / math.fsum(clients.weights) for share in shares]
