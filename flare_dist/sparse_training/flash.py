"""FLASH: how many weights each layer keeps, and which mask that becomes.

Sara Babakniya, Souvik Kundu, Saurav Prakash, Yue Niu, Salman Avestimehr, "Revisiting Sparsity Hunting in Federated
Learning: Why does Sparsity Consensus Matter?", TMLR 2023, https://arxiv.org/abs/2208.13092, and the authors' code.

Stage 1: clients find layer sensitivities eta_l = active weights / weights of layer l, and the server makes densities
of their means, d_l = min(eta_l * r, 1) with r = d * P / sum(eta_l * n_l). Later the server of jmwst keeps of what the
clients bring k_l = s_l * min(1, d * P / sum(s_l)) of the largest weights of layer l.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flare_dist.seeding import generator
from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.layers import Layers
from flare_dist.sparse_training.masks import (
    apportion,
    bernoulli_mask,
    budget,
    largest_mask,
    layer_counts,
    none_empty,
    random_mask,
    sizes,
)


def _exact_counts(config: SparseTrainingConfig, layers: Layers, shares: Sequence[float]) -> list[int]:
    """Share the budget among layers in proportion to `shares`; what a full one cannot take the others get."""
    limits = sizes(layers.whole)
    return none_empty(apportion(shares, budget(config, layers.whole), limits), limits)


def budget_densities(config: SparseTrainingConfig, layers: Layers, shares: Sequence[float]) -> list[float]:
    """Return each layer's density if the budget is shared in proportion to `shares`."""
    return [count / entry.numel for count, entry in zip(_exact_counts(config, layers, shares), layers.whole)]


def drawn_mask(
    config: SparseTrainingConfig,
    layers: Layers,
    densities: Sequence[float],
    total: int,
    draws: torch.Generator,
    device: torch.device,
) -> Tensor:
    """Draw a mask of these densities; if counts are exact, `budget` of all weights together are active."""
    if config.counts == "faithful":
        return bernoulli_mask(layers, densities, total, draws, device)
    shares = [density * entry.numel for density, entry in zip(densities, layers.whole)]
    return random_mask(layers, _exact_counts(config, layers, shares), total, draws, device)


def consensus_densities(
    config: SparseTrainingConfig, layers: Layers, sensitivities: Sequence[Sequence[float]]
) -> list[float]:
    """Return each layer's density, from the sensitivities of the clients of stage 1."""
    means = [math.fsum(layer) / len(layer) for layer in zip(*sensitivities)]
    shares = [mean * entry.numel for mean, entry in zip(means, layers.whole)]
    if config.counts == "exact":
        return budget_densities(config, layers, shares)
    scale = config.density * sum(sizes(layers.whole)) / math.fsum(shares)
    return [min(mean * scale, 1.0) for mean in means]


def projected_mask(
    config: SparseTrainingConfig, layers: Layers, weights: Tensor, within: Tensor, shares: Sequence[float], keep: int
) -> Tensor:
    """Keep the largest of the weights active in `within`, `keep` in all, in proportion to the layers' `shares`."""
    limits = layer_counts(within, layers)
    if config.counts == "exact":
        counts = none_empty(apportion(shares, keep, limits), limits)
    else:
        scale = min(1.0, keep / (math.fsum(shares) or 1.0))
        counts = [min(limit, max(1, int(share * scale + 1e-9))) for share, limit in zip(shares, limits)]
    return largest_mask(weights, layers, counts, within)


def budgets_of(config: SparseTrainingConfig, cohort: Sequence[int], round_: int, seed: int) -> dict[int, float]:
    """Draw the factor on the density that each client can afford in a round: 1 in the first one.

    Who has which budget is drawn anew. As many clients have each as its share of the cohort says, and if that is no
    whole number one more or one less, at random (systematic sampling).
    """
    if not config.hetero or round_ == 1:
        return dict.fromkeys(cohort, 1.0)
    draws = generator(seed, "budgets", round_)
    order = torch.randperm(len(cohort), generator=draws).tolist()
    start = float(torch.rand((), generator=draws, dtype=torch.float64))
    ends = list(itertools.accumulate(share for share, _ in config.hetero))
    factors = [factor for _, factor in config.hetero]
    places = [bisect.bisect_right(ends[:-1], (place + start) / len(cohort)) for place in order]
    return {client: factors[place] for client, place in zip(cohort, places)}


def nested_masks(
    config: SparseTrainingConfig, layers: Layers, weights: Tensor, consensus: Tensor
) -> dict[float, Tensor]:
    """Return the mask of each budget by its factor: the largest weights of the consensus that it can afford.

    Each lies within the next larger one. Layers have their shares of the consensus.
    """
    masks = {1.0: consensus}
    shares = layer_counts(consensus, layers)
    within = consensus
    for factor in sorted({factor for _, factor in config.hetero if factor < 1}, reverse=True):
        within = projected_mask(config, layers, weights, within, shares, budget(config, layers.whole, factor))
        masks[factor] = within
    return masks
