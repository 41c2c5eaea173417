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

from flare_dist.compression.selection import check_finite, largest, largest_unwaited
from flare_dist.layout import ParameterLayout


class Segment(NamedTuple):
    """A slice of the flat vector, `blocks` blocks of `numel` entries, of each of which `k` may be kept."""

    offset: int
    numel: int
    k: int
    blocks: int = 1


Count = Callable[[int, float], int]
Sparsifier = Callable[[Tensor, int, torch.Generator, float], Tensor]
Draws = Callable[[Segment], torch.Generator]


def count_kept(numel: int, density: float) -> int:
    """Return ceil(numel * density), with the density read as the decimal that is written (0.07 * 100 is 7, not 8)."""
    return math.ceil(numel * Decimal(repr(density)))


def count_in_paper(numel: int, density: float) -> int:
    """Return round(numel * density) + 1, halves to even, and never more than there are, as FLARE's code keeps."""
    return min(numel, round(numel * Decimal(repr(density))) + 1)


def tensor_segments(layout: ParameterLayout, density: float, count: Count, block: int = 0) -> list[Segment]:
    return [Segment(e.offset, e.numel, count(e.numel, density)) for e in layout.entries if e.numel]


def global_segments(layout: ParameterLayout, density: float, count: Count, block: int = 0) -> list[Segment]:
    return [Segment(0, layout.total, count(layout.total, density))] if layout.total else []


def block_segments(layout: ParameterLayout, density: float, count: Count, block: int = 4096) -> list[Segment]:
    """Divide each tensor into blocks of `block` entries, the last one shorter (SparseLoCo 2025)."""
    segments = []
    for entry in layout.entries:
        blocks, rest = divmod(entry.numel, block)
        if blocks:
            segments.append(Segment(entry.offset, block, count(block, density), blocks))
        if rest:
            segments.append(Segment(entry.end - rest, rest, count(rest, density)))
    return segments


def topk(vector: Tensor, k: int, generator: torch.Generator, threshold: float = 0.0) -> Tensor:
    """Choose the k largest magnitudes."""
    return largest(vector, k)


def randk(vector: Tensor, k: int, generator: torch.Generator, threshold: float = 0.0) -> Tensor:
    """Draw k positions without replacement, independent of the values, which are sent unscaled."""
    return torch.randperm(vector.numel(), generator=generator)[:k].sort().values.to(vector.device)


def threshold_k(vector: Tensor, k: int, generator: torch.Generator, threshold: float = 0.0) -> Tensor:
    """Choose the entries whose magnitude is at least `threshold`; the k largest of them if there are more."""
    chosen = (vector.abs() >= threshold).nonzero().squeeze(1)
    if chosen.numel() <= k:
        return chosen
    return chosen[largest(vector[chosen], k)]


def select(
    vector: Tensor, segments: list[Segment], sparsifier: Sparsifier, draws: Draws, threshold: float = 0.0
) -> Tensor:
    """Choose sorted int64 indices into `vector` (shape [total]), segment by segment; `vector` must be finite.

    `draws` gives the generator of each segment. Raises NotFiniteError on a CPU and by magnitude if `vector` is not
    finite.
    """
    chosen = [torch.empty(0, dtype=torch.int64, device=vector.device)]
    for segment in segments:
        offset, numel, k, blocks = segment
        generator = draws(segment)
        rows = vector[offset : offset + blocks * numel].view(blocks, numel)
        if blocks > 1 and sparsifier is topk:
            if not rows.is_cuda:
                check_finite(rows)
            chosen.append(largest_unwaited(rows.abs(), k) + offset)
        else:
            for place, row in enumerate(rows):
                chosen.append(sparsifier(row, k, generator, threshold) + (offset + place * numel))
    return torch.cat(chosen)


COUNTS: dict[str, Count] = {"ceil": count_kept, "paper": count_in_paper}
SCOPES: dict[str, Callable[..., list[Segment]]] = {
    "tensor": tensor_segments,
    "block": block_segments,
    "global": global_segments,
}
SPARSIFIERS: dict[str, Sparsifier] = {"topk": topk, "randk": randk, "threshold": threshold_k, "auto": topk}
