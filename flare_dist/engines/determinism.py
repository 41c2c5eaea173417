"""Let a GPU compute the same bits every time (`engine.deterministic`), as far as it has kernels that do.

Without it cuDNN may choose other algorithms from run to run, and atomic additions come in any order. On a CPU the
operations of a run are deterministic anyway; the key then only refuses those that are declared not to be.

See https://docs.pytorch.org/docs/stable/notes/randomness.html.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from flare_dist.errors import ReportedError

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
CUBLAS_CHOICES = (":4096:8", ":16:8")  # workspaces with which cuBLAS computes the same on several streams
REFUSED = re.compile(r"(\S+) does not have a deterministic implementation")


class NotDeterministicError(ReportedError):
    """Raised if `engine.deterministic` is true and an operation has no deterministic kernel."""


@contextmanager
def deterministic(is_on: bool) -> Iterator[None]:
    """Compute deterministically in the block if `is_on`, or raise NotDeterministicError that names the operation.

    Raises ValueError if the environment asks cuBLAS for the contrary. What was set before is set again afterwards.
    """
    if not is_on:
        yield
        return
    workspace = os.environ.setdefault(CUBLAS, CUBLAS_CHOICES[0])
    if workspace not in CUBLAS_CHOICES:
        raise ValueError(
            f"engine.deterministic: needs {CUBLAS} to be one of {' and '.join(CUBLAS_CHOICES)} in the environment, got "
            f"{workspace!r}; unset it"
        )
    cudnn = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    flags = (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32)
    is_strict = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory
    try:
        _set(True, False, False, False)
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False  # nothing that is computed depends on it
        yield
    except (RuntimeError, ValueError) as error:
        found = REFUSED.search(_words(error))
        if not found:
            raise
        raise NotDeterministicError(
            f"engine.deterministic: {found[1]} has no deterministic kernel, got true; use another operation in the "
            "model or the loss, or set false"
        ) from error
    finally:
        _set(*flags)
        torch.use_deterministic_algorithms(is_strict, warn_only=only_warns)
        memory.fill_uninitialized_memory = fills


def _set(deterministic: bool, benchmark: bool, cudnn_tf32: bool, matmul_tf32: bool) -> None:
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.allow_tf32 = cudnn_tf32
    torch.backends.cuda.matmul.allow_tf32 = matmul_tf32


def _words(error: BaseException | None) -> str:
    """Return the messages of an error and of those that it came from."""
    return "" if error is None else f"{error} {_words(error.__cause__)}"
