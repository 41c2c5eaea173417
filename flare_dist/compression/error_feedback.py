"""Error feedback: what a client does with the part of its model delta that was not sent.

A rule is a function (config, model_delta, state, compress) -> payload. `compress` turns a vector into the payload that
the server will decode; `state` holds the client's memory by name, flat vectors of the delta's length, updated in place.
Law of ec and dgc: sent + new residual = what was brought + old residual. Law of ef21: new estimate = old + sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from flare_dist.compression.payload import Payload


class ErrorFeedbackConfig(Protocol):
    """What the rules read of the compression's configuration."""

    @property
    def residual_decay(self) -> float: ...

    @property
    def dgc_momentum(self) -> float: ...


State = dict[str, Tensor]
Compress = Callable[[Tensor], Payload]
Rule = Callable[[ErrorFeedbackConfig, Tensor, State, Compress], Payload]


class ErrorFeedback(NamedTuple):
    """A rule and the names of the vectors that it remembers for every client."""

    state_names: tuple[str, ...]
    rule: Rule
    estimated: bool = False  # payloads are changes of an estimate that the server keeps as well


def ec(config: ErrorFeedbackConfig, model_delta: Tensor, state: State, compress: Compress) -> Payload:
    """EF14 (Seide et al. 2014; Stich et al. 2018): U = b * A + Delta, send S = C(U), A <- U - S.

    b is `residual_decay`, 1 but in SparseLoCo (2025). The residual `state["residual"]` itself becomes U and then loses
    what was sent: no second vector is needed.
    """
    residual = state["residual"]
    if config.residual_decay != 1:
        residual.mul_(config.residual_decay)
    payload = compress(residual.add_(model_delta))
    assert payload.indices is not None
    residual.index_add_(0, payload.indices.long(), payload.values, alpha=-1)  # slower by int32
    return payload


def dgc(config: ErrorFeedbackConfig, model_delta: Tensor, state: State, compress: Compress) -> Payload:
    """Deep Gradient Compression (Lin et al. 2018): u <- m * u + Delta, V <- V + u, send S = C(V).

    Both the velocity u and the residual V are zeroed where something was sent (momentum factor masking). Local momentum
    should be zero; with m = `dgc_momentum` = 0 this is ec.
    """
    velocity = state["velocity"].mul_(config.dgc_momentum).add_(model_delta)
    residual = state["residual"].add_(velocity)
    payload = compress(residual)
    assert payload.indices is not None
    residual.index_add_(0, payload.indices, payload.values, alpha=-1)
    velocity.index_fill_(0, payload.indices.long(), 0)
    return payload


def ef21(config: ErrorFeedbackConfig, model_delta: Tensor, state: State, compress: Compress) -> Payload:
    """EF21 (Richtarik et al. 2021): send S = C(Delta - g), g <- g + S, from g = 0.

    The server keeps the same g for every client and averages those of the clients present, as in FLARE's comparison.
    """
    payload = compress(model_delta - state["estimate"])
    assert payload.indices is not None
    state["estimate"].index_add_(0, payload.indices, payload.values)
    return payload


def none(config: ErrorFeedbackConfig, model_delta: Tensor, state: State, compress: Compress) -> Payload:
    """No memory: what is not sent is lost."""
    return compress(model_delta)


ERROR_FEEDBACK: dict[str, ErrorFeedback] = {
    "ec": ErrorFeedback(("residual",), ec),
    "dgc": ErrorFeedback(("residual", "velocity"), dgc),
    "ef21": ErrorFeedback(("estimate",), ef21, estimated=True),
    "none": ErrorFeedback((), none),
}
