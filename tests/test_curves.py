"""The values of each row by tag: which key has which curve, and what is added up."""

from __future__ import annotations

import dataclasses

import pytest

from flare_dist.clients.config import ClientsConfig
from flare_dist.config.config import Config
from flare_dist.records.curves import Curves, learning_rates, tag
from flare_dist.server.config import ServerConfig

LEARNING = Config(
    rounds=4,
    clients=ClientsConfig(lr=0.2, lr_schedule="linear"),
    server=ServerConfig(lr=0.5, lr_schedule="step:0.1@3"),
)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("test_accuracy", "accuracy/test"),
        ("validation_loss", "loss/validation"),
        ("uplink_bytes", "bytes/uplink"),
        ("waiting_seconds", "seconds/waiting"),
        ("slowest_client_seconds", "seconds/slowest_client"),
        ("rejected_clients", "clients/rejected_clients"),
        ("test_skipped_examples", "skipped_examples/test"),
        ("client_skipped_examples", "skipped_examples/client"),
        ("round", None),
        ("kept", None),
    ],
)
def test_keys_have_these_tags(key: str, expected: str | None) -> None:
    assert tag(key) == expected


def test_bytes_add_up_and_buffers_count_on_both_sides() -> None:
    curves = Curves(lambda round_: {})
    curves.values({"round": 0, "test_loss": 1.0})
    row = {"round": 1, "uplink_bytes": 90, "buffer_bytes": 10, "dense_bytes": 990, "downlink_bytes": 5, "wire_bytes": 7}
    first = curves.values(row)
    assert first["bytes/uplink"] == 90
    assert first["cumulative_bytes/up"] == 100
    assert first["compression/round"] == first["compression/total"] == 10
    second = curves.values(row | {"round": 2, "uplink_bytes": 190})
    assert second["compression/round"] == 5
    assert second["compression/total"] == pytest.approx(2000 / 300)
    sums = {name: value for name, value in second.items() if name.startswith("cumulative_bytes/")}
    assert sums == {"cumulative_bytes/up": 300, "cumulative_bytes/down": 10, "cumulative_bytes/wire": 14}


def test_what_sends_nothing_has_no_compression() -> None:
    values = Curves(lambda round_: {}).values({"round": 1, "uplink_bytes": 0, "dense_bytes": 0, "buffer_bytes": None})
    assert not [name for name in values if name.startswith("compression/")]


def test_densities_of_layers_have_a_curve_each() -> None:
    values = Curves(lambda round_: {}).values({"round": 1, "layer_densities": {"0.weight": 0.5}})
    assert values == {"density/0.weight": 0.5}


def test_groups_have_a_curve_each_whatever_their_names() -> None:
    groups = {name: {"iou": value, "loss": 2.0, "examples": 4} for name, value in (("a/b c", 0.5), ("\udce9", 0.25))}
    values = Curves(lambda round_: {}, "iou").values({"round": 1, "groups": groups, "worst_group_iou": 0.25})
    by_group = {"iou_by_group/a/b c": 0.5, "iou_by_group/\\xe9": 0.25}
    assert values == by_group | {"spread/worst_group_iou": 0.25}


def test_learning_rates_follow_the_schedules() -> None:
    rates = learning_rates(LEARNING)
    assert rates(0) == {}
    assert rates(1) == {"lr/clients": 0.2, "lr/server": 0.5}
    assert rates(3) == pytest.approx({"lr/clients": 0.1, "lr/server": 0.05})
    assert Curves(rates).values({"round": 1})["lr/clients"] == 0.2


def test_rounds_of_another_run_and_modes_without_a_server_have_no_rates_of_ours() -> None:
    assert learning_rates(LEARNING, first_round=3)(2) == {}
    assert learning_rates(dataclasses.replace(LEARNING, mode="centralised"))(1).keys() == {"lr/clients"}
