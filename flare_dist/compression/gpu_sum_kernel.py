"""The Triton kernel of `gpu_sums`: sums of what all ranks sent, in the order of the ranks."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["pairs", "rows"])
def add_runs(ordered, order, values, total, pairs, rows, tile: tl.constexpr):
    """Add the values of each run of equal positions, at most `rows`, in their order, by the lane at its first."""
    lanes = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    place = tl.load(ordered + lanes, mask=lanes < pairs, other=-1)
    before = tl.load(ordered + lanes - 1, mask=(lanes < pairs) & (lanes > 0), other=-1)
    begins = (lanes < pairs) & (place != before)
    goes_on = begins
    run = tl.load(total + place, mask=begins, other=0.0)
    for row in range(rows):
        inside = goes_on & (lanes + row < pairs)
        goes_on = inside & (tl.load(ordered + lanes + row, mask=inside, other=-1) == place)
        source = tl.load(order + lanes + row, mask=goes_on, other=0)
        run = tl.where(goes_on, run + tl.load(values + source, mask=goes_on, other=0.0), run)
    tl.store(total + place, run, mask=begins)
