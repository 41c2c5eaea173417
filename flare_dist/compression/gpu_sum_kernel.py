"""The Triton kernel of `gpu_sums`: sums of what all ranks sent, in the order of the ranks."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["pairs", "rows", "size"])
def add_runs(ordered, order, values, total, divisor, pairs, rows, size, tile: tl.constexpr):
    """Add the values of each run of equal positions, at most `rows`, in their order, by the lane at its first.

    Each is divided first, and rounded as a CPU rounds. Positions outside, which damage leads to, are left out.
    """
    lanes = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    place = tl.load(ordered + lanes, mask=lanes < pairs, other=-1)
    before = tl.load(ordered + lanes - 1, mask=(lanes < pairs) & (lanes > 0), other=-1)
    begins = (lanes < pairs) & (place != before) & (place >= 0) & (place < size)
    goes_on = begins
    run = tl.load(total + place, mask=begins, other=0.0)
    for row in range(rows):
        inside = goes_on & (lanes + row < pairs)
        goes_on = inside & (tl.load(ordered + lanes + row, mask=inside, other=-1) == place)
        source = tl.load(order + lanes + row, mask=goes_on, other=0)
        share = tl.div_rn(tl.load(values + source, mask=goes_on, other=0.0), divisor)
        run = tl.where(goes_on, run + share, run)
    tl.store(total + place, run, mask=begins)
