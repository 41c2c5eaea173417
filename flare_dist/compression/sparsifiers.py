"""Sparsifiers: which entries of a vector are sent.

Each is a function (vector, k, generator, threshold) -> sorted int64 indices, at most k of them; all but `threshold`
return exactly k. `select` applies one of them to each segment of a flat vector: to every tensor, or to the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flare_dist.compression.bits import positions_unwaited
from flare_dist.compression.gpu_selection import largest_on_gpu, pays
from flare_dist.layout import ParameterLayout

_CHUNK = 2**20  # entries in which ties are looked for at once
_ROWS = 32  # entries of a column of which only the largest is looked at first


class Segment(NamedTuple):
    """A slice of the flat vector, `blocks` blocks of `numel` entries, of each of which `k` may be kept."""

    offset: int
    numel: int
    k: int
    blocks: int = 1


Count = Callable[[int, float], int]
Sparsifier = Callable[[Tensor, int, torch.Generator, float], Tensor]


def count_kept(numel: int, density: float) -> int:
    """ceil(numel * density) with the density read as the decimal that the user wrote (0.07 * 100 is 7, not 8)."""
    return math.ceil(numel * Decimal(repr(density)))


def count_in_paper(numel: int, density: float) -> int:
    """round(numel * density) + 1, halves to even, and never more than there are: what FLARE's code keeps."""
    return min(numel, round(numel * Decimal(repr(density))) + 1)


def tensor_segments(layout: ParameterLayout, density: float, count: Count, block: int = 0) -> list[Segment]:
    return [Segment(e.offset, e.numel, count(e.numel, density)) for e in layout.entries if e.numel]


def global_segments(layout: ParameterLayout, density: float, count: Count, block: int = 0) -> list[Segment]:
    return [Segment(0, layout.total, count(layout.total, density))] if layout.total else []


def block_segments(layout: ParameterLayout, density: float, count: Count, block: int = 4096) -> list[Segment]:
    """Each tensor in blocks of `block` entries, the last one shorter (SparseLoCo 2025)."""
    segments = []
    for entry in layout.entries:
        blocks, rest = divmod(entry.numel, block)
        if blocks:
            segments.append(Segment(entry.offset, block, count(block, density), blocks))
        if rest:
            segments.append(Segment(entry.end - rest, rest, count(rest, density)))
    return segments


def topk(vector: Tensor, k: int, generator: torch.Generator, threshold: float = 0.0) -> Tensor:
    """The k largest magnitudes."""
    return largest(vector, k)


def largest(vector: Tensor, k: int) -> Tensor:
    """Ascending int64 positions of the k largest magnitudes; ties go to the lowest index, for every device to agree.

    Exact, but most of a long vector is read only once: columns of `_ROWS` entries, a long way apart so that the maxima
    are taken at the speed of memory, are looked into only where the largest reaches a bound that a sample suggests.
    On a GPU nothing waits for the device, so that a hook can select in backward.
    """
    if vector.is_cuda:
        return largest_on_gpu(vector, k) if pays(vector) else largest_unwaited(vector.abs(), k)
    if vector.numel() < 2**16 or k * 16 > vector.numel():
        return _largest(vector.abs(), k)
    width = vector.numel() // _ROWS
    rows, rest = vector[: _ROWS * width].view(_ROWS, width), vector[_ROWS * width :]
    peaks = torch.maximum(rows.amax(0), rows.amin(0).neg_())
    bound = _sampled_bound(vector, k)
    columns = _places(peaks >= bound)
    if columns.numel() * _ROWS * 2 > vector.numel():  # ties everywhere: looking into columns would save nothing
        return _largest(vector.abs(), k)
    candidates = rows.index_select(1, columns).abs_().flatten()
    kept = _places(candidates >= bound)
    row = kept.div(columns.numel(), rounding_mode="floor")
    positions = torch.cat(
        [row * width + columns[kept - row * columns.numel()], torch.arange(len(rest)) + _ROWS * width]
    )
    if positions.numel() < k:  # the sample misled
        return _largest(vector.abs(), k)
    return positions[_largest(torch.cat([candidates[kept], rest.abs()]), k)]


def _sampled_bound(vector: Tensor, k: int, size: int = 2**17) -> float:
    """Most likely a lower bound on the k-th largest magnitude: four standard deviations below a sample's estimate."""
    sample = vector[:: max(1, vector.numel() // size)].abs()
    expected = sample.numel() * k / vector.numel()
    return _kth_largest(sample, min(sample.numel(), math.ceil(expected + 4 * math.sqrt(expected))))


def _kth_largest(magnitudes: Tensor, k: int) -> float:
    """numpy's partition takes a fraction of the time of torch's topk, but for long vectors that are nearly all ties."""
    array = magnitudes.numpy()
    if len(array) > 2**22:
        return float(magnitudes.topk(k, sorted=False).values.amin())
    return float(np.partition(array, len(array) - k)[len(array) - k])


def _places(mask: Tensor) -> Tensor:
    """Ascending int64 positions where a bool vector is true; several times as fast as nonzero() on a CPU."""
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def _largest(magnitudes: Tensor, k: int) -> Tensor:
    """Ascending positions of the k largest of `magnitudes`, on a CPU, the first of equals."""
    if k in (0, magnitudes.numel()):
        return torch.arange(k)
    smallest_kept = _kth_largest(magnitudes, k)
    above = _places(magnitudes > smallest_kept)
    tied, left = [], k - above.numel()
    for start in range(0, magnitudes.numel(), _CHUNK):  # of a vector of ties only the beginning is looked at
        if left:
            found = _places(magnitudes[start : start + _CHUNK] == smallest_kept)[:left]
            tied.append(found + start)
            left -= found.numel()
    return torch.cat([above, *tied]).sort().values


def largest_unwaited(magnitudes: Tensor, k: int) -> Tensor:
    """The same as `_largest` without waiting for a GPU; of [rows, numel] k of each row, as positions in all of them."""
    smallest_kept = magnitudes.topk(k, sorted=False).values.amin(-1, keepdim=True)
    above, tied = magnitudes > smallest_kept, magnitudes == smallest_kept
    kept = above | (tied & (tied.cumsum(-1) <= k - above.sum(-1, keepdim=True)))
    return positions_unwaited(kept.flatten(), k * magnitudes[..., 0].numel())


def randk(vector: Tensor, k: int, generator: torch.Generator, threshold: float = 0.0) -> Tensor:
    """k positions drawn without replacement, independent of the values, which are sent unscaled."""
    return torch.randperm(vector.numel(), generator=generator)[:k].sort().values.to(vector.device)


def threshold_k(vector: Tensor, k: int, generator: torch.Generator, threshold: float = 0.0) -> Tensor:
    """The entries whose magnitude is at least `threshold`; the k largest of them where there are more."""
    chosen = (vector.abs() >= threshold).nonzero().squeeze(1)
    if chosen.numel() <= k:
        return chosen
    return chosen[largest(vector[chosen], k)]


def select(
    vector: Tensor, segments: list[Segment], sparsifier: Sparsifier, generator: torch.Generator, threshold: float = 0.0
) -> Tensor:
    """Sorted int64 indices into `vector` (shape [total]), chosen segment by segment; `vector` must be finite."""
    chosen = [torch.empty(0, dtype=torch.int64, device=vector.device)]
    for offset, numel, k, blocks in segments:
        rows = vector[offset : offset + blocks * numel].view(blocks, numel)
        if blocks > 1 and sparsifier is topk:
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
