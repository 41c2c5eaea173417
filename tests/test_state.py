"""Who hosts whom, and what they remember."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flare_dist.clients.state import ClientStates, hosting_ranks

CPU = torch.device("cpu")
COHORTS = [[3], [0, 1, 2, 3], [17, 2, 40, 5, 11, 6, 23], list(range(100))]


class Away(Tensor):
    """Stands for a vector on another device than the training: to bring it there is to copy it."""

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.as_subclass(Tensor).clone()


def away(value: float) -> Tensor:
    return torch.full((5,), value).as_subclass(Away)


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


def test_memory_starts_at_zero_is_each_client_s_own_and_stays() -> None:
    states = ClientStates(("residual", "mask"), 5, CPU)
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
    states = ClientStates(("residual",), 5, CPU)
    saved = torch.arange(5.0)
    states.load(2, {"residual": saved})
    states[2]["residual"].add_(1.0)
    assert torch.equal(saved, torch.arange(5.0))
    assert torch.equal(states[2]["residual"], torch.arange(5.0) + 1)


def test_what_a_checkpoint_does_not_hold_starts_at_zero() -> None:
    """Another rule may remember more than the one that was saved, or less."""
    states = ClientStates(("residual", "mask"), 5, CPU)
    states.load(2, {"residual": torch.arange(5.0), "forgotten": torch.ones(5)})
    assert list(states[2]) == ["residual", "mask"]
    assert torch.equal(states[2]["residual"], torch.arange(5.0))
    assert torch.equal(states[2]["mask"], torch.zeros(5))
    assert sorted(states.clients) == [2]


def test_what_is_lent_is_the_memory_itself_where_it_is_at_home() -> None:
    states = ClientStates(("residual", "mask"), 5, CPU)
    with states.lend(3) as lent:
        assert all(lent[name] is states[3][name] for name in ("residual", "mask"))
        lent["residual"].add_(1.0)
    assert (states[3]["residual"] == 1).all()
    assert not states[3]["mask"].any()


def test_changes_come_home_from_another_device() -> None:
    states, home = ClientStates(("residual", "mask"), 5, CPU), {"residual": away(1.0), "mask": away(2.0)}
    states.clients[3] = dict(home)
    for round_ in (1, 2):
        with states.lend(3) as lent:
            assert list(lent) == ["residual", "mask"]
            assert all(type(vector) is Tensor for vector in lent.values())
            assert (lent["residual"] == round_).all()
            assert (lent["mask"] == 2).all()
            lent["residual"].add_(1.0)
            assert (home["residual"] == round_).all()  # not yet: it was a copy that changed
        assert (home["residual"] == round_ + 1).all()
        assert (home["mask"] == 2).all()
    assert all(states[3][name] is vector for name, vector in home.items())
    assert sorted(states.clients) == [3]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_changes_come_home_from_the_gpu() -> None:
    states, home = ClientStates(("residual",), 5, torch.device("cuda")), torch.ones(5)
    states.clients[3] = {"residual": home}
    with states.lend(3) as lent:
        assert lent["residual"].is_cuda
        lent["residual"].add_(1.0)
    assert home.tolist() == [2.0] * 5
    assert states[3]["residual"] is home


def test_without_names_there_is_nothing_to_remember() -> None:
    states = ClientStates((), 5, CPU)
    assert states[0] == {}
    with states.lend(1) as lent:
        assert lent == {}
