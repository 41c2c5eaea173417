"""Sparsifiers: which entries of a vector are sent.

Each is a function (vector, k, generator, threshold) -> sorted int64 indices, at most k of them; all but `threshold`
return exactly k. `select` applies one of them to each segment of a flat vector: to every tensor, or to the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple

import torch
from torch import Tensor

from flare_dist.layout import ParameterLayout


class Segment(NamedTuple):
    """A slice of the flat vector, and how many of its entries may be kept."""

    offset: int
    numel: int
    k: int


Sparsifier = Callable[[Tensor, int, torch.Generator, float], Tensor]


def count_kept(numel: int, density: float) -> int:
    """ceil(numel * density) with the density read as the decimal that the user wrote (0.07 * 100 is 7, not 8)."""
    return math.ceil(numel * Decimal(repr(density)))


def tensor_segments(layout: ParameterLayout, density: float) -> list[Segment]:
    return [Segment(e.offset, e.numel, count_kept(e.numel, density)) for e in layout.entries if e.numel]


def global_segments(layout: ParameterLayout, density: float) -> list[Segment]:
    return [Segment(0, layout.total, count_kept(layout.total, density))]


def topk(vector: Tensor, k: int, generator: torch.Generator, threshold: float = 0.0) -> Tensor:
    """The k largest magnitudes; ties go to the lowest index, so that every device and thread count agrees."""
    if k == vector.numel():
        return torch.arange(k, device=vector.device)
    magnitudes = vector.abs()
    smallest_kept = magnitudes.topk(k, sorted=False).values.amin()
    above = (magnitudes > smallest_kept).nonzero().squeeze(1)
    tied = (magnitudes == smallest_kept).nonzero().squeeze(1)[: k - above.numel()]
    return torch.cat([above, tied]).sort().values


def randk(vector: Tensor, k: int, generator: torch.Generator, threshold: float = 0.0) -> Tensor:
    """k positions drawn without replacement, independent of the values, which are sent unscaled."""
    return torch.randperm(vector.numel(), generator=generator)[:k].sort().values.to(vector.device)


def threshold_k(vector: Tensor, k: int, generator: torch.Generator, threshold: float = 0.0) -> Tensor:
    """The entries whose magnitude is at least `threshold`; the k largest of them where there are more."""
    chosen = (vector.abs() >= threshold).nonzero().squeeze(1)
    if chosen.numel() <= k:
        return chosen
    return chosen[topk(vector[chosen], k, generator)]


def select(
    vector: Tensor, segments: list[Segment], sparsifier: Sparsifier, generator: torch.Generator, threshold: float = 0.0
) -> Tensor:
    """Sorted int64 indices into `vector` (shape [total]), chosen segment by segment; `vector` must be finite."""
    return torch.cat(
        [sparsifier(vector[s.offset : s.offset + s.numel], s.k, generator, threshold) + s.offset for s in segments]
    )


SCOPES: dict[str, Callable[[ParameterLayout, float], list[Segment]]] = {
    "tensor": tensor_segments,
    "global": global_segments,
}
SPARSIFIERS: dict[str, Sparsifier] = {"topk": topk, "randk": randk, "threshold": threshold_k}
