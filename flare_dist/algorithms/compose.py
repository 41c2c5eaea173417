"""Composition: several records become one that does what they do, in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from flare_dist.algorithms.algorithm import (
    FEDAVG,
    Algorithm,
    LocalContext,
    LocalWork,
    Penalty,
    Trained,
    Vectors,
)

Part = TypeVar("Part")


def compose(*algorithms: Algorithm) -> Algorithm:
    """Compose records, in their order.

    Raises ValueError if two of them remember or send vectors of the same name, or each keep an estimate of a client.
    """
    others = [algorithm for algorithm in algorithms if algorithm != FEDAVG]
    if len(others) < 2:
        return others[0] if others else FEDAVG
    sends = _different([name for algorithm in others for name in algorithm.sends if name != "delta"])
    memory = _different([name for algorithm in others for name in algorithm.memory])
    server = _different([name for algorithm in others for name in algorithm.server])

    def brief(work: LocalWork) -> LocalWork:
        for algorithm in others:
            work = algorithm.brief(work)
        return work

    def penalty(context: LocalContext) -> Penalty | None:
        return _sum([algorithm.penalty(context) for algorithm in others])

    def before_wire(trained: Trained, memory: Vectors, server: Vectors) -> Vectors:
        payloads: Vectors = {}
        for algorithm in others:
            payloads |= algorithm.before_wire(trained, memory, server)
            trained = trained._replace(delta=payloads["delta"])  # the next one begins with what this one sends
        return payloads

    return Algorithm(
        memory=memory,
        server=server,
        sends=("delta", *sends),
        brief=brief,
        penalty=penalty,
        before_wire=before_wire,
        after_wire=_in_turn([algorithm.after_wire for algorithm in others]),
        after_round=_in_turn([algorithm.after_round for algorithm in others]),
        wraps=_only([algorithm.wraps for algorithm in others], "wrap the uplink"),
        estimate=_only([algorithm.estimate for algorithm in others], "keep an estimate of each client"),
        excludes=tuple(row for algorithm in others for row in algorithm.excludes),
    )


def _in_turn(functions: Sequence[Callable[..., None]]) -> Callable[..., None]:
    """Return a function that calls all of these, in their order, with its arguments."""

    def call_all(*arguments: Any) -> None:
        for function in functions:
            function(*arguments)

    return call_all


def _only(given: list[Part | None], what: str) -> Part | None:
    """Return the one part that is given, if any."""
    parts = [part for part in given if part is not None]
    if len(parts) > 1:
        raise ValueError(f"algorithms that do not compose: two of them {what}")
    return parts[0] if parts else None


def _different(names: list[str]) -> tuple[str, ...]:
    """Return the names; ValueError if one of them is there twice."""
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"algorithms that do not compose: two of them use the name {repeated!r}")
    return tuple(names)


def _sum(penalties: list[Penalty | None]) -> Penalty | None:
    """Sum penalties: one that adds the gradients of all."""
    added = [penalty for penalty in penalties if penalty is not None]
    if len(added) < 2:
        return added[0] if added else None
    if any(penalty.steps is not None or penalty.moved is not None for penalty in added):
        raise ValueError("algorithms that do not compose: a penalty for some of the steps goes with no other")

    def add_gradient(gradient: Tensor, local: Tensor) -> None:
        for penalty in added:
            penalty.add_gradient(gradient, local)

    return Penalty(add_gradient)
