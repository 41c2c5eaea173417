"""Error feedback: what a client does with the part of its model delta that was not sent.

A rule is a function (model_delta, state, select) -> (indices, values). `state` holds the client's memory by name, flat
vectors of the delta's length; the rule updates it in place. Law: sent + new residual = model delta + old residual.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

State = dict[str, Tensor]
Select = Callable[[Tensor], Tensor]
Rule = Callable[[Tensor, State, Select], tuple[Tensor, Tensor]]


def ec(model_delta: Tensor, state: State, select: Select) -> tuple[Tensor, Tensor]:
    """EF14 (Seide et al. 2014; Stich et al. 2018): U = Delta + A, send S = C(U), A <- U - S.

    The residual `state["residual"]` itself becomes U and then loses what was sent: no second vector is needed.
    """
    update = state["residual"].add_(model_delta)
    indices = select(update)
    values = update[indices]
    update[indices] = 0
    return indices, values


def none(model_delta: Tensor, state: State, select: Select) -> tuple[Tensor, Tensor]:
    """No memory: what is not sent is lost."""
    indices = select(model_delta)
    return indices, model_delta[indices]


# The names of the vectors that each rule remembers for every client, and the rule.
ERROR_FEEDBACK: dict[str, tuple[tuple[str, ...], Rule]] = {"ec": (("residual",), ec), "none": ((), none)}
