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

_STRIP = 2**13  # columns whose peaks are taken at once; a megabyte, for the second reading to find it in the cache
_CHUNK = 2**20  # entries in which ties are looked for at once
_ROWS = (24, 16, 8)  # fewer the more is kept: three quarters of the columns, at least, are never looked into


class Segment(NamedTuple):
    """A slice of the flat vector, `blocks` blocks of `numel` entries, of each of which `k` may be kept."""

    offset: int
    numel: int
    k: int
    blocks: int = 1


class NotFiniteError(ValueError):
    """NaN or infinite values where the largest are to be selected."""


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

    Exact, but of a long vector little is looked at twice (`_largest_of_matrix`). On a GPU nothing waits for the device,
    so that a hook can select in backward. Raises NotFiniteError on a CPU where a value is NaN or infinite.
    """
    if vector.is_cuda:
        return largest_on_gpu(vector, k) if pays(vector) else largest_unwaited(vector.abs(), k)
    rows = next((rows for rows in _ROWS if 0 < 4 * k * rows <= vector.numel()), 0)
    if vector.numel() < 2**16 or not rows:
        magnitudes = vector.abs()
        check_finite(magnitudes)
        return _largest(magnitudes, k)
    matrix, rest = vector.split([vector.numel() // rows * rows, vector.numel() % rows])
    check_finite(rest)
    chosen = _largest_of_matrix(matrix.view(rows, -1), k)
    if rest.numel() and rest.abs().amax() > vector[chosen].abs().amin():
        chosen = torch.cat([chosen, torch.arange(matrix.numel(), vector.numel())])
        chosen = chosen[_largest(vector[chosen].abs(), k)]
    return chosen


def _largest_of_matrix(matrix: Tensor, k: int) -> Tensor:
    """The same of a matrix of a few long rows, as positions in all of it.

    A column's peak is its largest magnitude. The k-th largest peak is a lower bound on the k-th largest magnitude,
    since k columns reach it, and what reaches it lies in those columns. Rows are long so that peaks are taken at the
    speed of memory.
    """
    width = matrix.shape[1]
    peaks = matrix.new_empty(width)
    for strip, own in zip(matrix.split(_STRIP, 1), peaks.split(_STRIP)):
        torch.maximum(strip.amax(0), strip.amin(0).neg_(), out=own)
    check_finite(peaks)  # NaN goes through maxima
    bound = _kth_largest(peaks, k)
    columns = _places(peaks >= bound)
    many_ties = columns.numel() > 2 * k
    if many_ties:
        columns = _places(peaks > bound)  # fewer than k
    magnitudes = matrix.index_select(1, columns).abs_().flatten()
    above = _places(magnitudes > bound) if many_ties else None
    kept = _largest(magnitudes, k) if above is None or above.numel() >= k else above
    row = kept.div(max(1, columns.numel()), rounding_mode="floor")
    positions = row * width + columns[kept - row * columns.numel()]
    return positions if kept.numel() == k else _with_first_ties(matrix.view(-1), positions, bound, k)


def check_finite(vector: Tensor) -> None:
    """Raise NotFiniteError where a value is NaN or infinite; a tenth of the time of isfinite(). Waits for a GPU."""
    # A sum that is not finite may also be too large.
    if not (math.isfinite(vector.sum().item()) or vector.isfinite().all()):
        raise NotFiniteError("values to select from are not finite")


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
    kept = np.flatnonzero(magnitudes.numpy() >= smallest_kept)
    if len(kept) == k:
        return torch.from_numpy(kept)
    return _with_first_ties(magnitudes, _places(magnitudes > smallest_kept), smallest_kept, k)


def _with_first_ties(vector: Tensor, above: Tensor, tie: float, k: int) -> Tensor:
    """The positions `above` and the first ones of magnitude `tie` that make them k, ascending."""
    tied, left = [], k - above.numel()
    for start in range(0, vector.numel(), _CHUNK):  # where there are many only the beginning is looked at
        if left:
            found = _places(vector[start : start + _CHUNK].abs() == tie)[:left]
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
    """Sorted int64 indices into `vector` (shape [total]), chosen segment by segment; `vector` must be finite.

    Raises NotFiniteError where it is not, on a CPU and by magnitude.
    """
    chosen = [torch.empty(0, dtype=torch.int64, device=vector.device)]
    for offset, numel, k, blocks in segments:
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
