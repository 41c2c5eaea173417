"""Composition: several records become one that does what they do, in their order."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

from flare_dist.algorithms.algorithm import (
    FEDAVG,
    Algorithm,
    LocalContext,
    LocalWork,
    Mean,
    Penalty,
    Senders,
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
    sends = [name for algorithm in others for name in algorithm.sends if name != "delta"]
    memory = [name for algorithm in others for name in algorithm.memory]
    server = [name for algorithm in others for name in algorithm.server]
    for names in (sends, memory, server):
        if len(set(names)) < len(names):
            raise ValueError(f"algorithms that do not compose: two of them use the name {_repeated(names)!r}")

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

    def after_wire(mean_delta: Mean, server: Vectors, senders: Senders) -> None:
        for algorithm in others:
            algorithm.after_wire(mean_delta, server, senders)

    def after_round(means: Vectors, server: Vectors, senders: Senders) -> None:
        for algorithm in others:
            algorithm.after_round(means, server, senders)

    return Algorithm(
        tuple(memory),
        tuple(server),
        ("delta", *sends),
        brief,
        penalty,
        before_wire,
        after_wire,
        after_round,
        _only([algorithm.wraps for algorithm in others], "wrap the uplink"),
        _only([algorithm.estimate for algorithm in others], "keep an estimate of each client"),
        excludes=tuple(row for algorithm in others for row in algorithm.excludes),
    )


def _only(given: list[Part | None], what: str) -> Part | None:
    """Return the one part that is given, if any."""
    parts = [part for part in given if part is not None]
    if len(parts) > 1:
        raise ValueError(f"algorithms that do not compose: two of them {what}")
    return parts[0] if parts else None


def _repeated(names: list[str]) -> str:
    return next(name for name in names if names.count(name) > 1)


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
