"""Exact selection of the largest magnitudes on a CPU; on a GPU, of those of gpu_selection.py or of torch.topk."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from flare_dist.compression.bits import positions_unwaited
from flare_dist.compression.gpu_selection import largest_on_gpu, pays

_LONG = 2**16  # entries from which on a sample pays
_LINE = 16  # entries that a sample takes together, a line of the cache
_EVERY = 1021  # entries between two lines of a long vector's sample: prime, lest all be of one column of a matrix
_TILE = 2**17  # entries that are compared at once, half a megabyte
_ALL_INSIDE = np.int64(0x0101010101010101)  # eight true bools
_CHUNK = 2**20  # entries in which ties are looked for at once
_PARTITIONED = 2**22  # entries up to which numpy's partition is the faster one whatever they are


class NotFiniteError(ValueError):
    """NaN or infinite values where the largest are to be selected."""


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
    """The same by a bound that k entries should reach and few more, from a sample.

    That is about 16,000 entries, or one in 64 where that is more. Whatever it is like, the result is right: where k
    entries reach a bound, the k largest are among them.
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
    if len(array) > _PARTITIONED:
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
