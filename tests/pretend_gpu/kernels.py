"""Stand-ins for Triton's kernels, which are launched one by one and whose results a CPU computes.

That the kernels themselves are right is what tests/test_gpu_selection.py proves under Triton's interpreter.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from flare_dist.compression import (
    compressor,
    elias_fano,
    gpu_bits,
    gpu_segments,
    gpu_selection,
    gpu_sums,
    gpu_trial,
    index_codecs,
    sparsifiers,
)
from flare_dist.hook import memory
from tests.pretend_gpu.log import LOG, where
from tests.pretend_gpu.streams import STREAMS
from tests.pretend_gpu.tensors import Pretend, raw


class _Kernel:
    """A kernel that computes nothing, but is launched and reads what it is given."""

    def __getitem__(self, grid: Any) -> Any:
        def launch(*arguments: Any, **options: Any) -> None:
            STREAMS.tick()
            LOG.launch()
            for tensor in arguments:
                if isinstance(tensor, Pretend):
                    storage = raw(tensor).untyped_storage()
                    STREAMS.touch(storage.data_ptr(), storage.nbytes(), False, f"a kernel at {where()}")

        return launch


class _Kernels(ModuleType):
    """A module of kernels, without Triton."""

    MOST_PROGRAMS = SimpleNamespace(value=1024)

    def __getattr__(self, name: str) -> _Kernel:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Kernel()


@contextmanager
def _imported(module: ModuleType) -> Iterator[None]:
    """Let a module be the imported one of its name; patch.dict would also forget what the block imports besides."""
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        del sys.modules[module.__name__]
        if before is not None:
            sys.modules[module.__name__] = before


@contextmanager
def triton(works: bool = True) -> Iterator[None]:
    """Let the product's kernels be launched in the block, or let Triton not work there."""
    real = gpu_selection.largest_on_gpu

    def largest(vector: Tensor, k: int) -> Tensor:
        positions = real(vector, k)  # as many launches as it makes
        with torch._C._DisableTorchDispatch():
            raw(positions).copy_(sparsifiers.largest(raw(vector), k))
        return positions

    add_runs = gpu_sums.add_runs

    def add(total: Tensor, places: Tensor, values: Tensor, divisor: int) -> None:
        add_runs(total, places, values, divisor)
        with torch._C._DisableTorchDispatch():
            gpu_sums.add_row_by_row(raw(total), raw(places), raw(values), divisor)

    write_on_gpu, read_on_gpu = gpu_bits.write_on_gpu, gpu_bits.read_on_gpu

    def write(indices: Tensor, n: int) -> Tensor:
        code = write_on_gpu(indices, n)
        with torch._C._DisableTorchDispatch():
            raw(code).copy_(elias_fano.write(raw(indices), n))
        return code

    def read(data: Tensor, n: int, k: int) -> Tensor:
        positions = read_on_gpu(data, n, k)
        with torch._C._DisableTorchDispatch():
            raw(positions).copy_(elias_fano.read(raw(data), n, k))
        return positions

    of_segments = gpu_segments.largest_of_segments

    def largest_of_segments(vector: Tensor, parts: gpu_segments.Parts) -> Tensor:
        positions = of_segments(vector, parts)
        programs, segments = raw(parts.programs).T.tolist(), raw(parts.segments).T.tolist()
        with torch._C._DisableTorchDispatch():
            for number, (k, begin) in enumerate(segments):
                own = [program for program in programs if program[0] == number]
                found = sparsifiers.largest(raw(vector)[own[0][1] : own[-1][2]], k) + own[0][1]
                raw(positions)[begin : begin + k].copy_(found)
        return positions

    with ExitStack() as stack:
        for name in ("gpu_kernels", "gpu_part_kernels", "gpu_sum_kernel", "gpu_bits_kernels"):
            kernels = _Kernels(f"flare_dist.compression.{name}")
            stack.enter_context(_imported(kernels))
            stack.enter_context(patch(kernels.__name__, kernels, create=True))
        stack.enter_context(patch.object(sparsifiers, "largest_on_gpu", largest))
        stack.enter_context(patch.object(memory, "add_runs", add))
        stack.enter_context(patch.object(index_codecs, "write_on_gpu", write))
        stack.enter_context(patch.object(index_codecs, "read_on_gpu", read))
        stack.enter_context(patch.object(compressor, "largest_of_segments", largest_of_segments))
        stack.enter_context(patch.object(gpu_trial, "works", lambda device: works))
        yield
