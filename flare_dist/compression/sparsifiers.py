"""Sparsifiers: which entries of a segment are sent, and the exact selection of the largest magnitudes on a CPU.

Each is a function (vector, k, generator, threshold) -> sorted int64 indices, at most k of them; all but `threshold`
return exactly k. On a GPU the largest are those of gpu_selection.py or of torch.topk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flare_dist.compression.gpu_selection import largest_on_gpu
from flare_dist.compression.gpu_trial import pays
from flare_dist.compression.unwaited import largest_unwaited
from flare_dist.devices import moved_unwaited

_LONG = 2**16  # entries from which on a sample pays
_SAMPLE = 2**13  # entries of a sample at least
_LINE = 8  # entries that it takes together, half a line of the cache
_EVERY = 2039  # entries between two lines of a long vector's sample: prime, lest all be of one column of a matrix
_TILE = 2**17  # entries that are compared at once, half a megabyte
_ALL_INSIDE = np.int64(0x0101010101010101)  # eight true bools
_CHUNK = 2**20  # entries in which ties are looked for at once
_PARTITIONED = 2**22  # entries up to which numpy's partition is the faster one whatever they are
_NOT_FINITE = "values to select from are not finite"

Array = NDArray[Any]
Sparsifier = Callable[[Tensor, int, torch.Generator, float], Tensor]


class NotFiniteError(ValueError):
    """NaN or infinite values among those to select from."""


def topk(vector: Tensor, k: int, generator: torch.Generator, threshold: float = 0.0) -> Tensor:
    """Choose the k largest magnitudes."""
    return largest(vector, k)


def randk(vector: Tensor, k: int, generator: torch.Generator, threshold: float = 0.0) -> Tensor:
    """Draw k positions without replacement, independent of the values, which are sent unscaled."""
    return moved_unwaited(torch.randperm(vector.numel(), generator=generator)[:k].sort().values, vector.device)


def threshold_k(vector: Tensor, k: int, generator: torch.Generator, threshold: float = 0.0) -> Tensor:
    """Choose the entries whose magnitude is at least `threshold`; the k largest of them if there are more."""
    chosen = (vector.abs() >= threshold).nonzero().squeeze(1)
    if chosen.numel() <= k:
        return chosen
    return chosen[largest(vector[chosen], k)]


def largest(vector: Tensor, k: int) -> Tensor:
    """Select the k largest magnitudes as ascending int64 positions; ties go to the lowest index on every device.

    Exact, but of a long vector little is looked at twice (`_largest_of_long`). On a GPU nothing waits for the device,
    so that a hook can select in backward. Raises NotFiniteError on a CPU if a value is NaN or infinite.

    >>> largest(torch.tensor([0.1, -3.0, 2.0, -2.0]), 2)
    tensor([1, 2])
    """
    if vector.is_cuda:
        return largest_on_gpu(vector, k) if pays(vector) else largest_unwaited(vector.abs(), k)
    # numpy, which has no bfloat16, because its functions take a fraction of the time of torch's for few entries.
    array = (vector.float() if vector.dtype == torch.bfloat16 else vector.detach()).numpy()
    few_of_many = len(array) >= _LONG and 0 < 4 * k <= len(array)
    return torch.from_numpy(_largest_of_long(array, k) if few_of_many else _largest(np.abs(array), k))


def _largest_of_long(array: Array, k: int) -> Array:
    """Select by a bound from a sample that k entries should reach and few more.

    Whatever the sample is like, the result is right: if k entries reach a bound, the k largest are among them.
    """
    numel = len(array)
    every = min(_EVERY, numel * _LINE // _SAMPLE | 1)
    blocks = numel // every
    sample = np.abs(array[: blocks * every].reshape(blocks, every)[:, :_LINE]).ravel()
    expected = k * len(sample) / numel
    rank = math.ceil(expected + 4 * math.sqrt(expected) + 2)  # four standard deviations are once in 30,000 too few
    _check_magnitudes(sample)  # lest the bound be infinite, which nothing is above
    bound = _kth_largest(sample, rank)
    reached = _reaching(array, bound, 4 * rank * numel // len(sample))
    if reached is None and np.count_nonzero(sample == bound) > rank:  # it is the value of many
        reached = _reaching(array, bound, numel, above=True)
        if reached is not None and len(reached[0]) < k:
            _check_magnitudes(reached[1])
            return _with_first_ties(array, reached[0], bound, k)
    if reached is None or len(reached[0]) < k:  # the sample is like nothing else
        return _largest(np.abs(array), k)
    found, magnitudes = reached
    return found[_largest(magnitudes, k)]


def _reaching(array: Array, bound: float, most: int, above: bool = False) -> tuple[Array, Array] | None:
    """Find ascending positions of magnitudes that reach `bound`, or are `above` it, and those magnitudes; NaN as well.

    None if they are more than `most`. A tile's comparisons stay in the cache; if a word of eight of them has
    nothing in it, and nearly all have not, none is looked at.
    """
    limit = array.dtype.type(bound)
    less, greater = (np.less_equal, np.greater_equal) if above else (np.less, np.greater)
    inside = np.ones(_TILE, bool)
    other = np.empty(_TILE, bool)
    words = inside.view(np.int64)
    places = []
    open_words = []
    count = 0
    for start in range(0, len(array), _TILE):
        tile = array[start : start + _TILE]
        size = len(tile)
        less(tile, limit, out=inside[:size])
        np.logical_and(inside[:size], greater(tile, -limit, out=other[:size]), out=inside[:size])
        inside[size:] = True
        own = np.flatnonzero(words != _ALL_INSIDE)
        places.append(own + start // 8)
        open_words.append(words[own])
        count += len(own)
        if count > most:
            return None
    which = np.flatnonzero(~np.concatenate(open_words).view(bool))
    positions = 8 * np.concatenate(places)[which >> 3] + (which & 7)
    return positions, np.abs(array[positions])


def check_finite(vector: Tensor) -> None:
    """Raise NotFiniteError if a value is NaN or infinite; a tenth of the time of isfinite(). Waits for a GPU."""
    # A sum that is not finite may also be too large.
    if not (math.isfinite(vector.sum().item()) or vector.isfinite().all()):
        raise NotFiniteError(_NOT_FINITE)


def _check_magnitudes(magnitudes: Array) -> None:
    """Raise NotFiniteError for magnitudes on a CPU, by their maximum."""
    if len(magnitudes) and not math.isfinite(magnitudes.max()):
        raise NotFiniteError(_NOT_FINITE)


def _kth_largest(magnitudes: Array, k: int) -> float:
    """Find the k-th largest by numpy, faster than torch's topk but for long vectors that are nearly all ties."""
    if len(magnitudes) > _PARTITIONED:
        return float(torch.from_numpy(magnitudes).topk(k, sorted=False).values.amin())
    return float(np.partition(magnitudes, len(magnitudes) - k)[len(magnitudes) - k])


