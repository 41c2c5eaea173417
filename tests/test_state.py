"""Who hosts whom, and what they remember."""

from __future__ import annotations

import pytest
import torch

from flare_dist.clients.state import ClientStates, hosting_ranks

COHORTS = [[3], [0, 1, 2, 3], [17, 2, 40, 5, 11, 6, 23], list(range(100))]


@pytest.mark.parametrize("cohort", COHORTS)
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("stateful", [True, False])
def test_every_client_is_hosted_once_by_a_rank_that_exists(cohort: list[int], world_size: int, stateful: bool) -> None:
    hosted = hosting_ranks(cohort, world_size, stateful)
    assert [client for client, _ in hosted] == sorted(cohort)
    assert {rank for _, rank in hosted} <= set(range(world_size))
    assert hosted == hosting_ranks(cohort[::-1], world_size, stateful)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_clients_with_state_stay_at_home(world_size: int) -> None:
    """Whoever else takes part, a client meets its memory on the same rank."""
    homes: dict[int, set[int]] = {}
    for cohort in COHORTS:
        for client, rank in hosting_ranks(cohort, world_size, stateful=True):
            homes.setdefault(client, set()).add(rank)
    assert all(ranks == {client % world_size} for client, ranks in homes.items())


@pytest.mark.parametrize("cohort", COHORTS)
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_clients_without_state_are_split_evenly_in_runs(cohort: list[int], world_size: int) -> None:
    ranks = [rank for _, rank in hosting_ranks(cohort, world_size, stateful=False)]
    loads = [ranks.count(rank) for rank in range(world_size)]
    assert max(loads) - min(loads) <= 1
    assert ranks == sorted(ranks)


def test_an_empty_cohort_is_hosted_nowhere() -> None:
    assert hosting_ranks([], 2, stateful=True) == hosting_ranks([], 2, stateful=False) == []


def test_memory_starts_at_zero_is_each_client_s_own_and_stays() -> None:
    states = ClientStates(("residual", "mask"), 5, torch.device("cpu"))
    assert states.clients == {}
    first = states[3]
    assert list(first) == ["residual", "mask"]
    assert all(vector.dtype == torch.float32 and vector.shape == (5,) and not vector.any() for vector in first.values())
    first["residual"].fill_(1.0)
    assert (states[3]["residual"] == 1).all()
    assert not states[3]["mask"].any()
    assert not states[4]["residual"].any()
    assert sorted(states.clients) == [3, 4]


def test_loading_copies() -> None:
    states = ClientStates(("residual",), 5, torch.device("cpu"))
    saved = torch.arange(5.0)
    states.load(2, {"residual": saved})
    states[2]["residual"].add_(1.0)
    assert torch.equal(saved, torch.arange(5.0))
    assert torch.equal(states[2]["residual"], torch.arange(5.0) + 1)


def test_without_names_there_is_nothing_to_remember() -> None:
    assert ClientStates((), 5, torch.device("cpu"))[0] == {}
