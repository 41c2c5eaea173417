"""Trials of the user's codecs and error feedback on a few numbers, so that a broken contract is told before a run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flare_dist.compression.error_feedback import ErrorFeedback
from flare_dist.compression.index_codecs import IndexCodec
from flare_dist.compression.payload import WORD, Sparse
from flare_dist.compression.value_codecs import Groups, ValueCodec
from flare_dist.named import call

PAIRS = ((1, 1), (20, 3), (5000, 50))  # n and k


class _Config:
    """Stand for what a rule reads of the configuration."""

    residual_decay = 1.0
    dgc_momentum = 0.9


def try_index_codec(whose: str, codec: IndexCodec) -> None:
    """Raise ValueError that begins with `whose` unless positions come back, from as many bytes as are told before."""
    draws = torch.Generator().manual_seed(0)
    for n, k in PAIRS:
        indices = torch.randperm(n, generator=draws)[:k].sort().values
        data = call(whose, "encode", codec.encode, indices.clone(), n)
        _check_bytes(whose, data, call(whose, "nbytes", codec.nbytes, n, k), f"nbytes({n}, {k})")
        decoded = call(whose, "decode", codec.decode, data, n, k)
        if not isinstance(decoded, Tensor) or decoded.dtype != torch.int64 or not torch.equal(decoded, indices):
            raise ValueError(
                f"{whose}: decode must give the int64 positions that were encoded, got others for {k} of {n}"
            )

        fewer = [codec.nbytes(n, less) for less in range(1, k)]
        if max(fewer, default=0) > data.numel() + WORD:  # by which slots are longer, see Packing.most_nbytes
            raise ValueError(
                f"{whose}: nbytes must not be larger for fewer positions, got {max(fewer)} below nbytes({n}, {k})"
            )


def try_value_codec(whose: str, codec: ValueCodec) -> None:
    """Raise ValueError that begins with `whose` unless values come back finite, and zeros as zeros."""
    groups = Groups(torch.tensor([0, 0, 1, 1, 1]), 2)
    for values in (torch.tensor([1.0, -2.0, 0.5, 3e-5, 0.0]), torch.zeros(5)):
        for draws in (None, torch.full((5,), 0.5)):
            data = call(whose, "encode", codec.encode, values.clone(), groups, draws)
            _check_bytes(whose, data, call(whose, "nbytes", codec.nbytes, 5, 2), "nbytes(5, 2)")
            decoded = call(whose, "decode", codec.decode, data, groups)
            if not isinstance(decoded, Tensor) or decoded.dtype != torch.float32 or decoded.shape != (5,):
                raise ValueError(f"{whose}: decode must give float32 [5] for 5 values, got {_described(decoded)}")
            if not decoded.isfinite().all() or (not values.any() and decoded.any()):
                raise ValueError(
                    f"{whose}: {values.tolist()} must come back finite, and zeros as zeros, got {decoded.tolist()}"
                )


def try_error_feedback(whose: str, feedback: ErrorFeedback) -> None:
    """Raise ValueError that begins with `whose` unless the rule sends, and keeps what it remembers where it is told."""
    if not isinstance(feedback.state_names, tuple) or not all(isinstance(name, str) for name in feedback.state_names):
        raise ValueError(f'{whose}: state_names must be names, got {feedback.state_names!r}; write e.g. ("residual",)')
    delta = torch.linspace(-1, 1, 20)
    state = {name: torch.full((20,), 0.5) for name in feedback.state_names}
    draft = {name: torch.zeros(20) for name in state}
    before = {name: vector.clone() for name, vector in state.items()}
    payload = call(whose, "rule", feedback.rule, _Config(), delta.clone(), state, _compress, draft)
    if not isinstance(payload, Sparse):
        raise ValueError(f"{whose}: rule must return what compress(vector) gave, got {_described(payload)}")
    if any(not torch.equal(state[name], before[name]) for name in state):
        raise ValueError(f"{whose}: rule must leave `state` as it is if it is given `into`; write to `into`")
    call(whose, "rule", feedback.rule, _Config(), delta.clone(), state, _compress, None)
    if any(not torch.equal(state[name], draft[name]) for name in state):
        raise ValueError(
            f"{whose}: rule must write to `into` what it writes to `state` without it; write (into or state)"
        )


def _compress(vector: Tensor) -> Sparse:
    """Send the five largest entries as they are."""
    indices = vector.abs().topk(5).indices.sort().values
    return Sparse(indices.int(), vector[indices].clone(), vector[indices].clone().view(torch.uint8))


def _check_bytes(whose: str, data: Any, nbytes: Any, call: str) -> None:
    if not isinstance(data, Tensor) or data.dtype != torch.uint8 or data.dim() != 1:
        raise ValueError(f"{whose}: encode must give bytes, uint8 [{call}], got {_described(data)}")
    if nbytes != data.numel():
        raise ValueError(
            f"{whose}: {call} must be the length of what encode gives, got {nbytes!r} for {data.numel()} bytes"
        )


def _described(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
