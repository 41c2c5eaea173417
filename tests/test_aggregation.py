"""The weighted mean, and whose weights count."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import permutations

import pytest
import torch
from torch import Tensor

from flare_dist.clients.config import ClientsConfig
from flare_dist.compression.payload import Dense, Payload, Sparse
from flare_dist.config.config import Config
from flare_dist.server.aggregation import WEIGHTINGS, cohort_weights, mean
from tests.helpers.payloads import unencoded

NUM_EXAMPLES = [10, 20, 30, 40, 7, 1]
Weighted = tuple[float, Sparse]


def weighted_payloads(total: int = 60, clients: int = 5) -> list[Weighted]:
    """Weights that sum to 1, and sparse payloads of ten entries and more."""
    rng = torch.Generator().manual_seed(0)
    weights = torch.rand(clients, generator=rng, dtype=torch.float64)
    sent = []
    for client, weight in enumerate(weights):
        indices = torch.randperm(total, generator=rng)[: 10 + client].sort().values.int()
        sent.append((float(weight / weights.sum()), unencoded(indices, torch.randn(10 + client, generator=rng))))
    return sent


def scattered(payload: Payload, total: int = 60) -> Tensor:
    """The payload as a vector of all entries."""
    if isinstance(payload, Dense):
        return payload.values.clone()
    vector = torch.zeros(total)
    vector[payload.indices.long()] = payload.values
    return vector


def in_dense_form(sent: list[Weighted]) -> list[tuple[float, Payload]]:
    return [(weight, Dense(scattered(payload))) for weight, payload in sent]


def summed(sent: Iterable[tuple[float, Payload]], total: int = 60) -> Tensor:
    vector = torch.zeros(total)
    for weight, payload in sent:
        mean(vector, payload, weight)
    return vector


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("cohort", [[0], [1, 3], [5, 0, 2], range(6)])
def test_weights_sum_to_one(weighting: str, cohort: list[int]) -> None:
    weights = cohort_weights(cohort, NUM_EXAMPLES, weighting)
    assert list(weights) == list(cohort)
    assert math.fsum(weights.values()) == pytest.approx(1, abs=1e-15)


def test_weights_are_the_clients_own() -> None:
    assert cohort_weights([3, 0], NUM_EXAMPLES, "num_examples") == {3: 0.8, 0: 0.2}
    assert cohort_weights([3, 0, 5, 4], NUM_EXAMPLES, "uniform") == dict.fromkeys([3, 0, 5, 4], 0.25)


def test_an_unknown_weighting_is_refused_by_the_run() -> None:
    with pytest.raises(
        ValueError, match=r"^clients\.weighting: unknown choice, got 'size'; choose from num_examples, uniform$"
    ):
        Config(clients=ClientsConfig(weighting="size"))


@pytest.mark.parametrize("dense", [False, True])
def test_the_mean_is_that_of_the_dense_vectors(dense: bool) -> None:
    sent = in_dense_form(weighted_payloads()) if dense else weighted_payloads()
    expected = torch.stack([weight * scattered(payload).double() for weight, payload in sent]).sum(0)
    got = summed(sent)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dense", [False, True])
def test_payloads_are_added_in_place_and_left_alone(dense: bool) -> None:
    """A dense payload is the trainer's own vector; a power of two as weight, hence exact."""
    _, payload = (in_dense_form(weighted_payloads()) if dense else weighted_payloads())[0]
    total, before = torch.arange(60.0), payload.values.clone()
    mean(total, payload, 0.5)
    assert torch.equal(total, torch.arange(60.0) + 0.5 * scattered(payload))
    assert torch.equal(payload.values, before)


@pytest.mark.parametrize("index_type", [torch.int32, torch.int64])
def test_one_client_of_weight_one_is_passed_on_exactly(index_type: torch.dtype) -> None:
    _, payload = weighted_payloads()[0]
    got = summed([(1.0, Sparse(payload.indices.to(index_type), payload.values, payload.data))])
    assert torch.equal(got[payload.indices.long()], payload.values)
    assert got.count_nonzero() == payload.values.numel()
    assert torch.equal(summed(in_dense_form([(1.0, payload)])), got)


def test_equal_clients_give_their_common_delta() -> None:
    """Weights are powers of two, hence exact."""
    _, payload = weighted_payloads()[0]
    sent = [(weight, payload) for weight in (0.5, 0.25, 0.25)]
    assert torch.equal(summed(sent), scattered(payload))
    assert torch.equal(summed(in_dense_form(sent)), scattered(payload))


def test_the_order_hardly_matters() -> None:
    means = [summed(order) for order in permutations(weighted_payloads(clients=4))]
    for each in means:
        torch.testing.assert_close(each, means[0], rtol=1e-5, atol=1e-7)


def at_zero(values: Tensor) -> Sparse:
    return unencoded(torch.tensor([0]), values)


@pytest.mark.parametrize("payload", [at_zero, Dense], ids=["sparse", "dense"])
def test_sums_are_taken_in_the_order_given(payload: Callable[[Tensor], Payload]) -> None:
    """1 is lost beside 2^24, unless 2^24 has gone before: every rank must therefore add in client order."""
    big = payload(torch.tensor([2.0**24]))
    one = payload(torch.tensor([1.0]))
    given = [(1.0, big), (1.0, one), (-1.0, big)]
    assert summed(given, 1).tolist() == [0.0]
    assert summed([given[0], given[2], given[1]], 1).tolist() == [1.0]


def test_an_empty_payload_adds_nothing() -> None:
    empty = unencoded(torch.empty(0), torch.empty(0))
    assert torch.equal(summed([(1.0, empty)], 4), torch.zeros(4))
