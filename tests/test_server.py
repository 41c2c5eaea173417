"""The server's step against the methods that it is named after, its memory, and its draws."""

from __future__ import annotations

import copy
import io
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adagrad, Adam, AdamW, Optimizer, RMSprop

from flare_dist.algorithms.algorithm import FEDAVG
from flare_dist.algorithms.ef21 import ef21
from flare_dist.compression.payload import Sparse
from flare_dist.server.aggregation import DeltaSum, SparseSum
from flare_dist.server.config import ServerConfig
from flare_dist.server.optimizers import OPTIMIZERS, find_optimizer, load_optimizer_state, optimizer_state
from flare_dist.server.server import Server, sample_cohort
from tests.helpers.payloads import unencoded

TOTAL, ROUNDS = 50, 10


def start() -> Tensor:
    return torch.randn(TOTAL, generator=torch.Generator().manual_seed(0))


def server(**settings: Any) -> Server:
    return Server(start(), torch.arange(3.0), ServerConfig(**settings), ROUNDS)


def delta(round_: int) -> Tensor:
    return 0.1 * torch.randn(TOTAL, generator=torch.Generator().manual_seed(round_))


def vectors(state: dict[str, Any]) -> list[Tensor]:
    """All tensors of a server's state."""
    remembered = [tensor for slot in state["optimizer"]["state"].values() for tensor in slot.values()]
    return [state["parameters"], state["buffers"], *remembered]


def test_sgd_at_rate_one_is_fedavg_exactly() -> None:
    used, expected = server(), start()
    for round_ in (1, 2, 3):
        used.step(round_, delta(round_))
        expected = expected + delta(round_)
        assert torch.equal(used.parameters.data, expected)


def payloads(clients: int, kept: int, disjoint: bool) -> list[Sparse]:
    """Of each client `kept` entries, at its own places or anywhere."""
    draws = torch.Generator().manual_seed(clients)
    order = torch.randperm(TOTAL, generator=draws)
    places = [order[c * kept : (c + 1) * kept] if disjoint else order.roll(7 * c)[:kept] for c in range(clients)]
    return [unencoded(at.sort().values, torch.randn(kept, generator=draws)) for at in places]


@pytest.mark.parametrize("disjoint", [True, False])
def test_a_step_entry_by_entry_is_the_step_of_the_sum(disjoint: bool) -> None:
    """Bitwise at rate 1 where clients send different entries, to rounding where they share some; with a rejection."""
    sums: list[DeltaSum] = [SparseSum(TOTAL), torch.zeros(TOTAL)]
    servers = [server(lr=1.0 if disjoint else 0.3) for _ in sums]
    for used, total in zip(servers, sums):
        for client, payload in enumerate(payloads(5, 10, disjoint)):
            used.receive(total, client, payload, 0.2)
        total.div_(0.7)
        total.mul_(1.5)
        used.step(1, total)
    one, other = (used.parameters.data for used in servers)
    torch.testing.assert_close(one, other, rtol=0.0 if disjoint else 1e-6, atol=0.0 if disjoint else 1e-7)
    assert not torch.equal(one, start())


