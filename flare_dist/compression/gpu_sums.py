"""Sums of what all ranks sent, on a GPU, in the order of the ranks, so that every rank gets the same bits.

Adding up all pairs at once by index_add_ would leave the order of equal positions to the device, and with it the bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TILE = 256  # pairs of a program


def add_row_by_row(total: Tensor, places: Tensor, values: Tensor, divisor: int) -> None:
    """Add `values` / `divisor`, float32 [rows, k], to `total` at `places`, row after row; no place is twice in a row.

    The divisor becomes a tensor, for by a number a GPU multiplies with its reciprocal, which rounds otherwise.
    """
    for place, value in zip(places, values / values.new_full((), divisor)):
        total.index_add_(0, place, value)


def add_runs(total: Tensor, places: Tensor, values: Tensor, divisor: int) -> None:
    """Do what `add_row_by_row` does in launches whose number does not depend on the rows; needs Triton.

    Sorted, the pairs of a position lie side by side, in the order of the rows.
    """
    from flare_dist.compression import gpu_sum_kernel as kernels

    if not places.numel():
        return
    ordered, order = places.flatten().int().sort(stable=True)
    sizes = (ordered.numel(), len(places), total.numel())
    grid = (-(-ordered.numel() // _TILE),)
    with torch.cuda.device_of(total):
        kernels.add_runs[grid](
            *(ordered, order, values.contiguous(), total, float(divisor), *sizes, _TILE),
            enable_fp_fusion=False,  # a sum is rounded after each value
        )
