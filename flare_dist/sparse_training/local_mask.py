"""The mask of a client while it trains: weights outside it are zero after every step, and it may move.

A mask update prunes the smallest weights of each layer and lets as many grow elsewhere, more of them in layers whose
weights are large (FLASH's code, after Dettmers & Zettlemoyer 2019; growth by gradient: RigL, Evci et al. 2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from flare_dist.compression.sparsifiers import largest
from flare_dist.layout import Entry
from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.masks import apportion, layer_counts, layers_of, random_places
from flare_dist.sparse_training.methods import METHODS

GROWTH_LIMIT = 0.99  # of the free places of a layer
Penalise = Callable[[Tensor, Tensor], None]


class LocalMask:
    """The mask of one client in one round, and its updates.

    `rates` are the local steps after which the mask is updated, and the share of each layer that an update removes.
    As many weights grow elsewhere, at random places or by the gradient, as `growth` says. `budget` is the number of
    prunable weights that are to be active afterwards. `factor`, float32 [total], is 1 where a weight is active and 0
    elsewhere; it is written here until the client has trained. If it `measures`, `squares`, float32 [total], adds up
    the squares of the loss's gradients, of all weights.
    """

    def __init__(
        self,
        config: SparseTrainingConfig,
        entries: Sequence[Entry],
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
        self.entries = entries
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
            if gradient.isfinite().all():  # with fp16 a step may overflow: what grows then grows at random
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
        actives = layer_counts(self.mask, self.entries)
        layers = list(layers_of(self.mask, self.entries))
        sums = [float(values.abs().sum()) for values in layers_of(parameters, self.entries)]
        if not math.isfinite(math.fsum(sums)):
            return [0] * len(layers)  # the client has diverged, and will be left out of the round
        means = [total / max(active, 1) for total, active in zip(sums, actives)]
        importance = [mean / (math.fsum(means) or 1.0) for mean in means]
        removals = []
        rooms = []
        for layer, values, active, share in zip(layers, layers_of(parameters, self.entries), actives, importance):
            free = layer.numel() - active
            nearly_dense = free < 0.2 * layer.numel() and share > 1 / len(layers) and not keeps_layers
            removed = int((min(free / layer.numel(), rate) if nearly_dense else rate) * active)
            if removed:
                places = layer.nonzero().squeeze(1)
                kept = largest(values[places], active - removed)
                layer.zero_()
                layer[places[kept]] = True
            removals.append(removed)
            rooms.append(int(GROWTH_LIMIT * (free + removed)))
        self.factor.copy_(self.mask)
        if keeps_layers:
            return removals
        missing = max(0, self.budget - sum(layer_counts(self.mask, self.entries)))
        if self.config.counts == "exact" and sum(rooms) < missing:  # at densities near 1
            counts = layer_counts(self.mask, self.entries)
            rooms = [entry.numel - count for entry, count in zip(self.entries, counts)]
        if self.config.counts == "faithful":
            rounded = [math.ceil(share * missing) for share in importance]
            return apportion(rounded, sum(rounded), rooms)
        return apportion(importance, missing, rooms)

    def grow(self, counts: Sequence[int]) -> None:
        """Add so many new weights, which are zero, to each layer of the mask."""
        gradients: Sequence[Tensor | None] = [None] * len(self.entries)
        if self._gradient is not None:
            gradients = list(layers_of(self._gradient, self.entries))
        for layer, count, gradient in zip(layers_of(self.mask, self.entries), counts, gradients):
            if not count:
                continue
            free = layer.logical_not().nonzero().squeeze(1)
            if gradient is not None:
                places = largest(gradient[free], count)
            else:
                places = random_places(len(free), count, self.draws).to(free.device)
            layer[free[places]] = True
        self.factor.copy_(self.mask)
        self._gradient = None
