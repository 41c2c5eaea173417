"""Assignment of masks: which weights each client of a round trains, and how its payload is encoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from flare_dist.compression.compressor import Compressor
from flare_dist.compression.masked import Limits, MaskedEncoding
from flare_dist.sparse_training import flash
from flare_dist.sparse_training.consensus import Masks
from flare_dist.sparse_training.masks import budget, layer_counts, sizes
from flare_dist.sparse_training.schedule import Moves


@dataclass(frozen=True)
class Assignment:
    """One client's share of a round of sparse models."""

    encoding: MaskedEncoding  # of its payload, with the mask to start with
    budget: int  # prunable weights that are to be active after a mask update
    rates: dict[int, float]  # the local steps after which the mask is updated, and the share that is removed


def assign(
    masks: Masks,
    compressor: Compressor,
    round_: int,
    moves: Moves,
    steps: Mapping[int, tuple[int, int]],
    parameters: Tensor,
) -> dict[int, Assignment]:
    """Assign each client its mask, by its (local steps, steps of an epoch).

    Clients with the same mask and steps share an encoding.
    """
    factors = dict.fromkeys(steps, 1.0)
    nested = {1.0: masks.mask}
    if masks.config.hetero:
        factors = flash.budgets_of(masks.config, list(steps), round_, masks.seed)
        nested = flash.nested_masks(masks.config, masks.layers, parameters, masks.mask)
    is_common = not moves.clients and set(factors.values()) == {1.0}
    encodings: dict[tuple[float, int, int], MaskedEncoding] = {}
    assigned = {}
    for client, (count, epoch) in steps.items():
        factor = factors[client]
        keep = budget(masks.config, masks.layers.whole, factor)
        rates = moves.rates(count, epoch)
        kind = (factor, count if rates else 0, client if masks.method.is_personal else -1)
        if kind not in encodings:
            mask = masks.personal(client) if masks.method.is_personal else nested[factor]
            limits = limits_of(masks, mask, keep, rates) if rates else None
            encodings[kind] = MaskedEncoding(compressor, round_, mask, limits, is_common)
        assigned[client] = Assignment(encodings[kind], keep, rates)
    return assigned


def limits_of(masks: Masks, mask: Tensor, keep: int, rates: Mapping[int, float]) -> Limits:
    """Bound what updates at these rates make of a mask, of whose prunable weights `keep` are to be active.

    All that changes may lie in this rank's part of the layers.
    """
    rounding = len(masks.layers.whole)
    prunable = sum(sizes(masks.layers.own))
    dense = masks.total - prunable
    active = sum(layer_counts(mask, masks.layers))
    own = int(mask.count_nonzero()) - dense
    most = max(active, keep)
    removed = min(active, sum(int(rate * most) + 1 for rate in rates.values()))
    grown = removed + max(0, keep - active) + rounding
    return Limits(min(own, removed), min(prunable - own, grown), dense + min(most + rounding, own + grown))
