"""Exact top-k on a GPU by operations of PyTorch: for short vectors, for blocks, and wherever Triton does not work.

Nothing waits for the device, and results have sizes known beforehand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flare_dist.compression.bits import positions_unwaited

_CHUNK = 2**22  # entries that are looked at together: it takes about thrice their memory
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def largest_unwaited(magnitudes: Tensor, k: int) -> Tensor:
    """Select the k largest, the first of equals; of [rows, numel] k of each row, as ascending positions in all of them.

    Magnitudes are compared by their bits, by which NaN is the largest: there are always k positions.
    """
    keys = magnitudes.view(_INTEGERS[magnitudes.element_size()])
    rows = keys.view(-1, keys.shape[-1])
    numel = rows.shape[-1]
    at_once = max(1, _CHUNK // numel)
    chosen = [_of_rows(rows[start : start + at_once], k) + start * numel for start in range(0, len(rows), at_once)]
    return chosen[0] if len(chosen) == 1 else torch.cat(chosen)


def _of_rows(rows: Tensor, k: int) -> Tensor:
    """Select the k largest integers of each row, the first of equals, as ascending positions in all of them."""
    if len(rows) == 1 and rows.numel() > _CHUNK:
        return _of_long(rows[0], k)
    smallest_kept = rows.topk(k, sorted=False).values.amin(-1, keepdim=True)
    above = rows > smallest_kept
    tied = rows == smallest_kept
    kept = above | (tied & (tied.cumsum(-1, dtype=torch.int32) <= k - above.sum(-1, keepdim=True)))
    return positions_unwaited(kept.flatten(), k * len(rows))


def _of_long(keys: Tensor, k: int) -> Tensor:
    """Select as `_of_rows` of one row, a part of it at a time."""
    smallest_kept = keys.topk(k, sorted=False).values.amin()
    parts = keys.split(_CHUNK)
    room = k - torch.stack([(part > smallest_kept).sum() for part in parts]).sum()  # for ties
    found = torch.empty(k + 1, dtype=torch.int64, device=keys.device)
    done = torch.zeros((), dtype=torch.int64, device=keys.device)
    for number, part in enumerate(parts):
        tied = part == smallest_kept
        ties = tied.cumsum(0)
        kept = (part > smallest_kept) | (tied & (ties <= room))
        counted = kept.cumsum(0) + done
        places = torch.where(kept, counted - 1, k)  # those not wanted: behind the end
        start = number * _CHUNK
        found.scatter_(0, places, torch.arange(start, start + part.numel(), device=keys.device))
        room = room - ties[-1]
        done = counted[-1]
    return found[:k]
