"""Pruning before training: its settings, and the mask of the weights that score highest.

How weights are scored is in criteria.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flare_dist.errors import check_choice, check_least, check_range
from flare_dist.layout import Entry
from flare_dist.sparse_training.criteria import CRITERIA
from flare_dist.sparse_training.layers import Layers
from flare_dist.sparse_training.masks import apportion, keep_chosen, layer_counts, layers_of, none_empty

SCOPES = ("global", "erk", "uniform")
DATA = ("clients", "server")


@dataclass(frozen=True)
class PruningConfig:
    """By which score the weights of sparse_training.method pruned are chosen, before the first round.

    Args:
        criterion: magnitude, random, snip, grasp, synflow or threshold (gradients of at least `threshold`, at most
            sparse_training.density of the weights).
        scope: global (the highest scores of the whole model), erk (each layer's share by Erdos-Renyi-Kernel: thin
            layers are denser) or uniform (the same density in each layer).
        steps: in how many steps the density falls to its end, exponentially, scores being taken anew in each; SynFlow
            takes 100.
        data: whose data criteria look at: clients (they send gradients, which the server averages) or server (the
            examples that data.validation holds out).
        frac: share of all clients that are asked, in (0, 1].
        batches: mini-batches that each of them, or the server, looks at.
        threshold: smallest gradient that the threshold criterion keeps.
    """

    criterion: str = "snip"
    scope: str = "global"
    steps: int = 1
    data: str = "clients"
    frac: float = 0.05
    batches: int = 1
    threshold: float = 0.01

    def __post_init__(self) -> None:
        for name, known in {"criterion": CRITERIA, "scope": SCOPES, "data": DATA}.items():
            check_choice(f"pruning.{name}", getattr(self, name), known)
        check_least("pruning.steps", self.steps, 1)
        check_least("pruning.batches", self.batches, 1)
        check_range("pruning.frac", self.frac, "(0, 1]")
        check_least("pruning.threshold", self.threshold, 0)

    @property
    def looks_at_data(self) -> bool:
        return CRITERIA[self.criterion].needs_data


def layer_shares(scope: str, entries: Sequence[Entry]) -> list[float] | None:
    """Return each layer's share of the weights; None if scores alone decide.

    ERK (Evci et al. 2020): d_l in proportion to the sum of a layer's sizes over their product, n_l.
    """
    if scope == "global":
        return None
    return [float(sum(entry.shape) if scope == "erk" else entry.numel) for entry in entries]


def highest(scores: Tensor, layers: Layers, keep: int, mask: Tensor, shares: Sequence[float] | None) -> Tensor:
    """Keep the `keep` highest scores among what is active in `mask`, at least one in each layer.

    `scores` are float32 [total]; ties go to the lowest index. With `shares` each layer keeps its own part.
    """
    actives = layer_counts(mask, layers)
    counts = _global_counts(scores, layers, keep, mask, actives) if shares is None else apportion(shares, keep, actives)
    counts = none_empty(counts, actives)
    kept = mask.clone()
    for layer, values, count in zip(layers_of(kept, layers), layers_of(scores, layers), counts):
        keep_chosen(layers, layer, values, partial(_first_by_score, count=count))
    return kept


def _global_counts(scores: Tensor, layers: Layers, keep: int, mask: Tensor, actives: Sequence[int]) -> list[int]:
    """Count in each layer what is among the `keep` highest scores of all together; ties go to the first layers."""
    if keep >= sum(actives):
        return list(actives)
    allowed = [layer[own] for layer, own in zip(layers_of(scores, layers), layers_of(mask, layers))]
    bound = layers.kth_largest(torch.cat(allowed), keep)
    counts = layers.host.sums([int((layer > bound).sum()) for layer in allowed])
    tied = layers.host.sums([int((layer == bound).sum()) for layer in allowed])
    for place, own in enumerate(tied):
        counts[place] += min(own, keep - sum(counts))
    return counts


def _first_by_score(scores: Tensor, count: int) -> Tensor:
    """Return the places of the highest scores, the first of equals."""
    return torch.argsort(scores, descending=True, stable=True)[:count]
