"""The server's step against the methods that it is named after, its memory, and its draws."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adagrad, Adam, AdamW, Optimizer, RMSprop

from flare_dist.server.config import ServerConfig
from flare_dist.server.optimizers import OPTIMIZERS
from flare_dist.server.server import Server, sample_cohort

TOTAL, ROUNDS = 50, 10


def start() -> Tensor:
    return torch.randn(TOTAL, generator=torch.Generator().manual_seed(0))


def server(**settings: Any) -> Server:
    return Server(start(), torch.arange(3.0), ServerConfig(**settings), ROUNDS)


def delta(round_: int) -> Tensor:
    return 0.1 * torch.randn(TOTAL, generator=torch.Generator().manual_seed(round_))


def test_sgd_at_rate_one_is_fedavg_exactly() -> None:
    used, expected = server(), start()
    for round_ in (1, 2, 3):
        used.step(round_, delta(round_))
        expected = expected + delta(round_)
        assert torch.equal(used.parameters.data, expected)


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


@pytest.mark.parametrize("settings", [{"optimizer": name} for name in OPTIMIZERS] + [{"momentum": 0.9}])
def test_stateless_means_that_the_last_delta_alone_decides(settings: dict[str, Any]) -> None:
    """Two servers at the same parameters with different pasts take the same step if, and only if, stateless."""
    config = ServerConfig(lr=0.1, **settings)
    travelled, new = (Server(start(), torch.empty(0), config, ROUNDS) for _ in range(2))
    travelled.step(1, delta(1))
    travelled.parameters.data.copy_(start())
    for each in (travelled, new):
        each.step(2, delta(2))
    assert torch.equal(travelled.parameters.data, new.parameters.data) == config.is_stateless


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
