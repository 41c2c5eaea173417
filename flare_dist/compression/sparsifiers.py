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

_LONG = 2**16  # entries from which on a sample pays
_LINE = 16  # entries that a sample takes together, a line of the cache
_EVERY = (
    1021  # entries from one line of a sample to the next: a prime, for not all to be of the same column of a matrix
)
_TILE = 2**17  # entries that are compared at once, half a megabyte
_ALL_INSIDE = np.int64(0x0101010101010101)  # eight true bools
_CHUNK = 2**20  # entries in which ties are looked for at once


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

    Exact, but of a long vector little is looked at twice (`_largest_of_long`). On a GPU nothing waits for the device,
    so that a hook can select in backward. Raises NotFiniteError on a CPU where a value is NaN or infinite.
    """
    if vector.is_cuda:
        return largest_on_gpu(vector, k) if pays(vector) else largest_unwaited(vector.abs(), k)
    if vector.numel() >= _LONG and 0 < 4 * k <= vector.numel():
        return _largest_of_long(vector, k)
    magnitudes = vector.abs()
    check_finite(magnitudes)
    return _largest(magnitudes, k)


def _largest_of_long(vector: Tensor, k: int) -> Tensor:
    """The same by a bound that k entries should reach and few more, from a sample of one in 64.

    Whatever the sample is like, the result is right: where k entries reach a bound, the k largest are among them.
    """
    every = min(_EVERY, vector.numel() // 1024 | 1)
    blocks = vector.numel() // every
    sample = vector[: blocks * every].view(blocks, every)[:, :_LINE].abs().flatten()
    check_finite(sample)
    expected = k * sample.numel() / vector.numel()
    rank = math.ceil(expected + 4 * math.sqrt(expected) + 2)  # four standard deviations are once in 30,000 too few
    bound = _kth_largest(sample, rank)
    most = 4 * rank * vector.numel() // sample.numel()
    found, magnitudes = _reaching(vector, bound, most)
    if found.numel() > most:  # the bound is too low, or the value of many
        found, magnitudes = _reaching(vector, bound, vector.numel(), above=True)
        if found.numel() < k:
            check_finite(magnitudes)
            return _with_first_ties(vector, found, bound, k)
    check_finite(magnitudes)
    return found[_largest(magnitudes, k)] if found.numel() >= k else _largest(vector.abs(), k)


def _reaching(vector: Tensor, bound: float, most: int, above: bool = False) -> tuple[Tensor, Tensor]:
    """Ascending positions of magnitudes that reach `bound`, or are `above` it, and those magnitudes; of NaN as well.

    It ends where more than `most` are found. A tile's comparisons stay in the cache; where a word of eight of them has
    nothing in it, and nearly all have not, none is looked at.
    """
    array = vector.numpy()
    limit = array.dtype.type(bound)
    less, greater = (np.less_equal, np.greater_equal) if above else (np.less, np.greater)
    inside, other = np.ones(_TILE, bool), np.empty(_TILE, bool)
    words, bits = inside.view(np.int64), inside.reshape(-1, 8)
    positions, values, count = [], [], 0
    for start in range(0, len(array), _TILE):
        tile = array[start : start + _TILE]
        size = len(tile)
        less(tile, limit, out=inside[:size])
        np.logical_and(inside[:size], greater(tile, -limit, out=other[:size]), out=inside[:size])
        inside[size:] = True
        open_words = np.flatnonzero(words != _ALL_INSIDE)
        which = np.flatnonzero(~bits[open_words])
        own = 8 * open_words[which // 8] + which % 8
        positions.append(own + start)
        values.append(np.abs(tile[own]))
        count += len(own)
        if count > most:
            break
    return torch.from_numpy(np.concatenate(positions)), torch.from_numpy(np.concatenate(values))


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
