"""The percentile of a vector's magnitudes that decides where FLARE pulls: a nearest rank, exact, in one pass."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

_CHUNK = 2**16  # entries that stay in the processor's cache
_SAMPLE = 2**16


def magnitude_percentile(vector: Tensor, percentile: float) -> float:
    """Return the entry of |vector| (shape [n]) at place round(percentile / 100 * (n - 1)) of its ascending order.

    This nearest-rank rule is that of FLARE's code; `torch.quantile` interpolates and refuses more than 16 M entries.
    """
    place = round(percentile / 100 * (vector.numel() - 1))
    if vector.device.type != "cpu":
        return float(vector.abs().kthvalue(place + 1).values)
    if vector.numel() > 4 * _SAMPLE:
        found = _in_bracket(vector.numpy(), place)
        if found is not None:
            return found
    return float(np.partition(np.abs(vector.numpy()), place)[place])


def _in_bracket(vector: np.ndarray, place: int) -> float | None:
    """Look for the entry between two bounds that a random sample suggests; None if it lies outside.

    A pass over a long vector costs as much as its memory; sorting out the few entries in the bracket costs nothing.
    """
    sample = np.abs(vector[np.random.default_rng(0).integers(vector.size, size=_SAMPLE)])
    share = place / vector.size
    margin = 4 * math.sqrt(_SAMPLE * share * (1 - share)) + 4  # standard deviations of the place in the sample
    first = max(0, math.floor(share * _SAMPLE - margin))
    last = min(_SAMPLE - 1, math.ceil(share * _SAMPLE + margin))
    low, high = np.partition(sample, (first, last))[[first, last]]
    below = 0
    inside = []
    magnitudes = np.empty(_CHUNK, vector.dtype)
    mask = np.empty(_CHUNK, bool)
    for start in range(0, vector.size, _CHUNK):
        chunk = vector[start : start + _CHUNK]
        size = chunk.size
        np.abs(chunk, out=magnitudes[:size])
        below += int(np.count_nonzero(np.less(magnitudes[:size], low, out=mask[:size])))
        np.logical_not(mask[:size], out=mask[:size])
        mask[:size] &= magnitudes[:size] <= high
        inside.append(magnitudes[:size][mask[:size]])
    candidates = np.concatenate(inside)
    if not below <= place < below + candidates.size:
        return None
    return float(np.partition(candidates, place - below)[place - below])
