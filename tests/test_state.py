"""States are each client's own, start at zero and come home from the training device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flare_dist.clients.state import ClientStates

CPU = torch.device("cpu")


class Away(Tensor):
    """Stand for a vector on another device than the training: to bring it there is to copy it."""

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.as_subclass(Tensor).clone()


def away(value: float) -> Tensor:
    return torch.full((5,), value).as_subclass(Away)


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


def test_without_names_nothing_is_remembered() -> None:
    states = ClientStates((), 5, CPU)
    assert states[0] == {}
    with states.lend(1) as lent:
        assert lent == {}
