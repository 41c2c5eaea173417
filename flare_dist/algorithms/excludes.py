"""Rows of exclusions that several methods share; a method's own stand in its file, under EXCLUDES and CAUTIONS."""

from __future__ import annotations

from flare_dist.conditions import is_ef21, is_fednova, is_masked, trains
from flare_dist.exclusion import Exclusion

OBJECTIVE = "clients.objective"
FEEDBACK = "compression.error_feedback"
METHOD = "sparse_training.method"


# fmt: off
def of_own_mean(name: str, title: str) -> tuple[Exclusion, ...]:
    """Make the rows of an objective that takes a plain mean of its own."""
    return (
        Exclusion((OBJECTIVE, "clients.weighting"), f"{title} with weights by examples",
                  lambda c: c.clients.objective == name and c.clients.weighting != "uniform",
                  f"{name} takes the plain mean of its clients", "set clients.weighting=uniform"),
        Exclusion(("server.aggregator", OBJECTIVE), f"FedNova with {title}",
                  lambda c: is_fednova(c) and trains(c, name),
                  f"fednova does not go with {name}, which has a mean of its own", "use mean", ("mode",)),
    )


def of_controls(name: str, title: str) -> tuple[Exclusion, ...]:
    """Make the rows of an objective whose second payload is of mean gradients."""
    return (
        Exclusion((OBJECTIVE, "clients.optimizer", "clients.momentum"), f"{title} with momentum, adam or adamw",
                  lambda c: c.clients.objective == name and (c.clients.optimizer != "sgd" or c.clients.momentum > 0),
                  f"{name}'s controls are mean gradients of plain sgd", "use clients.optimizer=sgd without momentum"),
        Exclusion((OBJECTIVE, FEEDBACK), f"{title} with ef21", lambda c: trains(c, name) and is_ef21(c),
                  f"{name}'s controls have no estimates for ef21", "use ec, dgc or none", ("mode",)),
        Exclusion((OBJECTIVE, METHOD), f"{title} with masks", lambda c: trains(c, name) and is_masked(c),
                  f"{name}'s controls do not follow masks", "use another, or sparse_training.method=dense", ("mode",)),
    )


def drifting_controls(name: str, title: str) -> tuple[Exclusion, ...]:
    """Make the warning of an objective whose second payload needs error feedback if it is sparse."""
    return (
        Exclusion((OBJECTIVE, FEEDBACK), f"{title}, sparse, without error feedback",
                  lambda c: trains(c, name) and not c.compression.is_dense and c.compression.rule == "none",
                  "without error feedback the unsent part of a change is lost, and the server's control variate drifts "
                  "from the mean of the clients'", "use ec", ("mode",)),
    )
