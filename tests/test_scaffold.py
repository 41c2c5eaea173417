"""SCAFFOLD: its equations, and its second payload."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from flare_dist.algorithms.algorithm import LocalContext
from flare_dist.algorithms.scaffold import scaffold
from flare_dist.clients.config import ClientsConfig
from flare_dist.comm.world import World
from flare_dist.compression.config import CompressionConfig
from flare_dist.layout import ParameterLayout
from flare_dist.rounds.build_run import set_up_federation
from flare_dist.rounds.federated import federated_round
from tests.helpers.methods import check_that_it_goes_on, of_clients, spy
from tests.helpers.rounds import DENSE, SPARSE, play
from tests.ranks import run_ranks, single

SCAFFOLD: dict[str, Any] = {"objective": "scaffold", "momentum": 0.0}


def test_scaffold_follows_its_equations(monkeypatch: pytest.MonkeyPatch) -> None:
    """c_k+ = c_k - c + (w_t - y) / (K lr), c += sum of the changes / N, and steps along g - c_k + c."""
    seen, used = spy(monkeypatch), of_clients(DENSE, **SCAFFOLD)
    fed = set_up_federation(used, World())
    num, lr = used.clients.count, used.clients.lr
    c = torch.zeros_like(fed.server.parameters.detach()).double()
    controls: dict[int, Tensor] = {}
    for round_ in (1, 2, 3):
        seen.clear()
        report = federated_round(round_, fed)
        change = torch.zeros_like(c)
        for client, delta in seen.items():
            steps = used.clients.steps_with(len(fed.clients.partition[client]))
            own = controls.get(client, torch.zeros_like(c))
            controls[client] = own - c - delta.double() / (steps * lr)
            change += controls[client] - own
            torch.testing.assert_close(
                fed.clients.states.clients[client]["control"].double(), controls[client], rtol=1e-4, atol=1e-5
            )
        c += change / num
        torch.testing.assert_close(fed.server.memory["control"].double(), c, rtol=1e-4, atol=1e-5)
        assert report["uplink_bytes"] == report["dense_bytes"] == 2 * 4 * len(c) * len(seen)
        assert report["downlink_bytes"] == 2 * 4 * len(c) * len(seen)
    # with everything sent the server's control variate is the mean of all clients'
    everybody = torch.stack([fed.clients.states.clients[client]["control"] for client in range(num)]).mean(0)
    torch.testing.assert_close(fed.server.memory["control"], everybody, rtol=1e-4, atol=1e-5)


def test_scaffold_adds_the_difference_of_the_control_variates() -> None:
    gradient, local, start, own = torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    server = {"control": torch.full((40,), 0.5)}
    context = LocalContext(ParameterLayout.of([("a", start)]), 1, 0.1, 0.0, start, {"control": own}, server)
    penalty = scaffold().penalty(context)
    assert penalty is not None
    expected = gradient - own + 0.5
    penalty.add_gradient(gradient, local)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("rule", ["ec", "dgc", "none"])
def test_scaffold_s_second_payload_is_sparse_and_has_a_residual_of_its_own(rule: str) -> None:
    torch.set_num_threads(1)
    compression = CompressionConfig(density=0.05, error_feedback=rule)
    used = dataclasses.replace(of_clients(SPARSE, **SCAFFOLD), compression=compression)
    parameters, _, clients, reports = single(play, used)
    for other, _, _, rows in run_ranks(play, 2, used):
        assert torch.equal(other, parameters)
        assert [row["uplink_bytes"] for row in rows] == [row["uplink_bytes"] for row in reports]
    assert reports[-1]["kept"] < 0.07 * reports[-1]["total"]
    remembered = {"ec": {"residual"}, "dgc": {"residual", "velocity"}, "none": set()}[rule]
    for state in clients.values():
        assert set(state) == {"control"} | remembered | {f"control_{name}" for name in remembered}
        if rule == "ec":
            assert not torch.equal(state["residual"], state["control_residual"])


def test_scaffold_s_memory_goes_with_a_checkpoint_and_a_rejected_client_keeps_its_own() -> None:
    used = of_clients(SPARSE, **SCAFFOLD)
    check_that_it_goes_on(used)
    clients, reports = single(play, used, (1,))[2:]
    assert not clients[1]["control"].any()
    assert reports[-1]["rejected_clients"] in (0, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClientsConfig(objective="scaffold", momentum=0.9), "clients.objective: scaffold's controls are mean"),
        (lambda: ClientsConfig(objective="scaffold", optimizer="adam"), "clients.objective: scaffold's controls are"),
        (
            lambda: dataclasses.replace(
                of_clients(SPARSE, **SCAFFOLD), compression=CompressionConfig(error_feedback="ef21")
            ),
            "clients.objective: scaffold's controls have no estimates for ef21",
        ),
    ],
)
def test_what_does_not_go_with_scaffold_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()
