"""Error feedback: what a client does with the part of its model delta that was not sent.

A rule is a function (config, model_delta, state, compress, into) -> payload. `compress` turns a vector into the payload
that the server will decode; `state` holds the client's memory by name, flat vectors of the delta's length. What becomes
of them is written to `into`, other vectors or by default themselves.
Law of ec and dgc: sent + new residual = what was brought + old residual. Law of ef21: new estimate = old + sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flare_dist.compression.payload import Sparse


class ErrorFeedbackConfig(Protocol):
    """The part of the compression's configuration that the rules read."""

    @property
    def residual_decay(self) -> float: ...

    @property
    def dgc_momentum(self) -> float: ...


State = dict[str, Tensor]
Compress = Callable[[Tensor], Sparse]


class Rule(Protocol):
    """(config, model_delta, state, compress, into) -> payload."""

    def __call__(
        self,
        config: ErrorFeedbackConfig,
        model_delta: Tensor,
        state: State,
        compress: Compress,
        into: State | None = None,
        /,
    ) -> Sparse: ...


class ErrorFeedback(NamedTuple):
    """A rule and the names of the vectors that it remembers for every client."""

    state_names: tuple[str, ...]
    rule: Rule


def ec(
    config: ErrorFeedbackConfig, model_delta: Tensor, state: State, compress: Compress, into: State | None = None
) -> Sparse:
    """Apply EF14 (Seide et al. 2014; Stich et al. 2018): U = b * A + Delta, send S = C(U), A <- U - S.

    b is `residual_decay`, 1 but in SparseLoCo (2025). The new residual is U first and then loses what was sent.
    """
    old = state["residual"]
    residual = (into or state)["residual"]
    if config.residual_decay != 1:
        old = torch.mul(old, config.residual_decay, out=residual)
    payload = compress(torch.add(old, model_delta, out=residual))
    residual.index_add_(0, payload.indices.long(), payload.values, alpha=-1)  # slower by int32
    return payload


def dgc(
    config: ErrorFeedbackConfig, model_delta: Tensor, state: State, compress: Compress, into: State | None = None
) -> Sparse:
    """Apply Deep Gradient Compression (Lin et al. 2018): u <- m * u + Delta, V <- V + u, send S = C(V).

    Both the velocity u and the residual V are zeroed at the entries that were sent (momentum factor masking). Local
    momentum should be zero; with m = `dgc_momentum` = 0 this is ec.
    """
    into = into or state
    velocity = torch.mul(state["velocity"], config.dgc_momentum, out=into["velocity"]).add_(model_delta)
    residual = torch.add(state["residual"], velocity, out=into["residual"])
    payload = compress(residual)
    residual.index_add_(0, payload.indices.long(), payload.values, alpha=-1)
    velocity.index_fill_(0, payload.indices.long(), 0)
    return payload


def ef21(
    config: ErrorFeedbackConfig, model_delta: Tensor, state: State, compress: Compress, into: State | None = None
) -> Sparse:
    """Apply EF21 (Richtarik et al. 2021): send S = C(Delta - g), g <- g + S, from g = 0.

    The server keeps the same g for every client and averages those of the clients present, as in FLARE's comparison.
    """
    estimate = state["estimate"]
    payload = compress(model_delta - estimate)
    torch.index_add(estimate, 0, payload.indices, payload.values, out=(into or state)["estimate"])
    return payload


def none(
    config: ErrorFeedbackConfig, model_delta: Tensor, state: State, compress: Compress, into: State | None = None
) -> Sparse:
    """Remember nothing: what is not sent is lost."""
    return compress(model_delta)


ERROR_FEEDBACK: dict[str, ErrorFeedback] = {
    "ec": ErrorFeedback(("residual",), ec),
    "dgc": ErrorFeedback(("residual", "velocity"), dgc),
    "ef21": ErrorFeedback(("estimate",), ef21),
    "none": ErrorFeedback((), none),
}
