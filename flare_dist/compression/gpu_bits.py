"""The code of `elias_fano` on a GPU in launches whose number depends on nothing: one writes it, two read many rows.

Beside that there is only the making of zeros. Operations of PyTorch take about 17 launches for each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flare_dist.compression.elias_fano import sizes
from flare_dist.compression.gpu_selection import INTEGERS

_WRITTEN = 256  # positions of a program
_READ = 2048  # bits of the unary part of a program


def write_on_gpu(indices: Tensor, n: int) -> Tensor:
    """Code ascending int64 [k] below n as `elias_fano.write` does. On a CPU only under Triton's interpreter."""
    from flare_dist.compression import gpu_bits_kernels as kernels

    k = indices.numel()
    low, low_nbytes, high_nbytes = sizes(n, k)
    nbytes = low_nbytes + high_nbytes
    words = torch.zeros(-(-nbytes // 4), dtype=torch.int32, device=indices.device)
    if k:
        grid = (-(-k // _WRITTEN),)
        with torch.cuda.device_of(indices):
            kernels.write_code[grid](indices.contiguous(), words, k, low, low_nbytes, _WRITTEN, **INTEGERS)
    return words.view(torch.uint8)[:nbytes]


def read_on_gpu(data: Tensor, n: int, k: int) -> Tensor:
    """Read the positions below n from uint8 [..., nbytes] as `elias_fano.read` does; rows may be strided.

    They are int64 [k], and of several rows int32 [rows, k], as `gpu_sums` sorts them: of many ranks they are many. On a
    CPU only under Triton's interpreter.
    """
    from flare_dist.compression import gpu_bits_kernels as kernels

    low, low_nbytes, high_nbytes = sizes(n, k)
    rows = data.unsqueeze(0) if data.dim() == 1 else data
    dtype = torch.int64 if data.dim() == 1 else torch.int32
    positions = torch.empty(len(rows), k, dtype=dtype, device=data.device)
    if positions.numel():
        assert rows.stride(1) == 1
        grid = (-(-8 * high_nbytes // _READ), len(rows))
        totals = torch.empty(grid[0] * grid[1], dtype=torch.int64, device=data.device)
        unary = (low_nbytes, high_nbytes, _READ)
        with torch.cuda.device_of(data):
            kernels.count_ones[grid](rows, totals, rows.stride(0), *unary, **INTEGERS)
            kernels.read_code[grid](rows, totals, positions, rows.stride(0), k, low, *unary, **INTEGERS)
    return positions.view(*data.shape[:-1], k)
