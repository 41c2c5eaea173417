"""Triton's kernels where there is no GPU: under its interpreter, and compiled for an H100."""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flare_dist.compression.gpu_selection import INTEGERS, largest_on_gpu

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
_POINTERS = {
    **dict.fromkeys(("vector", "found", "ordered", "words"), "*i32"),
    **dict.fromkeys(("scratch", "totals", "places", "positions", "order", "programs", "segments", "indices"), "*i64"),
    **dict.fromkeys(("values", "total"), "*fp32"),
    "data": "*u8",
}


@contextmanager
def interpreting() -> Iterator[ProcessPoolExecutor]:
    """Start a process of its own in which Triton interprets: it decides that for good when it is imported."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh, initializer=_patch_once) as pool:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("TRITON_INTERPRET", "1")
            pool.submit(torch.set_num_threads, 1).result()  # the process starts here
        try:
            pool.submit(largest_on_gpu, torch.ones(4), 1, 256, 4).result()
        except Exception as error:
            if "only 0-dimensional arrays can be converted" not in str(error):
                raise
            pytest.skip("Triton's interpreter (3.4, of torch 2.8) does not go with numpy 2.4 or later")
        yield pool


def _patch_once() -> None:
    """Let the interpreter put its functions into triton.language once; at each call, that is two thirds of its time."""
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    patch_lang = interpreter._patch_lang
    patched: set[int] = set()

    def patch(function: Any) -> Any:
        module = id(function.__globals__)
        if module not in patched:
            patch_lang(function)
            patched.add(module)
        return SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = patch


def compiled_for_h100(name: str, constants: dict[str, int], integers: str, num_warps: int = 4) -> str:
    """Compile a kernel for sizes of type i32 or i64; returns its PTX. It needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from flare_dist.compression import gpu_bits_kernels, gpu_kernels, gpu_part_kernels, gpu_sum_kernel

    modules = (gpu_kernels, gpu_part_kernels, gpu_sum_kernel, gpu_bits_kernels)
    kernel = next(getattr(module, name) for module in modules if hasattr(module, name))
    types = dict.fromkeys(kernel.arg_names, integers) | dict.fromkeys(constants, "constexpr")
    types |= {argument: _POINTERS[argument] for argument in kernel.arg_names if argument in _POINTERS}
    if "divisor" in types:
        types["divisor"] = "fp32"
    values = {(kernel.arg_names.index(argument),): value for argument, value in constants.items()}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, argument in enumerate(kernel.arg_names)
        if argument in _POINTERS and argument != "data"  # which begins behind a header, or anywhere
    }
    compiled = triton.compile(
        ASTSource(kernel, types, values, aligned),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": num_warps, **INTEGERS},
    )
    ptx: str = compiled.asm["ptx"]
    return ptx
