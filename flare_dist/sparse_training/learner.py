"""The local sparse learner: a client's weights outside its mask are zero after every step, and the mask may move.

A mask update prunes the smallest weights of each layer and lets as many grow elsewhere, more of them in layers whose
weights are large (FLASH's code, after Dettmers & Zettlemoyer 2019; growth by gradient: RigL, Evci et al. 2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flare_dist.compression.sparsifiers import topk
from flare_dist.layout import Entry
from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.masks import apportion, layer_counts, layers_of, random_places, sizes

GROWTH_LIMIT = 0.99  # of the free places of a layer
Penalise = Callable[[Tensor, Tensor], None]


def update_steps(num_steps: int, steps_per_epoch: int) -> range:
    """After which local steps the mask moves: at the end of every epoch but the last, or in the middle of a single one.

    >>> list(update_steps(12, 4)), list(update_steps(7, 7)), list(update_steps(1, 1))
    ([4, 8], [3], [])
    """
    if num_steps <= steps_per_epoch:
        return range(num_steps // 2, num_steps // 2 + 1) if num_steps > 1 else range(0)
    return range(steps_per_epoch, num_steps, steps_per_epoch)


def most_moved(rate: float, num_steps: int, steps: Sequence[int], active: int, budget: int) -> int:
    """The most weights that the mask updates after these local steps can remove from a mask with `active`."""
    most = max(active, budget)
    return min(active, sum(int(rate * (1 - step / num_steps) * most) + 1 for step in steps))


class SparseLearner:
    """The mask of one client while it trains, and its updates after the local steps in `steps`.

    `budget` is the number of prunable weights that are to be active after an update. `factor`, float32 [total], is 1
    where a weight is active and 0 elsewhere; it belongs to the learner until the client has trained.
    """

    def __init__(
        self,
        config: SparseTrainingConfig,
        entries: Sequence[Entry],
        mask: Tensor,
        budget: int,
        num_steps: int,
        steps: Sequence[int],
        draws: torch.Generator,
        factor: Tensor,
    ) -> None:
        self.config = config
        self.entries = entries
        self.mask = mask.clone() if steps else mask
        self.budget = budget
        self.num_steps = num_steps
        self.steps = steps
        self.draws = draws
        self.factor = factor.copy_(mask)
        self._gradient: Tensor | None = None

    def watch(self, step: int, penalty: Penalise | None) -> Penalise | None:
        """What the step that ends as `step` is to be given as its penalty, so that its gradient is seen where it is
        needed: that of the loss alone.
        """
        if step not in self.steps or self.config.growth != "gradient":
            return penalty

        def keep_gradient(gradient: Tensor, parameters: Tensor) -> None:
            if gradient.isfinite().all():  # with fp16 a step may overflow: what grows then grows at random
                self._gradient = gradient.clone()
            if penalty is not None:
                penalty(gradient, parameters)

        return keep_gradient

    def prune(self, parameters: Tensor, step: int) -> list[int]:
        """Take the smallest weights out of the mask; returns how many are to grow in each layer instead."""
        rate = self.config.prune_rate * (1 - step / self.num_steps)
        actives = layer_counts(self.mask, self.entries)
        layers = list(layers_of(self.mask, self.entries))
        sums = [float(values.abs().sum()) for values in layers_of(parameters, self.entries)]
        if not math.isfinite(math.fsum(sums)):
            return [0] * len(layers)  # the client has diverged, and will be left out of the round
        means = [total / max(active, 1) for total, active in zip(sums, actives)]
        importance = [mean / (math.fsum(means) or 1.0) for mean in means]
        rooms = []
        for layer, values, active, share in zip(layers, layers_of(parameters, self.entries), actives, importance):
            free = layer.numel() - active
            nearly_dense = free < 0.2 * layer.numel() and share > 1 / len(layers)
            removed = int((min(free / layer.numel(), rate) if nearly_dense else rate) * active)
            if removed:
                places = layer.nonzero().squeeze(1)
                kept = topk(values[places], active - removed, torch.Generator())
                layer.zero_()
                layer[places[kept]] = True
            rooms.append(int(GROWTH_LIMIT * (free + removed)))
        self.factor.copy_(self.mask)
        missing = max(0, self.budget - sum(layer_counts(self.mask, self.entries)))
        if self.config.counts == "exact" and sum(rooms) < missing:  # at densities near 1
            rooms = [n - count for n, count in zip(sizes(self.entries), layer_counts(self.mask, self.entries))]
        if self.config.counts == "faithful":
            rounded = [math.ceil(share * missing) for share in importance]
            return apportion(rounded, sum(rounded), rooms)
        return apportion(importance, missing, rooms)

    def grow(self, counts: Sequence[int]) -> None:
        """Put so many new weights, which are zero, into each layer of the mask."""
        gradients: Sequence[Tensor | None] = [None] * len(self.entries)
        if self._gradient is not None:
            gradients = list(layers_of(self._gradient, self.entries))
        for layer, count, gradient in zip(layers_of(self.mask, self.entries), counts, gradients):
            if not count:
                continue
            free = layer.logical_not().nonzero().squeeze(1)
            if gradient is not None:
                places = topk(gradient[free], count, self.draws)
            else:
                places = random_places(len(free), count, self.draws).to(free.device)
            layer[free[places]] = True
        self.factor.copy_(self.mask)
        self._gradient = None
