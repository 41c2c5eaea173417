"""Callables as users write them: twins of built-in ones, and those that break their contract."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import flare_dist
from flare_dist.compression.error_feedback import ERROR_FEEDBACK
from flare_dist.compression.index_codecs import int32
from flare_dist.compression.sparsifiers import topk
from flare_dist.compression.value_codecs import cast


def largest(vector: Tensor, k: int, generator: torch.Generator) -> Tensor:
    return topk(vector, k, generator)


def drawn(vector: Tensor, k: int, generator: torch.Generator, shift: int = 0) -> Tensor:
    return (torch.randperm(vector.numel(), generator=generator)[:k] + shift).sort().values


def one_less(vector: Tensor, k: int, generator: torch.Generator) -> Tensor:
    return topk(vector, k, generator)[1:]


def words() -> flare_dist.IndexCodec:
    return int32()


def halves() -> flare_dist.ValueCodec:
    return cast(torch.float16)


def remember(names: list[str] | None = None) -> flare_dist.ErrorFeedback:
    return ERROR_FEEDBACK["ec"]._replace(state_names=tuple(names or ["residual"]))


def forgetful() -> flare_dist.ErrorFeedback:
    """Write what is left to the state, whatever it is told."""

    def rule(config: Any, delta: Tensor, state: Any, compress: Any, into: Any = None) -> Any:
        state["residual"].add_(delta)
        return compress(state["residual"])

    return flare_dist.ErrorFeedback(("residual",), rule)


def broken_indices(kind: str) -> flare_dist.IndexCodec:
    codec = int32()
    wrong = {
        "length": codec._replace(nbytes=lambda n, k: 5 * k),
        "bytes": codec._replace(encode=lambda indices, n: indices),
        "lossy": codec._replace(decode=lambda data, n, k: torch.arange(k)),
        "growing": codec._replace(nbytes=lambda n, k: 4 * k if k in (1, 3, 50) else 999),
        "failing": codec._replace(decode=lambda data, n, k: dict[str, Tensor]()["k"]),
    }
    return wrong[kind]


def broken_values(kind: str) -> flare_dist.ValueCodec:
    codec = cast(torch.float32)
    wrong = {
        "length": codec._replace(nbytes=lambda k, groups: 3 * k),
        "shape": codec._replace(decode=lambda data, groups: torch.zeros(3)),
        "offset": codec._replace(decode=lambda data, groups: codec.decode(data, groups) + 1),
    }
    return wrong[kind]


def broken_positions(vector: Tensor, k: int, generator: torch.Generator, kind: str) -> Any:
    indices = topk(vector, k, generator)
    wrong = {
        "many": torch.arange(k + 1),
        "mask": vector > 0,
        "list": [1],
        "order": indices.flip(0),
        "int32": indices.int(),
    }
    return wrong[kind]
