"""The weighted mean, and whose weights count."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from flare_dist.server.aggregation import WEIGHTINGS, accepted_weights, cohort_weights, weighted_mean

NUM_EXAMPLES = [10, 20, 30, 40, 7, 1]
CPU = torch.device("cpu")
Pair = tuple[float, Tensor, Tensor]


def pairs(total: int = 60, clients: int = 5) -> list[Pair]:
    rng = torch.Generator().manual_seed(0)
    weights = torch.rand(clients, generator=rng, dtype=torch.float64)
    return [
        (
            float(weight / weights.sum()),
            torch.randperm(total, generator=rng)[: 10 + client].sort().values,
            torch.randn(10 + client, generator=rng),
        )
        for client, weight in enumerate(weights)
    ]


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("cohort", [[0], [1, 3], [5, 0, 2], range(6)])
def test_weights_sum_to_one(weighting: str, cohort: list[int]) -> None:
    weights = cohort_weights(cohort, NUM_EXAMPLES, weighting)
    assert list(weights) == list(cohort)
    assert math.fsum(weights.values()) == pytest.approx(1, abs=1e-15)


def test_weights_are_the_clients_own() -> None:
    assert cohort_weights([3, 0], NUM_EXAMPLES, "num_examples") == {3: 0.8, 0: 0.2}
    assert cohort_weights([3, 0, 5, 4], NUM_EXAMPLES, "uniform") == dict.fromkeys([3, 0, 5, 4], 0.25)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("accepted", [[0], [1, 3], [0, 2, 4, 5], [0, 1, 2, 3, 4, 5]])
def test_rejected_clients_weigh_nothing(weighting: str, accepted: list[int]) -> None:
    """What remains is weighted as if the others had never been drawn."""
    weights = accepted_weights(cohort_weights(range(6), NUM_EXAMPLES, weighting), accepted)
    expected = cohort_weights(accepted, NUM_EXAMPLES, weighting)
    assert weights == pytest.approx([expected[client] for client in accepted], rel=1e-14)


def test_nobody_accepted_leaves_no_weights() -> None:
    assert accepted_weights({0: 0.5, 1: 0.5}, []) == []


def test_weights_of_a_full_cohort_keep_their_bits_in_the_order_asked_for() -> None:
    weights = {4: 0.1, 2: 0.7, 9: 0.2}
    assert accepted_weights(weights, [2, 4, 9]) == [0.7, 0.1, 0.2]


def test_the_mean_is_that_of_the_dense_vectors() -> None:
    dense = torch.zeros(60, dtype=torch.float64)
    for weight, indices, values in pairs():
        scattered = torch.zeros(60, dtype=torch.float64)
        scattered[indices] = values.double()
        dense += weight * scattered
    mean = weighted_mean(60, pairs(), CPU)
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean.double(), dense, rtol=1e-6, atol=1e-7)


def test_one_client_of_weight_one_is_passed_on_exactly() -> None:
    (_, indices, values) = pairs()[0]
    mean = weighted_mean(60, [(1.0, indices.int(), values)], CPU)  # int32, as payloads bring them
    assert torch.equal(mean[indices], values)
    assert mean.count_nonzero() == len(indices)


def test_equal_clients_give_their_common_delta() -> None:
    """Weights are powers of two, hence exact."""
    _, indices, values = pairs()[0]
    mean = weighted_mean(60, [(weight, indices, values) for weight in (0.5, 0.25, 0.25)], CPU)
    assert torch.equal(mean[indices], values)


def test_the_order_hardly_matters() -> None:
    means = [weighted_mean(60, order, CPU) for order in permutations(pairs(clients=4))]
    for mean in means:
        torch.testing.assert_close(mean, means[0], rtol=1e-5, atol=1e-7)


def test_sums_are_taken_in_the_order_given() -> None:
    """1 is lost beside 2^24, unless 2^24 has gone before: every rank must therefore add in client order."""
    big, one = torch.tensor([2.0**24]), torch.tensor([1.0])
    at = torch.tensor([0])
    given = [(1.0, at, big), (1.0, at, one), (-1.0, at, big)]
    assert weighted_mean(1, given, CPU).tolist() == [0.0]
    assert weighted_mean(1, [given[0], given[2], given[1]], CPU).tolist() == [1.0]


def test_nobody_s_mean_is_zero() -> None:
    assert torch.equal(weighted_mean(4, [], CPU), torch.zeros(4))
