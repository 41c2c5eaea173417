"""Assign clients to ranks."""

from __future__ import annotations

from collections.abc import Sequence


def hosting_ranks(cohort: Sequence[int], world_size: int, stateful: bool) -> dict[int, int]:
    """Assign a rank to each client of a cohort, in ascending client order.

    Clients that remember something are `stateful` and train at home, on rank client mod `world_size`. The others are
    split evenly, in runs of consecutive clients.
    """
    ordered = sorted(cohort)
    if stateful:
        return {client: client % world_size for client in ordered}
    return {client: position * world_size // len(ordered) for position, client in enumerate(ordered)}
