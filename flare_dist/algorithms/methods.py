"""The methods by name: which record stands behind a key of the configuration.

A new one is a file beside this one, a line in a table at the foot, and in MODULES if some settings exclude it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flare_dist.algorithms import ef21, feddc, feddyn, fednova, fedprox, flare, scaffold
from flare_dist.algorithms.algorithm import FEDAVG, Algorithm, Trained, Vectors
from flare_dist.algorithms.compose import compose
from flare_dist.exclusion import Exclusion
from flare_dist.named import Options, WrongResultError, bind, find, is_own, made, name_of

EXAMPLE = "flare_dist.Algorithm(penalty=lambda context: flare_dist.Penalty(add_gradient))"


def algorithm_of(
    clients: Any, aggregator: str = "mean", feedback: str = "none", aggregator_options: Options | None = None
) -> Algorithm:
    """Make the record of a run: its objective with its settings, its aggregator, and its rule of error feedback."""
    records = (objective_of(clients), aggregator_of(aggregator, aggregator_options), *FEEDBACK.get(feedback, ()))
    try:
        return compose(*records)
    except ValueError as error:
        raise ValueError(
            f"clients.objective: {name_of(clients.objective)} with server.aggregator={name_of(aggregator)}: {error}"
        ) from error


def objective_of(clients: Any) -> Algorithm:
    """Make the record of the clients' objective; ValueError names clients.objective or one of its options."""
    name = clients.objective
    if is_own(name, OBJECTIVES):
        return _users("clients.objective", name, clients.objective_options)
    make = find("clients.objective", name, OBJECTIVES)
    record: Algorithm = bind("clients.objective", name, make, clients.objective_options, ["clients"])(clients)
    return record


def aggregator_of(name: Any, options: Options | None = None) -> Algorithm:
    """Make the record of the server's aggregator; ValueError names server.aggregator or one of its options."""
    if is_own(name, AGGREGATORS):
        return _users("server.aggregator", name, options or {})
    make = find("server.aggregator", name, AGGREGATORS)
    record: Algorithm = bind("server.aggregator", name, make, options or {})()
    return record


def _users(key: str, name: Any, options: Options) -> Algorithm:
    """Make the user's record, and check what it says of itself, and then what it gives for the wire."""
    record: Algorithm = made(key, name, {}, options, Algorithm, EXAMPLE)
    for field in ("memory", "server", "sends"):
        names = getattr(record, field)
        if not isinstance(names, tuple) or not all(isinstance(own, str) for own in names):
            raise ValueError(
                f'{key}: {name_of(name)}: {field} must be a tuple of names, got {names!r}; write ("control",)'
            )
    if "delta" not in record.sends:
        raise ValueError(f'{key}: {name_of(name)}: sends must have "delta" in it, got {record.sends!r}; add it')

    def before_wire(trained: Trained, memory: Vectors, server: Vectors) -> Vectors:
        vectors = record.before_wire(trained, memory, server)
        total = trained.delta.shape
        if any(own not in vectors or vectors[own].shape != total for own in record.sends):
            found = {own: tuple(vector.shape) for own, vector in vectors.items()}
            raise WrongResultError(
                f"{key}: before_wire must give a vector of shape {tuple(total)} for each of "
                f"{', '.join(record.sends)}, got {found}; for example {{'delta': trained.delta}}"
            )
        return vectors

    return record._replace(before_wire=before_wire)


# clients.objective
OBJECTIVES: dict[str, Callable[[Any], Algorithm]] = {
    "none": lambda clients: FEDAVG,
    "fedprox": lambda clients: fedprox.fedprox(clients.fedprox),
    "feddyn": lambda clients: feddyn.feddyn(clients.feddyn),
    "scaffold": lambda clients: scaffold.scaffold(),
    "feddc": lambda clients: feddc.feddc(clients.feddc),
    "flare": lambda clients: flare.flare(clients.flare),
}
# server.aggregator
AGGREGATORS: dict[str, Callable[[], Algorithm]] = {"mean": lambda: FEDAVG, "fednova": fednova.fednova}
# compression.error_feedback, of the rules of which the server has a part
FEEDBACK: dict[str, tuple[Algorithm, ...]] = {"ef21": (ef21.ef21(),)}
# Read by compatibility.py and cautions.py: options with which a method is refused, or taken with a warning.
MODULES = (flare, fedprox, feddyn, scaffold, feddc, fednova, ef21)
EXCLUDES: tuple[Exclusion, ...] = tuple(row for module in MODULES for row in getattr(module, "EXCLUDES", ()))
CAUTIONS: tuple[Exclusion, ...] = tuple(row for module in MODULES for row in getattr(module, "CAUTIONS", ()))
