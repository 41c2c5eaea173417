"""Every client is trained by one rank, and one that remembers something by its home."""

from __future__ import annotations

import pytest

from flare_dist.clients.hosting import hosting_ranks

COHORTS = [[3], [0, 1, 2, 3], [17, 2, 40, 5, 11, 6, 23], list(range(100))]


@pytest.mark.parametrize("cohort", COHORTS)
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("stateful", [True, False])
def test_every_client_is_hosted_once_by_a_rank_that_exists(cohort: list[int], world_size: int, stateful: bool) -> None:
    hosted = hosting_ranks(cohort, world_size, stateful)
    assert list(hosted) == sorted(cohort)
    assert set(hosted.values()) <= set(range(world_size))
    assert list(hosted.items()) == list(hosting_ranks(cohort[::-1], world_size, stateful).items())


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_clients_with_state_stay_at_home(world_size: int) -> None:
    """Whoever else takes part, a client meets its memory on the same rank."""
    homes: dict[int, set[int]] = {}
    for cohort in COHORTS:
        for client, rank in hosting_ranks(cohort, world_size, stateful=True).items():
            homes.setdefault(client, set()).add(rank)
    assert all(ranks == {client % world_size} for client, ranks in homes.items())


@pytest.mark.parametrize("cohort", COHORTS)
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_clients_without_state_are_split_evenly_in_runs(cohort: list[int], world_size: int) -> None:
    ranks = list(hosting_ranks(cohort, world_size, stateful=False).values())
    loads = [ranks.count(rank) for rank in range(world_size)]
    assert max(loads) - min(loads) <= 1
    assert ranks == sorted(ranks)


def test_an_empty_cohort_is_hosted_nowhere() -> None:
    assert hosting_ranks([], 2, stateful=True) == hosting_ranks([], 2, stateful=False) == {}
