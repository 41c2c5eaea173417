"""FedDyn: its penalty, its server's step, and what clients remember."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flare_dist.algorithms.algorithm import LocalContext
from flare_dist.algorithms.feddyn import FedDynConfig, feddyn
from flare_dist.clients.config import ClientsConfig
from flare_dist.comm.world import World
from flare_dist.layout import ParameterLayout
from flare_dist.rounds.build_run import set_up_federation
from flare_dist.rounds.federated import federated_round
from tests.helpers.methods import ALPHA, DYN, check_that_it_goes_on, of_clients, spy
from tests.helpers.rounds import DENSE, SPARSE, play
from tests.ranks import run_ranks, single


def test_feddyn_adds_the_gradient_of_its_objective() -> None:
    rng = torch.Generator().manual_seed(0)
    gradient, local, start, h = torch.randn(4, 40, generator=rng, dtype=torch.float64)
    context = LocalContext(ParameterLayout.of([("a", start)]), 1, 0.1, 0.0, start, {"h": h}, {})
    penalty = feddyn(FedDynConfig(ALPHA)).penalty(context)
    assert penalty is not None
    moving = local.clone().requires_grad_()
    (-(h @ moving) + ALPHA / 2 * (moving - start).square().sum()).backward()
    assert moving.grad is not None
    expected = gradient + moving.grad
    penalty.add_gradient(gradient, local)
    torch.testing.assert_close(gradient, expected, rtol=1e-13, atol=1e-13)


def test_feddyn_s_step_is_the_mean_model_less_h_over_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spy(monkeypatch)
    used = of_clients(DENSE, **DYN)
    fed = set_up_federation(used, World())
    h = torch.zeros_like(fed.server.parameters.detach()).double()
    duals: dict[int, Tensor] = {}
    for round_ in (1, 2, 3):
        seen.clear()
        before = fed.server.parameters.detach().double().clone()
        federated_round(round_, fed)
        deltas = {client: delta.double() for client, delta in seen.items()}
        for client, delta in deltas.items():
            duals[client] = duals.get(client, torch.zeros_like(delta)) - ALPHA * delta
        h -= ALPHA / used.clients.count * torch.stack(list(deltas.values())).sum(0)
        expected = before + torch.stack(list(deltas.values())).mean(0) - h / ALPHA
        torch.testing.assert_close(fed.server.parameters.detach().double(), expected, rtol=1e-5, atol=1e-6)
        for client, dual in duals.items():
            torch.testing.assert_close(fed.clients.states.clients[client]["h"].double(), dual, rtol=1e-5, atol=1e-6)
    # the server's h is the mean of all clients', of those that never took part as well
    everybody = torch.stack([fed.clients.states.clients[client]["h"] for client in range(used.clients.count)]).mean(0)
    torch.testing.assert_close(fed.server.memory["feddyn"], everybody, rtol=1e-4, atol=1e-6)


def test_feddyn_works_with_sparse_uplinks_on_any_number_of_ranks() -> None:
    torch.set_num_threads(1)
    used = of_clients(SPARSE, **DYN)
    parameters, _, clients, reports = single(play, used)
    assert reports[-1]["kept"] < 0.05 * reports[-1]["total"]
    for other, *_ in run_ranks(play, 2, used):
        assert torch.equal(other, parameters)
    assert all(set(state) == {"residual", "h"} for state in clients.values())


def test_feddyn_s_memory_goes_with_a_checkpoint() -> None:
    check_that_it_goes_on(of_clients(DENSE, **DYN))


def test_a_client_whose_update_is_rejected_remembers_nothing_of_it() -> None:
    used = of_clients(DENSE, **DYN)
    clients = single(play, used, (1,))[2]
    assert not clients[1]["h"].any()
    assert any(state["h"].any() for state in clients.values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FedDynConfig(0.0), "clients.feddyn.alpha: out of range, got 0.0; choose a number in \\(0, 1e38\\)"),
        (lambda: ClientsConfig(objective="feddyn"), "clients.objective: feddyn takes the plain mean of its clients"),
    ],
)
def test_what_does_not_go_with_feddyn_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()
