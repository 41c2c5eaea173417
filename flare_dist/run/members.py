"""Measure the global model on each group of the test set, and on what each client holds out: who does badly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from flare_dist.clients.hosting import Clients
from flare_dist.config.config import Config
from flare_dist.data.examples import Examples
from flare_dist.rounds.build_run import Run
from flare_dist.rounds.federation import Federation
from flare_dist.tasks.spread import mean_over_examples, spread

Members = Mapping[str, dict[str, float]]  # by name: metrics, and how many examples they are of
Measure = Callable[[str, Tensor], dict[str, float]]  # of a part of the data, at these indices


def group_members(test: Examples) -> dict[str, Tensor]:
    """Return the examples of each group of the test set, int64 indices by name; {} if it has no groups."""
    if test.groups is None:
        return {}
    order = test.groups.argsort(stable=True)
    numbers, sizes = test.groups[order].unique_consecutive(return_counts=True)
    names = test.group_names or range(int(numbers.max()) + 1)
    return {str(names[int(number)]): own for number, own in zip(numbers, order.split(sizes.tolist()))}


def client_members(clients: Clients) -> dict[str, Tensor]:
    """Return what each client holds out, int64 indices by the client's name; clients without are left out."""
    held_out = clients.partition.held_out
    if held_out is None:
        return {}
    return {clients.name(client): own for client, own in enumerate(held_out) if len(own)}


def members_evaluator(
    config: Config, run: Run, test: Examples, measure: Measure
) -> Callable[[], dict[str, Any]] | None:
    """Return a function that measures the model as it stands on whom `config.evaluation` names, for a round's row.

    None if it names nobody.
    """
    best = run.task.best
    groups = group_members(test) if config.evaluation.by_group else {}
    clients = client_members(run.clients) if isinstance(run, Federation) else {}

    def evaluate_members() -> dict[str, Any]:
        row: dict[str, Any] = {}
        if by_group := _measured("test", groups, measure):
            row |= {**spread(by_group, "group", best), "groups": by_group}
        if by_client := _measured("clients", clients, measure):
            row |= {f"client_{best[0]}": mean_over_examples(by_client, best[0]), **spread(by_client, "client", best)}
        return row

    return evaluate_members if groups or clients else None


def _measured(part: str, members: Mapping[str, Tensor], measure: Measure) -> Members:
    """Measure each member; those of whom no example can be read are left out."""
    found = {name: measure(part, own) for name, own in members.items()}
    return {name: {**own, "examples": len(members[name])} for name, own in found.items() if own}