def _largest(magnitudes: Array, k: int) -> Array:
    """Select ascending positions of the k largest of `magnitudes`, on a CPU, the first of equals."""
    _check_magnitudes(magnitudes)
    if k in (0, len(magnitudes)):
        return np.arange(k)
    if k == 1:
        return magnitudes.argmax(0, keepdims=True)
    smallest_kept = _kth_largest(magnitudes, k)
    kept = np.flatnonzero(magnitudes >= smallest_kept)
    if len(kept) == k:
        return kept
    return _with_first_ties(magnitudes, np.flatnonzero(magnitudes > smallest_kept), smallest_kept, k)


def _with_first_ties(array: Array, above: Array, tie: float, k: int) -> Array:
    """Return the positions `above` and the first ones of magnitude `tie` that make them k, ascending."""
    tied = []
    left = k - len(above)
    for start in range(0, len(array), _CHUNK):  # if there are many only the beginning is looked at
        if left:
            found = np.flatnonzero(np.abs(array[start : start + _CHUNK]) == tie)[:left]
            tied.append(found + start)
            left -= len(found)
    return np.sort(np.concatenate([above, *tied]))


SPARSIFIERS: dict[str, Sparsifier] = {"topk": topk, "randk": randk, "threshold": threshold_k, "auto": topk}
