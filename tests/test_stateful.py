"""FedDyn and FedNova: what clients and the server remember, and how many gradients a delta is worth."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from flare_dist.algorithms.algorithm import LocalContext, LocalWork
from flare_dist.algorithms.compose import compose
from flare_dist.algorithms.feddc import FedDCConfig
from flare_dist.algorithms.feddyn import FedDynConfig, feddyn
from flare_dist.algorithms.fednova import gradients_in
from flare_dist.algorithms.fedprox import FedProxConfig
from flare_dist.algorithms.methods import OBJECTIVES, algorithm_of
from flare_dist.algorithms.scaffold import scaffold
from flare_dist.clients.client import ClientResult, LocalTrainer
from flare_dist.clients.config import ClientsConfig
from flare_dist.comm.world import World
from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import Config
from flare_dist.layout import ParameterLayout
from flare_dist.rounds.federated import federated_round
from flare_dist.rounds.setup import set_up_federation
from flare_dist.server.config import ServerConfig
from flare_dist.sparse_training.config import SparseTrainingConfig
from tests.helpers.rounds import DENSE, SPARSE, play
from tests.ranks import run_ranks, single

ALPHA = 0.5
DYN: dict[str, Any] = {"objective": "feddyn", "feddyn": FedDynConfig(ALPHA), "weighting": "uniform", "momentum": 0.0}


def of_clients(config: Config, **settings: Any) -> Config:
    return dataclasses.replace(config, clients=dataclasses.replace(config.clients, **settings))


def nova(config: Config, **settings: Any) -> Config:
    return dataclasses.replace(of_clients(config, **settings), server=ServerConfig(aggregator="fednova"))


def spy(monkeypatch: pytest.MonkeyPatch) -> dict[int, Tensor]:
    """The model delta of each client of a round."""
    seen: dict[int, Tensor] = {}
    plain = LocalTrainer.train

    def train_and_tell(self: LocalTrainer, *arguments: Any) -> ClientResult:
        result = plain(self, *arguments)
        seen[result.client] = result.model_delta.clone()
        return result

    monkeypatch.setattr(LocalTrainer, "train", train_and_tell)
    return seen


def check_that_it_goes_on(used: Config) -> None:
    """A round from what a checkpoint keeps of server and clients has the bits of one without the break."""
    straight = set_up_federation(used, World())
    federated_round(1, straight)
    again = set_up_federation(used, World())
    again.server.load_state_dict(straight.server.state_dict())
    for client, state in straight.clients.states.clients.items():
        again.clients.states.load(client, {name: vector.clone() for name, vector in state.items()})
    for fed in (straight, again):
        federated_round(2, fed)
    assert torch.equal(straight.server.parameters, again.server.parameters)


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
        h -= ALPHA / used.clients.num * torch.stack(list(deltas.values())).sum(0)
        expected = before + torch.stack(list(deltas.values())).mean(0) - h / ALPHA
        torch.testing.assert_close(fed.server.parameters.detach().double(), expected, rtol=1e-5, atol=1e-6)
        for client, dual in duals.items():
            torch.testing.assert_close(fed.clients.states.clients[client]["h"].double(), dual, rtol=1e-5, atol=1e-6)
    # the server's h is the mean of all clients', of those that never took part as well
    everybody = torch.stack([fed.clients.states.clients[client]["h"] for client in range(used.clients.num)]).mean(0)
    torch.testing.assert_close(fed.server.memory["feddyn"], everybody, rtol=1e-4, atol=1e-6)


def test_feddyn_and_fednova_work_with_sparse_uplinks_on_any_number_of_ranks() -> None:
    torch.set_num_threads(1)
    for used in (of_clients(SPARSE, **DYN), nova(SPARSE)):
        parameters, _, clients, reports = single(play, used)
        assert reports[-1]["kept"] < 0.05 * reports[-1]["total"]
        for other, *_ in run_ranks(play, 2, used):
            assert torch.equal(other, parameters)
        names = {"residual", "h"} if used.clients.objective == "feddyn" else {"residual"}
        assert all(set(state) == names for state in clients.values())


def test_feddyn_s_memory_goes_with_a_checkpoint() -> None:
    check_that_it_goes_on(of_clients(DENSE, **DYN))


def test_a_client_whose_update_is_rejected_remembers_nothing_of_it() -> None:
    used = of_clients(DENSE, **DYN)
    clients = single(play, used, (1,))[2]
    assert not clients[1]["h"].any()
    assert any(state["h"].any() for state in clients.values())


def test_how_many_gradients_a_delta_is_worth() -> None:
    assert gradients_in(LocalWork(1, 7, 0.1, 0.0)) == 7
    assert gradients_in(LocalWork(1, 3, 0.1, 0.5)) == 1 + 1.5 + 1.75
    prox = algorithm_of(ClientsConfig(objective="fedprox", fedprox=FedProxConfig(2.0)), "fednova")
    assert prox.brief(LocalWork(1, 3, 0.1, 0.0)).gradients == pytest.approx(0.8**2 + 0.8 + 1)


def test_fednova_of_equal_steps_is_fedavg_and_of_unequal_ones_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    equal = {"local_steps": 3}
    average = single(play, of_clients(DENSE, **equal))[0]
    torch.testing.assert_close(single(play, nova(DENSE, **equal))[0], average, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(single(play, nova(DENSE))[0], single(play, DENSE)[0], atol=1e-4)
    seen, used = spy(monkeypatch), nova(DENSE)
    fed = set_up_federation(used, World())
    before = fed.server.parameters.detach().double().clone()
    federated_round(1, fed)
    examples = {client: len(fed.clients.partition[client]) for client in seen}
    shares = {client: n / sum(examples.values()) for client, n in examples.items()}
    momentum = used.clients.momentum
    norms = {c: gradients_in(LocalWork(1, used.clients.steps_with(n), 0.05, momentum)) for c, n in examples.items()}
    assert len(set(norms.values())) > 1
    effective = sum(shares[c] * norms[c] for c in seen)
    step = sum(shares[c] * seen[c].double() / norms[c] for c in seen)
    expected = before + effective * step
    torch.testing.assert_close(fed.server.parameters.detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FedDynConfig(0.0), "clients.feddyn.alpha: must be positive and finite, got 0.0"),
        (lambda: ClientsConfig(objective="feddyn"), "clients.objective: feddyn takes the plain mean of its clients"),
        (lambda: nova(DENSE, optimizer="adam", momentum=0.0), "server.aggregator: fednova counts steps of sgd, got"),
        (lambda: nova(DENSE, **DYN), "server.aggregator: fednova does not go with feddyn"),
        (
            lambda: dataclasses.replace(
                nova(DENSE),
                compression=CompressionConfig(sparsifier="dense"),
                sparse_training=SparseTrainingConfig(method="pdst"),
            ),
            "server.aggregator: fednova does not go with sparse models",
        ),
    ],
)
def test_what_does_not_go_together_is_said(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


SCAFFOLD: dict[str, Any] = {"objective": "scaffold", "momentum": 0.0}


def test_scaffold_follows_its_equations(monkeypatch: pytest.MonkeyPatch) -> None:
    """c_k+ = c_k - c + (w_t - y) / (K lr), c += sum of the changes / N, and steps along g - c_k + c."""
    seen, used = spy(monkeypatch), of_clients(DENSE, **SCAFFOLD)
    fed = set_up_federation(used, World())
    num, lr = used.clients.num, used.clients.lr
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
def test_what_does_not_go_with_scaffold_is_said(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


DC: dict[str, Any] = {"objective": "feddc", "feddc": FedDCConfig(ALPHA), "weighting": "uniform", "momentum": 0.0}


def test_feddc_follows_its_equations(monkeypatch: pytest.MonkeyPatch) -> None:
    """h_k += Delta_k, g_k+ = g_k - g - Delta_k / (K lr); w += mean of Delta_k + mean of all clients' h."""
    seen, used = spy(monkeypatch), of_clients(DENSE, **DC)
    fed = set_up_federation(used, World())
    num, lr, server = used.clients.num, used.clients.lr, fed.server
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
        (lambda: FedDCConfig(0.0), "clients.feddc.alpha: must be positive and finite, got 0.0"),
        (lambda: ClientsConfig(objective="feddc"), "clients.objective: feddc takes the plain mean of its clients"),
        (lambda: of_clients(DENSE, **(DC | {"momentum": 0.9})), "clients.objective: feddc's controls are mean"),
        (lambda: nova(DENSE, **DC), "server.aggregator: fednova does not go with feddc"),
        (
            lambda: dataclasses.replace(of_clients(SPARSE, **DC), compression=CompressionConfig(error_feedback="ef21")),
            "clients.objective: feddc's controls have no estimates for ef21",
        ),
    ],
)
def test_what_does_not_go_with_feddc_is_said(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()
