"""The mask of a client while it trains: weights outside it are zero after every step, and it may move.

A mask update prunes the smallest weights of each layer and lets as many grow elsewhere, more of them in layers whose
weights are large (FLASH's code, after Dettmers & Zettlemoyer 2019; growth by gradient: RigL, Evci et al. 2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from flare_dist.compression.sparsifiers import largest
from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.layers import Layers
from flare_dist.sparse_training.masks import apportion, keep_largest, layer_counts, layers_of, random_places, sizes
from flare_dist.sparse_training.methods import METHODS

GROWTH_LIMIT = 0.99  # of the free places of a layer
Penalise = Callable[[Tensor, Tensor], None]


class LocalMask:
    """The mask of one client in one round, and its updates.

    `rates` are the local steps after which the mask is updated, and the share of each layer that an update removes.
    As many weights grow elsewhere, at random places or by the gradient, as `growth` says. `budget` is the number of
    prunable weights that are to be active afterwards. `factor`, float32 [total], is 1 where a weight is active and 0
    elsewhere; it is written here until the client has trained. If it `measures`, `squares`, float32 [total], adds up
    the squares of the loss's gradients, of all weights. All ranks of a host call its methods together.
    """

    def __init__(
        self,
        config: SparseTrainingConfig,
        layers: Layers,
        mask: Tensor,
        budget: int,
        rates: Mapping[int, float],
        draws: torch.Generator,
        factor: Tensor,
        growth: str = "random",
        measures: bool = False,
    ) -> None:
        self.config = config
        self.growth = growth
        self.layers = layers
        self.mask = mask.clone() if rates else mask
        self.budget = budget
        self.rates = rates
        self.draws = draws
        self.factor = factor.copy_(mask)
        self.squares = torch.zeros_like(factor) if measures else None
        self._gradient: Tensor | None = None

    def watch(self, step: int, penalty: Penalise | None) -> Penalise | None:
        """Return the penalty of a local step, from 1, which also keeps the gradient of the loss if it is needed."""
        grows = step in self.rates and self.growth == "gradient"
        if not grows and self.squares is None:
            return penalty

        def keep_gradient(gradient: Tensor, parameters: Tensor) -> None:
            is_finite = bool(gradient.isfinite().all())
            if self.layers.host.all_true(is_finite):  # with fp16 a step may overflow: what grows then grows at random
                if grows:
                    self._gradient = gradient.clone()
                if self.squares is not None:
                    self.squares.addcmul_(gradient, gradient)
            if penalty is not None:
                penalty(gradient, parameters)

        return keep_gradient

    def prune(self, parameters: Tensor, step: int) -> list[int]:
        """Take the smallest weights out of the mask; returns the number that is to grow in each layer instead."""
        rate = self.rates[step]
        keeps_layers = METHODS[self.config.method].keeps_layers
        numels = sizes(self.layers.whole)
        actives = layer_counts(self.mask, self.layers)
        # Of whole layers, for the bits of a sum depend on its order.
        sums = [float(self.layers.host.gather(own).abs().sum()) for own in layers_of(parameters, self.layers)]
        if not math.isfinite(math.fsum(sums)):
            return [0] * len(numels)  # the client has diverged, and will be left out of the round
        means = [total / max(active, 1) for total, active in zip(sums, actives)]
        importance = [mean / (math.fsum(means) or 1.0) for mean in means]
        removals = []
        rooms = []
        parts = zip(layers_of(self.mask, self.layers), layers_of(parameters, self.layers))
        for (layer, values), numel, active, share in zip(parts, numels, actives, importance):
            free = numel - active
            nearly_dense = free < 0.2 * numel and share > 1 / len(numels) and not keeps_layers
            removed = int((min(free / numel, rate) if nearly_dense else rate) * active)
            if removed:
                keep_largest(self.layers, layer, values, active - removed)
            removals.append(removed)
            rooms.append(int(GROWTH_LIMIT * (free + removed)))
        self.factor.copy_(self.mask)
        if keeps_layers:
            return removals
        left = [active - removed for active, removed in zip(actives, removals)]
        missing = max(0, self.budget - sum(left))
        if self.config.counts == "exact" and sum(rooms) < missing:  # at densities near 1
            rooms = [numel - count for numel, count in zip(numels, left)]
        if self.config.counts == "faithful":
            rounded = [math.ceil(share * missing) for share in importance]
            return apportion(rounded, sum(rounded), rooms)
        return apportion(importance, missing, rooms)

    def grow(self, counts: Sequence[int]) -> None:
        """Add so many new weights, which are zero, to each layer of the mask."""
        gradients: Sequence[Tensor | None] = [None] * len(counts)
        if self._gradient is not None:
            gradients = list(layers_of(self._gradient, self.layers))
        for layer, count, gradient in zip(layers_of(self.mask, self.layers), counts, gradients):
            if not count:
                continue
            free = layer.logical_not().nonzero().squeeze(1)
            if gradient is not None:
                places = self.layers.choose(gradient[free], partial(largest, k=count))
            else:
                places = self.layers.places(len(free), partial(random_places, count=count, draws=self.draws))
            layer[free[places.to(free.device)]] = True
        self.factor.copy_(self.mask)
        self._gradient = None
