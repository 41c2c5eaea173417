"""FedDC: its equations, and FedDyn with SCAFFOLD's control variates."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from flare_dist.algorithms.compose import compose
from flare_dist.algorithms.feddc import FedDCConfig
from flare_dist.algorithms.feddyn import FedDynConfig, feddyn
from flare_dist.algorithms.methods import OBJECTIVES
from flare_dist.algorithms.scaffold import scaffold
from flare_dist.clients.config import ClientsConfig
from flare_dist.comm.world import World
from flare_dist.compression.config import CompressionConfig
from flare_dist.rounds.build_run import set_up_federation
from flare_dist.rounds.federated import federated_round
from tests.helpers.methods import ALPHA, check_that_it_goes_on, nova, of_clients, spy
from tests.helpers.rounds import DENSE, SPARSE, play
from tests.ranks import run_ranks, single

DC: dict[str, Any] = {"objective": "feddc", "feddc": FedDCConfig(ALPHA), "weighting": "uniform", "momentum": 0.0}


def test_feddc_follows_its_equations(monkeypatch: pytest.MonkeyPatch) -> None:
    """h_k += Delta_k, g_k+ = g_k - g - Delta_k / (K lr); w += mean of Delta_k + mean of all clients' h."""
    seen, used = spy(monkeypatch), of_clients(DENSE, **DC)
    fed = set_up_federation(used, World())
    num, lr, server = used.clients.count, used.clients.lr, fed.server
    drifts, gradients = torch.zeros(2, num, server.parameters.numel(), dtype=torch.float64)
    for round_ in (1, 2, 3):
        seen.clear()
        before, g = server.parameters.detach().double().clone(), gradients.mean(0)
        report = federated_round(round_, fed)
        for client, delta in seen.items():
            steps = used.clients.steps_with(len(fed.clients.partition[client]))
            drifts[client] += delta
            gradients[client] += -g - delta.double() / (steps * lr)
            own = fed.clients.states.clients[client]
            torch.testing.assert_close(own["drift"].double(), drifts[client], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(own["gradient"].double(), gradients[client], rtol=1e-4, atol=1e-4)
        expected = before + torch.stack(list(seen.values())).double().mean(0) + drifts.mean(0)
        torch.testing.assert_close(server.parameters.detach().double(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(server.memory["gradient"].double(), gradients.mean(0), rtol=1e-4, atol=1e-4)
        assert report["uplink_bytes"] == report["downlink_bytes"] == 2 * 4 * len(before) * len(seen)


def test_feddc_is_feddyn_with_scaffold_s_control_variates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its penalty and its server's step are those of FedDyn, with h_k = -alpha times the drift."""
    both = compose(feddyn(FedDynConfig(ALPHA)), scaffold())
    monkeypatch.setitem(OBJECTIVES, "scaffold", lambda clients: both)
    expected = single(play, of_clients(DENSE, **(DC | {"objective": "scaffold"})))[0]
    torch.testing.assert_close(single(play, of_clients(DENSE, **DC))[0], expected, rtol=1e-4, atol=1e-5)


def test_feddc_works_with_sparse_uplinks_on_any_number_of_ranks_and_goes_with_a_checkpoint() -> None:
    torch.set_num_threads(1)
    used = of_clients(SPARSE, **DC)
    parameters, _, clients, reports = single(play, used)
    for other, *_ in run_ranks(play, 2, used):
        assert torch.equal(other, parameters)
    assert reports[-1]["kept"] < 0.05 * reports[-1]["total"]
    names = {"residual", "drift", "gradient", "gradient_residual"}
    assert all(set(state) == names for state in clients.values())
    check_that_it_goes_on(used)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FedDCConfig(0.0), "clients.feddc.alpha: out of range, got 0.0; choose a number in \\(0, 1e38\\)"),
        (lambda: ClientsConfig(objective="feddc"), "clients.objective: feddc takes the plain mean of its clients"),
        (lambda: of_clients(DENSE, **(DC | {"momentum": 0.9})), "clients.objective: feddc's controls are mean"),
        (lambda: nova(DENSE, **DC), "server.aggregator: fednova does not go with feddc"),
        (
            lambda: dataclasses.replace(of_clients(SPARSE, **DC), compression=CompressionConfig(error_feedback="ef21")),
            "clients.objective: feddc's controls have no estimates for ef21",
        ),
    ],
)
def test_what_does_not_go_with_feddc_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()
