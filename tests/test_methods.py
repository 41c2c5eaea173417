"""Objectives and aggregators of the user's: their options, and what they must say and send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import flare_dist
from flare_dist.algorithms.methods import algorithm_of
from flare_dist.clients.config import ClientsConfig
from flare_dist.compression.config import CompressionConfig
from flare_dist.named import WrongResultError
from flare_dist.server.config import ServerConfig
from tests.helpers.runs import assert_same_run, start, tiny

HERE = "tests.test_methods"


def twin_of_fedprox(mu: float) -> flare_dist.Algorithm:
    def penalty(context: flare_dist.LocalContext) -> flare_dist.Penalty:
        def add_gradient(gradient: torch.Tensor, local: torch.Tensor) -> None:
            gradient.add_(local - context.global_parameters, alpha=mu)

        return flare_dist.Penalty(add_gradient)

    return flare_dist.Algorithm(penalty=penalty)


def record(**fields: Any) -> flare_dist.Algorithm:
    return flare_dist.Algorithm(**fields)


def sends_nothing() -> flare_dist.Algorithm:
    return flare_dist.Algorithm(before_wire=lambda trained, memory, server: {})


def scaled(factor: float = 1.0) -> flare_dist.Algorithm:
    return flare_dist.Algorithm(after_wire=lambda mean, server, senders: mean.mul_(factor))


def test_a_twin_of_fedprox_has_its_bits(tmp_path: Path) -> None:
    for name, clients in {
        "ours": {"objective": "fedprox", "fedprox": ClientsConfig().fedprox},
        "theirs": {"objective": f"{HERE}:twin_of_fedprox", "objective_options": {"mu": 0.01}},
    }.items():
        start(tiny(tmp_path / name, clients=ClientsConfig(num=5, batch_size=8, lr=0.05, **clients)))  # type: ignore[arg-type]
    assert_same_run(tmp_path / "ours", tmp_path / "theirs")


def test_an_aggregator_that_does_nothing_is_the_mean(tmp_path: Path) -> None:
    start(tiny(tmp_path / "mean"))
    start(tiny(tmp_path / "own", server=ServerConfig(momentum=0.5, aggregator=f"{HERE}:scaled")))
    assert_same_run(tmp_path / "mean", tmp_path / "own")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"memory": "control"}, r'memory must be a tuple of names, got \'control\'; write \("control",\)'),
        ({"sends": ("control",)}, r"sends must have \"delta\" in it, got \('control',\); add it"),
    ],
)
def test_a_record_says_what_it_remembers_and_sends(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^clients\.objective: {HERE}:record: {message}"):
        ClientsConfig(objective=f"{HERE}:record", objective_options=fields)
    with pytest.raises(ValueError, match=rf"^server\.aggregator: {HERE}:record: {message}"):
        ServerConfig(aggregator=f"{HERE}:record", aggregator_options=fields)


def test_two_records_that_clash_are_told_with_the_keys() -> None:
    clients = ClientsConfig(objective=f"{HERE}:record", objective_options={"memory": ("h",)})
    with pytest.raises(
        ValueError, match=rf"^clients\.objective: {HERE}:record with server\.aggregator={HERE}:record: .*'h'"
    ):
        algorithm_of(clients, f"{HERE}:record", "none", {"memory": ("h",)})


def test_the_names_of_error_feedback_are_taken(tmp_path: Path) -> None:
    clients = ClientsConfig(num=5, objective=f"{HERE}:record", objective_options={"memory": ("residual",)})
    with pytest.raises(ValueError, match=r"^clients\.objective: remembers 'residual', a name of error feedback's"):
        start(tiny(tmp_path, clients=clients))


def test_an_algorithm_that_does_not_send_what_it_says_is_told_in_the_first_round(tmp_path: Path) -> None:
    with pytest.raises(
        WrongResultError, match=r"^clients\.objective: before_wire must give a vector .* of delta, got \{\}"
    ):
        start(tiny(tmp_path, clients=ClientsConfig(num=5, objective=f"{HERE}:sends_nothing")))


def one_less_later(vector: torch.Tensor, k: int, generator: torch.Generator) -> Any:
    return vector if vector.numel() > 20 else torch.arange(k)


def test_a_sparsifier_that_fails_later_is_told_in_the_round(tmp_path: Path) -> None:
    compression = CompressionConfig(sparsifier=f"{HERE}:one_less_later", density=0.02)
    with pytest.raises(
        WrongResultError, match=r"^compression\.sparsifier: .* must return at most k=.*, got torch\.float32"
    ):
        start(tiny(tmp_path, compression=compression))


def test_built_in_methods_take_no_options() -> None:
    with pytest.raises(
        ValueError, match=r"^clients\.objective_options\.mu: fedprox takes no such option, got 1; leave it"
    ):
        ClientsConfig(objective="fedprox", objective_options={"mu": 1})
    with pytest.raises(
        ValueError, match=r"^server\.aggregator_options\.mu: fednova takes no such option, got 1; leave it"
    ):
        ServerConfig(aggregator="fednova", aggregator_options={"mu": 1})
