"""Error feedback: what a client does with the part of its model delta that was not sent.

A rule is a function (model_delta, state, compress) -> payload. `compress` turns a vector into the payload that the
server will decode; `state` holds the client's memory by name, flat vectors of the delta's length, updated in place.
Law: sent + new residual = model delta + old residual.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from flare_dist.compression.payload import Payload

State = dict[str, Tensor]
Compress = Callable[[Tensor], Payload]
Rule = Callable[[Tensor, State, Compress], Payload]


def ec(model_delta: Tensor, state: State, compress: Compress) -> Payload:
    """EF14 (Seide et al. 2014; Stich et al. 2018): U = Delta + A, send S = C(U), A <- U - S.

    The residual `state["residual"]` itself becomes U and then loses what was sent: no second vector is needed.
    """
    update = state["residual"].add_(model_delta)
    payload = compress(update)
    assert payload.indices is not None
    update.index_add_(0, payload.indices, payload.values, alpha=-1)
    return payload


def none(model_delta: Tensor, state: State, compress: Compress) -> Payload:
    """No memory: what is not sent is lost."""
    return compress(model_delta)


# The names of the vectors that each rule remembers for every client, and the rule.
ERROR_FEEDBACK: dict[str, tuple[tuple[str, ...], Rule]] = {"ec": (("residual",), ec), "none": ((), none)}
