"""Masks of a model: how many weights each layer keeps, and which.

A mask is a bool vector [total] over the flat parameters, true if a weight is active; what is not prunable always is.
If a host of several ranks has divided the model, [total] is a rank's part of it, and counts are of the whole layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal

import torch
from torch import Tensor

from flare_dist.compression.sparsifiers import largest
from flare_dist.layout import Entry
from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.layers import Layers

_CHUNK = 2**20  # entries of several masks that are compared at once


def empty_layer(entry: Entry, density: float) -> ValueError:
    """Make the error of a layer that would keep no weight."""
    return ValueError(
        f"sparse_training.density: {density:g} leaves none of the {entry.numel} weights of {entry.name}; choose more, "
        f"or keep it dense (sparse_training.exclude)"
    )


def sizes(entries: Sequence[Entry]) -> list[int]:
    return [entry.numel for entry in entries]


def budget(config: SparseTrainingConfig, entries: Sequence[Entry], factor: float = 1.0) -> int:
    """Count the weights of whole layers that are active at `factor` times the density, read as an exact decimal."""
    exact = Decimal(repr(float(config.density))) * Decimal(repr(float(factor)))
    return round(exact * sum(entry.numel for entry in entries))


def apportion(shares: Sequence[float], total: int, limits: Sequence[int]) -> list[int]:
    """Split `total` into whole numbers in proportion to `shares` (not negative), none above its limit.

    What a limit cuts off is shared among the others in the same proportion; fractions go to the largest remainders,
    the first of equals. They add up to less only if all limits do.
    """
    left = min(total, sum(limits))
    counts = [0] * len(limits)
    open_ = [place for place, share in enumerate(shares) if share > 0 and limits[place] > 0]
    while open_:
        weight = math.fsum(shares[place] for place in open_)
        full = [place for place in open_ if shares[place] * left >= limits[place] * weight]
        if not full:
            break
        for place in full:
            counts[place] = limits[place]
            left -= limits[place]
        open_ = [place for place in open_ if place not in full]
    if not open_:  # only those without a share have room
        rooms = [limit - count for limit, count in zip(limits, counts)]
        return [count + more for count, more in zip(counts, apportion(rooms, left, rooms))] if left else counts
    quotas = {place: shares[place] * left / weight for place in open_}
    for place, quota in quotas.items():
        counts[place] = math.floor(quota)
    short = left - sum(counts[place] for place in open_)
    for place in sorted(open_, key=lambda place: counts[place] - quotas[place])[:short]:
        counts[place] += 1
    return counts


def none_empty(counts: Sequence[int], limits: Sequence[int]) -> list[int]:
    """Give a layer that would get nothing one entry of the layer with most, so that none dies."""
    filled = list(counts)
    for place, limit in enumerate(limits):
        if not filled[place] and limit and max(filled) > 1:
            filled[filled.index(max(filled))] -= 1
            filled[place] = 1
    return filled


def layers_of(vector: Tensor, layers: Layers) -> Iterator[Tensor]:
    """Yield the slice of a flat vector that belongs to each layer."""
    return (vector[entry.offset : entry.end] for entry in layers.own)


def layer_counts(mask: Tensor, layers: Layers) -> list[int]:
    """Count the active weights of each layer."""
    return layers.host.sums([int(layer.count_nonzero()) for layer in layers_of(mask, layers)])


def everything_but(layers: Layers, total: int, device: torch.device) -> Tensor:
    """Return the mask in which no weight of the layers is active."""
    mask = torch.ones(total, dtype=torch.bool, device=device)
    for layer in layers_of(mask, layers):
        layer.zero_()
    return mask


def random_mask(
    layers: Layers, counts: Sequence[int], total: int, draws: torch.Generator, device: torch.device
) -> Tensor:
    """Draw a mask with so many active weights in each layer; every rank of a host draws the same."""
    mask = everything_but(layers, total, device)
    for number, (layer, count) in enumerate(zip(layers_of(mask, layers), counts)):
        places = random_places(layers.whole[number].numel, count, draws)
        layer[layers.own_places(number, places).to(device)] = True
    return mask


def bernoulli_mask(
    layers: Layers, densities: Sequence[float], total: int, draws: torch.Generator, device: torch.device
) -> Tensor:
    """Draw each weight by itself, with its layer's density as the probability (FLASH's code).

    Raises ValueError if a layer draws none.
    """
    mask = everything_but(layers, total, device)
    for number, (layer, density) in enumerate(zip(layers_of(mask, layers), densities)):
        entry = layers.whole[number]
        drawn = torch.rand(entry.numel, generator=draws) < density
        if not drawn.any():
            raise empty_layer(entry, density)
        layer.copy_(layers.own_part(number, drawn))
    return mask


def random_places(numel: int, count: int, draws: torch.Generator) -> Tensor:
    """Draw `count` different numbers below `numel` on the CPU, in no order."""
    if count * 4 > numel:
        return torch.randperm(numel, generator=draws)[:count]
    # A few are drawn again and again until enough differ: most of a long layer is never touched.
    places = torch.empty(0, dtype=torch.int64)
    while len(places) < count:
        drawn = torch.randint(numel, (count - len(places) + 16,), generator=draws)
        places = torch.cat([places, drawn]).unique()
    return places[torch.randperm(len(places), generator=draws)[:count]]


def largest_mask(weights: Tensor, layers: Layers, counts: Sequence[int], within: Tensor) -> Tensor:
    """Keep each layer's largest magnitudes, so many of them, among those active in the mask `within`.

    Ties go to the lowest index; counts must not exceed what `within` has.
    """
    mask = within.clone()
    for layer, count, values in zip(layers_of(mask, layers), counts, layers_of(weights, layers)):
        keep_largest(layers, layer, values, count)
    return mask


def keep_largest(layers: Layers, layer: Tensor, values: Tensor, count: int) -> None:
    """Keep so many of a layer's active weights, those of the largest `values`, in place.

    `layer` and `values` are this rank's part of its mask and of what is compared.
    """

    def choice(magnitudes: Tensor) -> Tensor:
        assert count <= len(magnitudes), "more weights are to be kept than there are"
        return largest(magnitudes, count)

    if count:
        keep_chosen(layers, layer, values, choice)
    else:
        layer.zero_()


def keep_chosen(layers: Layers, layer: Tensor, values: Tensor, choice: Callable[[Tensor], Tensor]) -> None:
    """Keep of a layer's active weights those that `choice` finds among their `values` on all ranks, in place."""
    candidates = layer.nonzero().squeeze(1)
    layer.zero_()
    layer[candidates[layers.choose(values[candidates], choice)]] = True


def mask_mismatch(masks: Sequence[Tensor], layers: Layers) -> float:
    """Average the Jaccard distance 1 - |a and b| / |a or b| over pairs of masks, of the prunable weights; 0 for one."""
    if len(masks) < 2:
        return 0.0
    both = torch.zeros(len(masks), len(masks), dtype=torch.float64, device=masks[0].device)
    for entry in layers.own:
        for start in range(entry.offset, entry.end, _CHUNK):
            rows = torch.stack([mask[start : min(start + _CHUNK, entry.end)] for mask in masks]).float()
            both += rows @ rows.T  # whole numbers below 2^24: exact
    layers.host.sum_(both)
    sizes = both.diagonal()
    distances = 1 - both / (sizes[:, None] + sizes - both).clamp_(min=1)
    first, second = torch.triu_indices(len(masks), len(masks), offset=1)
    return float(distances[first, second].mean())


def drop_outside(vectors: Sequence[Tensor], mask: Tensor) -> int:
    """Zero the vectors outside the mask, in place; returns how many entries were not zero there."""
    dropped = 0
    for vector in vectors:
        before = int(vector.count_nonzero())
        vector.mul_(mask)
        dropped += before - int(vector.count_nonzero())
    return dropped
