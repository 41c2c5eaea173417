"""The server's step, its memory in checkpoints, and its draws of clients."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor

from flare_dist.algorithms.algorithm import FEDAVG, Algorithm
from flare_dist.algorithms.compose import compose
from flare_dist.algorithms.ef21 import ef21
from flare_dist.algorithms.feddyn import FedDynConfig, feddyn
from flare_dist.algorithms.scaffold import scaffold
from flare_dist.compression.payload import Sparse
from flare_dist.server.aggregation import DeltaSum, SparseSum
from flare_dist.server.config import ServerConfig
from flare_dist.server.optimizers import OPTIMIZERS
from flare_dist.server.server import Server, sample_cohort
from tests.helpers.payloads import unencoded
from tests.helpers.servers import ROUNDS, TOTAL, delta, server, start, vectors


def payloads(clients: int, kept: int, disjoint: bool) -> list[Sparse]:
    """Of each client `kept` entries, at its own places or anywhere."""
    draws = torch.Generator().manual_seed(clients)
    order = torch.randperm(TOTAL, generator=draws)
    places = [order[c * kept : (c + 1) * kept] if disjoint else order.roll(7 * c)[:kept] for c in range(clients)]
    return [unencoded(at.sort().values, torch.randn(kept, generator=draws)) for at in places]


@pytest.mark.parametrize("disjoint", [True, False])
def test_a_step_entry_by_entry_is_the_step_of_the_sum(disjoint: bool) -> None:
    """Bitwise at rate 1 where clients send different entries, to rounding where they share some; with a rejection."""
    sums: list[DeltaSum] = [SparseSum(), torch.zeros(TOTAL)]
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
        server(momentum=0.9).step(1, SparseSum())


def test_nesterov_steps_by_the_momentum_that_is_to_come() -> None:
    """v <- .9 v + Delta, w <- w + .7 (Delta + .9 v); without momentum the step stays plain."""
    used, w, v = server(**NESTEROV), start(), torch.zeros(TOTAL)
    for round_ in (1, 2, 3):
        used.step(round_, delta(round_))
        v = 0.9 * v + delta(round_)
        w = w + 0.7 * (delta(round_) + 0.9 * v)
        torch.testing.assert_close(used.parameters.data, w)
    assert not used.is_plain
    assert server(momentum=0.0).is_plain


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


NESTEROV = {"lr": 0.7, "momentum": 0.9, "nesterov": True}
SETTINGS: list[dict[str, Any]] = [{"optimizer": name, "lr": 0.1} for name in OPTIMIZERS] + [{"momentum": 0.9}, NESTEROV]


@pytest.mark.parametrize("settings", SETTINGS)
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


def server_of(algorithm: Algorithm) -> Server:
    return Server(torch.zeros(3), torch.empty(0), ServerConfig(), 3, algorithm=algorithm)


def test_the_server_s_vectors_are_saved_by_name_and_an_older_checkpoint_has_them_beside_the_rest() -> None:
    both = compose(feddyn(FedDynConfig()), scaffold())
    used = server_of(both)
    for place, vector in enumerate(used.memory.values(), 1):
        vector.fill_(place)
    file = io.BytesIO()
    torch.save(used.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    older = {**saved, **saved["algorithm"]}
    del older["algorithm"]
    for state in (saved, older):
        again = server_of(both)
        again.load_state_dict(state)
        assert {name: vector.tolist() for name, vector in again.memory.items()} == {
            "feddyn": [1.0] * 3,
            "control": [2.0] * 3,
        }
        assert again.told["control"] is again.memory["control"]
    plain = server_of(FEDAVG)
    for state in (saved, older):  # another method begins with nothing
        plain.load_state_dict(state)
    dyn = server_of(feddyn(FedDynConfig()))
    dyn.load_state_dict({**older, "feddyn": None})
    assert not dyn.memory["feddyn"].any()