def test_only_a_plain_step_on_few_entries_is_taken_entry_by_entry() -> None:
    assert isinstance(server(lr=0.5).new_sum(TOTAL // 3), SparseSum)
    assert isinstance(server(optimizer="fedavgm", momentum=0.0).new_sum(TOTAL // 3), SparseSum)
    assert isinstance(server().new_sum(TOTAL // 3 + 1), Tensor)  # its entries would take more memory than a vector
    assert isinstance(server(momentum=0.9).new_sum(1), Tensor)
    assert isinstance(server(optimizer="fedyogi").new_sum(1), Tensor)
    with pytest.raises(AssertionError, match="plain step"):
        server(momentum=0.9).step(1, SparseSum(TOTAL))


def test_momentum_is_fedavgm() -> None:
    """v <- 0.5 v + Delta, w <- w + 0.25 v (Hsu et al. 2019), by hand: binary fractions, hence exact."""
    used = Server(torch.zeros(2), torch.empty(0), ServerConfig(lr=0.25, momentum=0.5), ROUNDS)
    for mean_delta, expected in [
        ([8.0, -4.0], [2.0, -1.0]),
        ([4.0, 0.0], [4.0, -1.5]),
        ([0.0, 16.0], [5.0, 2.25]),
    ]:
        used.step(1, torch.tensor(mean_delta))
        assert used.parameters.tolist() == expected


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        ({"optimizer": "adam", "lr": 0.01}, lambda p: Adam([p], lr=0.01)),
        ({"optimizer": "adamw", "lr": 0.01}, lambda p: AdamW([p], lr=0.01)),
        ({"optimizer": "adagrad", "lr": 0.01}, lambda p: Adagrad([p], lr=0.01)),
        ({"optimizer": "rmsprop", "lr": 0.01, "momentum": 0.9}, lambda p: RMSprop([p], lr=0.01, momentum=0.9)),
    ],
)
def test_other_optimizers_are_torch_s_on_the_pseudo_gradient(
    settings: dict[str, Any], make: Callable[[Tensor], Optimizer]
) -> None:
    used, plain = server(**settings), nn.Parameter(start())
    optimizer = make(plain)
    for round_ in range(1, 5):
        used.step(round_, delta(round_))
        plain.grad = -delta(round_)
        optimizer.step()
        assert torch.equal(used.parameters.data, plain.data)


# Two weights over three rounds, worked out by hand with tau = 0.1, lr = 0.5 and the published betas.
DELTAS = ((0.2, -0.05), (0.1, 0.3), (-0.4, 0.0))


def by_hand(name: str, deltas: list[float]) -> list[float]:
    """Where one weight, at first 0, is after each round: the equations of Reddi et al. 2021, a number at a time."""
    w, m, v, path = 0.0, 0.0, 0.1**2, []
    for delta_ in deltas:
        if name == "fedavgm":
            m = 0.9 * m + delta_
            w = w + 0.5 * m
        else:
            beta1 = 0.0 if name == "fedadagrad" else 0.9
            m = beta1 * m + (1 - beta1) * delta_
            squared = delta_ * delta_
            if name == "fedadagrad":
                v = v + squared
            elif name == "fedadam":
                v = 0.99 * v + 0.01 * squared
            else:
                v = v - 0.01 * squared * (1 if v > squared else -1 if v < squared else 0)
            w = w + 0.5 * m / (math.sqrt(v) + 0.1)
        path.append(w)
    return path


LAST = {  # of the first weight, to the tenth digit
    "fedavgm": 0.1660000000,
    "fedadagrad": 0.1024978011,
    "fedadam": 0.0836438119,
    "fedyogi": 0.0836005417,
}


@pytest.mark.parametrize("name", LAST)
def test_adaptive_federated_optimizers_follow_a_trajectory_worked_out_by_hand(name: str) -> None:
    used = ServerConfig(optimizer=name, lr=0.5, tau=0.1)
    parameters = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = find_optimizer(name).make(parameters, used.settings)
    expected = list(zip(*(by_hand(name, [row[place] for row in DELTAS]) for place in (0, 1))))
    for row, wanted in zip(DELTAS, expected):
        parameters.grad = -torch.tensor(row, dtype=torch.float64)
        optimizer.step()
        assert parameters.tolist() == pytest.approx(wanted, rel=0, abs=1e-9)
    assert parameters[0].item() == pytest.approx(LAST[name], rel=0, abs=1e-9)


def test_adaptive_moments_begin_at_tau_squared_and_go_back_to_it_where_weights_are_pruned() -> None:
    used = server(optimizer="fedyogi", lr=0.1)
    used.step(1, delta(1))
    state = used.optimizer.state[used.parameters]
    mask = torch.arange(TOTAL) < 30
    assert used.forget_outside(mask) == 2 * 20  # m and v of what is pruned
    assert used.forget_outside(mask) == 0
    assert not state["m"][30:].any()
    assert torch.equal(state["v"][30:], torch.full((20,), 1e-3**2))
    assert state["m"][:30].all()


def test_defaults_of_optimizers_are_those_published() -> None:
    assert ServerConfig(optimizer="fedavgm").settings.momentum == 0.9
    assert ServerConfig(optimizer="fedavgm", momentum=0.0).settings.momentum == 0.0
    assert ServerConfig(optimizer="fedadam").settings[2:] == ((0.9, 0.99), 1e-3)
    assert ServerConfig(optimizer="fedadagrad").settings.betas == (0.0, 0.99)
    assert not ServerConfig(optimizer="fedavgm", momentum=0.0).has_memory
    assert ServerConfig(optimizer="fedadagrad").has_memory


def test_any_optimizer_of_torch_can_be_named() -> None:
    used, plain = server(optimizer="torch:NAdam", lr=0.01, betas=(0.8, 0.9)), nn.Parameter(start())
    optimizer = torch.optim.NAdam([plain], lr=0.01, betas=(0.8, 0.9))
    for round_ in (1, 2, 3):
        used.step(round_, delta(round_))
        plain.grad = -delta(round_)
        optimizer.step()
        assert torch.equal(used.parameters.data, plain.data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"optimizer": "lamb"},
            "unknown choice, got 'lamb'; choose from sgd, fedavgm, fedadagrad, fedadam, fedyogi, adam",
        ),
        ({"optimizer": "torch:Lamb"}, "unknown choice, got 'torch:Lamb'; choose from sgd, fedavgm"),
        ({"optimizer": "torch:lr_scheduler"}, "unknown choice, got 'torch:lr_scheduler'"),
        ({"optimizer": "torch:LBFGS"}, "server.optimizer: torch:LBFGS does not step one flat vector"),
        ({"optimizer": "torch:SparseAdam"}, "server.optimizer: torch:SparseAdam does not step one flat vector"),
        (
            {"optimizer": "fedadam", "momentum": 0.9},
            "server.momentum: this optimizer takes no momentum, got 0.9 with server.optimizer=fedadam",
        ),
        (
            {"optimizer": "sgd", "betas": (0.9, 0.9)},
            "server.betas: this optimizer takes no betas, got [0.9, 0.9] with server.optimizer=sgd",
        ),
        (
            {"optimizer": "fedadam", "betas": (0.9, 1.0)},
            "server.betas: out of range, got 1.0; choose a number in [0, 1)",
        ),
        ({"optimizer": "fedadam", "tau": 0.0}, "server.tau: out of range, got 0.0; choose a number in (0, 1e19)"),
    ],
)
def test_optimizers_that_cannot_be_are_said_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        ServerConfig(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_server_follows_the_clients(optimizer: str) -> None:
    """A step in the delta's direction, not against it."""
    used = server(optimizer=optimizer, lr=0.01)
    used.step(1, delta(1))
    assert ((used.parameters.data - start()) * delta(1)).sum() > 0


def test_the_schedule_scales_the_rate() -> None:
    used = Server(torch.zeros(1), torch.empty(0), ServerConfig(lr=2.0, lr_schedule="linear"), rounds=4)
    steps = []
    for round_ in (1, 2, 3, 4):
        before = used.parameters.item()
        used.step(round_, torch.ones(1))
        steps.append(used.parameters.item() - before)
    assert steps == [2.0, 1.5, 1.0, 0.5]


def test_the_server_owns_its_model() -> None:
    parameters, buffers = start(), torch.arange(3.0)
    used = Server(parameters, buffers, ServerConfig(), ROUNDS)
    used.step(1, delta(1))
    used.buffers.zero_()
    assert torch.equal(parameters, start())
    assert torch.equal(buffers, torch.arange(3.0))


def pair(index: int, value: float) -> Sparse:
    return unencoded(torch.tensor([index]), torch.tensor([value]))


def test_payloads_are_added_up_as_they_come_unless_they_are_changes_of_estimates() -> None:
    """EF21: client 4 is heard twice and its estimate counts whole each time; client 2 is absent in the second round."""
    means = {}
    for estimated in (False, True):
        used = Server(torch.zeros(3), torch.empty(0), ServerConfig(), ROUNDS, ef21() if estimated else FEDAVG)
        assert used.is_plain is not estimated
        for round_, heard in enumerate([[(2, 0, 8.0), (4, 1, 4.0)], [(4, 2, 2.0)]]):
            means[estimated, round_] = torch.zeros(3)
            for client, index, value in heard:
                used.receive(means[estimated, round_], client, pair(index, value), 0.5)
    assert means[False, 0].tolist() == means[True, 0].tolist() == [4.0, 2.0, 0.0]
    assert means[False, 1].tolist() == [0.0, 0.0, 1.0]
    assert means[True, 1].tolist() == [0.0, 2.0, 1.0]


def test_estimates_are_restored() -> None:
    used = Server(torch.zeros(3), torch.empty(0), ServerConfig(), ROUNDS, ef21())
    used.receive(torch.zeros(3), 4, pair(1, 4.0), 1.0)
    file = io.BytesIO()
    torch.save(used.state_dict(), file)
    file.seek(0)
    resumed = Server(torch.zeros(3), torch.empty(0), ServerConfig(), ROUNDS, ef21())
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for server_ in (used, resumed):
        total = torch.zeros(3)
        server_.receive(total, 4, pair(2, 2.0), 1.0)
        assert total.tolist() == [0.0, 4.0, 2.0]


@pytest.mark.parametrize("settings", [{"optimizer": name, "lr": 0.1} for name in OPTIMIZERS] + [{"momentum": 0.9}])
def test_a_restored_server_goes_on_as_if_nothing_had_happened(settings: dict[str, Any]) -> None:
    straight = server(lr_schedule="cosine", **settings)
    for round_ in (1, 2, 3):
        straight.step(round_, delta(round_))
    straight.buffers.mul_(2)
    file = io.BytesIO()
    torch.save(straight.state_dict(), file)
    file.seek(0)
    resumed = Server(torch.zeros(TOTAL), torch.zeros(3), straight.config, ROUNDS)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(resumed.buffers, torch.tensor([0.0, 2.0, 4.0]))
    for round_ in (4, 5):
        straight.step(round_, delta(round_))
        resumed.step(round_, delta(round_))
        assert torch.equal(resumed.parameters.data, straight.parameters.data)


def test_a_checkpoint_refers_to_the_server_s_own_vectors() -> None:
    used = server(optimizer="adam")
    used.step(1, delta(1))
    state = used.state_dict()
    assert state["parameters"].data_ptr() == used.parameters.data_ptr()
    assert state["buffers"] is used.buffers
    assert state["optimizer"]["name"] == "adam"
    assert sorted(state["optimizer"]) == ["name", "state"]


def test_a_restored_server_shares_nothing_with_what_it_was_restored_from() -> None:
    for name in OPTIMIZERS:
        old = server(optimizer=name, lr=0.1, momentum=0.9 if name in ("sgd", "rmsprop") else None)
        old.step(1, delta(1))
        saved = old.state_dict()
        kept = copy.deepcopy(saved)
        new = Server(torch.zeros(TOTAL), torch.zeros(3), old.config, ROUNDS)
        new.load_state_dict(saved)
        new.step(2, delta(2))
        new.buffers.add_(1.0)
        assert all(map(torch.equal, vectors(saved), vectors(kept)))
        assert saved["optimizer"]["state"]  # there was something to share


@pytest.mark.parametrize("other", [name for name in OPTIMIZERS if name != "adam"])
def test_another_optimizer_s_state_is_refused_and_nothing_is_changed(other: str) -> None:
    old, new = server(optimizer="adam"), Server(torch.zeros(TOTAL), torch.zeros(3), ServerConfig(other), ROUNDS)
    old.step(1, delta(1))
    before = copy.deepcopy(vectors(new.state_dict()))
    with pytest.raises(
        ValueError, match=rf"^server\.optimizer: the checkpoint holds the state of adam, not of {other}$"
    ):
        new.load_state_dict(old.state_dict())
    after = vectors(new.state_dict())
    assert len(after) == len(before)
    assert all(map(torch.equal, after, before))


def test_the_error_names_the_key_that_it_is_given() -> None:
    plain = nn.Parameter(start())
    optimizer = Adam([plain])
    plain.grad = delta(1)
    optimizer.step()
    saved = optimizer_state(optimizer, "adam")
    with pytest.raises(ValueError, match=r"^clients\.optimizer: .* adam, not of adamw$"):
        load_optimizer_state(AdamW([plain]), "adamw", saved, "clients.optimizer")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_stateless_past_goes_with_any_optimizer(optimizer: str) -> None:
    """Plain sgd leaves nothing behind, so a run may go on with another method as if it started there."""
    old = server()
    old.step(1, delta(1))
    assert not old.state_dict()["optimizer"]["state"]
    config = ServerConfig(optimizer, lr=0.1)
    resumed, new = Server(start(), torch.zeros(3), config, ROUNDS), Server(old.parameters.data, old.buffers, config, 10)
    resumed.load_state_dict(old.state_dict())
    for round_ in (2, 3):
        for each in (resumed, new):
            each.step(round_, delta(round_))
        assert torch.equal(resumed.parameters.data, new.parameters.data)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"momentum": 0.9}, {"momentum": 0.25, "lr": 0.5}),
        ({"momentum": 0.9}, {"momentum": 0.0, "lr": 0.5}),
        ({"momentum": 0.0}, {"momentum": 0.5, "lr": 0.5}),
        ({"optimizer": "rmsprop", "momentum": 0.9}, {"optimizer": "rmsprop", "momentum": 0.5, "lr": 0.01}),
        ({"optimizer": "rmsprop", "momentum": 0.0}, {"optimizer": "rmsprop", "momentum": 0.5, "lr": 0.01}),
    ],
)
def test_settings_are_the_new_configuration_s(old: dict[str, Any], new: dict[str, Any]) -> None:
    past, resumed = server(**old), server(**new)
    past.step(1, delta(1))
    settings = copy.deepcopy(resumed.optimizer.state_dict()["param_groups"])
    resumed.load_state_dict(past.state_dict())
    assert resumed.optimizer.state_dict()["param_groups"] == settings
    assert resumed.optimizer.param_groups[0]["momentum"] == new["momentum"]
    resumed.step(2, delta(2))
    if "optimizer" not in new:  # by hand: v <- m v + Delta, with the old v where there was one
        velocity = delta(2) + (new["momentum"] * delta(1) if old["momentum"] else 0)
        torch.testing.assert_close(resumed.parameters.data, past.parameters.data + 0.5 * velocity)


