"""The methods by name: which record stands behind a key of the configuration.

A new one is a file beside this one, a line in a table at the foot, and in MODULES if some settings exclude it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flare_dist.algorithms import ef21, feddc, feddyn, fednova, fedprox, flare, scaffold
from flare_dist.algorithms.algorithm import FEDAVG, Algorithm
from flare_dist.algorithms.compose import compose
from flare_dist.exclusion import Exclusion


def algorithm_of(clients: Any, aggregator: str = "mean", feedback: str = "none") -> Algorithm:
    """Make the record of a run: its objective with its settings, its aggregator, and its rule of error feedback."""
    objective = OBJECTIVES[clients.objective](clients)
    return compose(objective, AGGREGATORS[aggregator](), *FEEDBACK.get(feedback, ()))


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
