"""Find sparsifiers, codecs and error feedback by name, ours and the user's, whose contracts are tried before a run."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from flare_dist.compression.error_feedback import ERROR_FEEDBACK, ErrorFeedback
from flare_dist.compression.index_codecs import INDEX_CODECS, IndexCodec, candidates
from flare_dist.compression.sparsifiers import SPARSIFIERS
from flare_dist.compression.sparsifiers import Sparsifier as OurSparsifier
from flare_dist.compression.trials import try_error_feedback, try_index_codec, try_value_codec
from flare_dist.compression.value_codecs import VALUE_CODECS, ValueCodec
from flare_dist.named import Options, WrongResultError, bind, call, find, made, name_of

SPARSIFIER = "compression.sparsifier"
Sparsifier = Callable[[Tensor, int, torch.Generator], Tensor]  # (vector, k, generator) -> at most k positions


def find_sparsifier(name: Any, options: Options) -> OurSparsifier:
    """Find a sparsifier, with the options of the user's own; ValueError names compression.sparsifier or an option.

    dense selects nothing: the answer for it is never called.
    """
    if isinstance(name, str) and name in ("dense", *SPARSIFIERS):
        if options:
            raise ValueError(f"{SPARSIFIER}_options.{next(iter(options))}: {name} takes no options; leave it out")
        return SPARSIFIERS.get(name, _nothing)
    return _sparsifier(name, pickle.dumps(options))


@lru_cache(maxsize=64)
def _sparsifier(name: Any, options: bytes) -> OurSparsifier:
    """Adapt the user's sparsifier to the threshold that ours are given, and check what it returns."""
    found = find(SPARSIFIER, name, {"dense": _nothing} | SPARSIFIERS)
    users = bind(SPARSIFIER, name, found, pickle.loads(options), ["vector", "k", "generator"])

    def select(vector: Tensor, k: int, generator: torch.Generator, threshold: float = 0.0) -> Tensor:
        chosen = call(SPARSIFIER, name, users, vector, k, generator)
        _check_positions(name_of(name), chosen, vector, k)
        return chosen

    select(torch.linspace(-1, 1, 20), 5, torch.Generator().manual_seed(0))
    return select


def _nothing(vector: Tensor, k: int, generator: torch.Generator, threshold: float = 0.0) -> Tensor:
    raise AssertionError("a dense payload selects nothing")


def _check_positions(name: str, chosen: Any, vector: Tensor, k: int) -> None:
    """Raise WrongResultError unless a sparsifier returned at most k ascending positions in the vector."""
    wanted = f"{SPARSIFIER}: {name} must return at most k={k} ascending positions of {vector.numel()} entries, int64"
    example = "for example vector.abs().topk(k).indices.sort().values"
    if not isinstance(chosen, Tensor) or chosen.dtype != torch.int64 or chosen.dim() != 1:
        got = f"{chosen.dtype} {list(chosen.shape)}" if isinstance(chosen, Tensor) else type(chosen).__name__
        raise WrongResultError(f"{wanted}, got {got}; {example}")
    if chosen.device != vector.device:
        raise WrongResultError(f"{wanted}, on {vector.device}, got them on {chosen.device}; move them")
    if chosen.numel() > k:
        raise WrongResultError(f"{wanted}, got {chosen.numel()}; {example}")
    if chosen.numel() and not bool((chosen[0] >= 0) & (chosen[-1] < vector.numel()) & (chosen.diff() > 0).all()):
        raise WrongResultError(f"{wanted}, got {chosen[:5].tolist()} first; {example}")


def find_index_codecs(name: Any, options: Options, block: int) -> tuple[IndexCodec, ...]:
    """Find the codecs of positions of which the smallest is taken; the user's own alone."""
    if not options and (name == "auto" or name in INDEX_CODECS):
        return candidates(name, block)
    return (_record("compression.index_codec", name, pickle.dumps(options), IndexCodec),)


def find_value_codec(name: Any, options: Options) -> ValueCodec:
    """Find the codec of values."""
    if not options and name in VALUE_CODECS:
        return VALUE_CODECS[name]
    codec: ValueCodec = _record("compression.value_codec", name, pickle.dumps(options), ValueCodec)
    return codec


def find_error_feedback(name: Any, options: Options) -> ErrorFeedback:
    """Find the rule of error feedback, and the names of what it remembers."""
    if not options and name in ERROR_FEEDBACK:
        return ERROR_FEEDBACK[name]
    rule: ErrorFeedback = _record("compression.error_feedback", name, pickle.dumps(options), ErrorFeedback)
    return rule


@lru_cache(maxsize=64)  # one object for all payloads, whose sizes are looked up by it
def _record(key: str, name: Any, options: bytes, kind: type) -> Any:
    """Make the user's record, and try that it keeps its contract."""
    known, example, check = RECORDS[kind]
    record = made(key, name, known, pickle.loads(options), kind, example)
    check(f"{key}: {name_of(name)}", record)
    return record


# By type: those with a name, the example of an error, and the trial of the user's own.
RECORDS: dict[type, tuple[dict[str, Any], str, Callable[[str, Any], None]]] = {
    IndexCodec: (
        {"auto": INDEX_CODECS["int32"]} | INDEX_CODECS,
        "flare_dist.IndexCodec(nbytes, encode, decode)",
        try_index_codec,
    ),
    ValueCodec: (VALUE_CODECS, "flare_dist.ValueCodec(nbytes, encode, decode)", try_value_codec),
    ErrorFeedback: (ERROR_FEEDBACK, 'flare_dist.ErrorFeedback(("residual",), rule)', try_error_feedback),
}