@pytest.mark.parametrize("settings", [{"optimizer": name} for name in OPTIMIZERS] + [{"momentum": 0.9}])
def test_stateless_means_that_the_last_delta_alone_decides(settings: dict[str, Any]) -> None:
    """Two servers at the same parameters with different pasts take the same step if, and only if, stateless."""
    config = ServerConfig(lr=0.1, **settings)
    travelled, new = (Server(start(), torch.empty(0), config, ROUNDS) for _ in range(2))
    travelled.step(1, delta(1))
    travelled.parameters.data.copy_(start())
    for each in (travelled, new):
        each.step(2, delta(2))
    assert torch.equal(travelled.parameters.data, new.parameters.data) == new.is_plain


@pytest.mark.parametrize(("num", "per_round"), [(1, 1), (10, 3), (10, 10), (1000, 100)])
def test_cohorts_are_distinct_clients_ascending_and_repeatable(num: int, per_round: int) -> None:
    for round_ in range(1, 20):
        cohort = sample_cohort(0, round_, num, per_round)
        assert len(cohort) == per_round
        assert cohort == sorted(set(cohort))
        assert set(cohort) <= set(range(num))
        assert cohort == sample_cohort(0, round_, num, per_round)


def test_cohorts_are_drawn_afresh_for_each_round_and_seed() -> None:
    cohorts = {tuple(sample_cohort(seed, round_, 100, 10)) for seed in range(5) for round_ in range(20)}
    assert len(cohorts) == 100


def test_every_client_is_as_likely() -> None:
    counts = torch.zeros(20)
    for round_ in range(2000):
        counts[sample_cohort(0, round_, 20, 5)] += 1
    torch.testing.assert_close(counts / 2000, torch.full((20,), 0.25), atol=0.04, rtol=0)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("optimizer", {"optimizer": "lion"}),
        ("lr", {"lr": 0.0}),
        ("lr", {"lr": math.nan}),
        ("momentum", {"momentum": -0.5}),
        ("momentum", {"optimizer": "adam", "momentum": 0.9}),
        ("aggregator", {"aggregator": "median"}),
        ("lr_schedule", {"lr_schedule": "step:0.1"}),
    ],
)
def test_errors_name_the_key(key: str, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^server\.{key}: "):
        ServerConfig(**values)
