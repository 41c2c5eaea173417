"""The clients' keys are checked, and everybody takes part unless told otherwise."""

from __future__ import annotations

import math
from typing import Any

import pytest

from flare_dist.clients.config import ClientsConfig


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("num", {"num": 0}),
        ("per_round", {"per_round": 0}),
        ("per_round", {"num": 4, "per_round": 5}),
        ("local_epochs", {"local_epochs": 0}),
        ("local_steps", {"local_steps": 0}),
        ("batch_size", {"batch_size": 0}),
        ("optimizer", {"optimizer": "lion"}),
        ("lr", {"lr": 0.0}),
        ("lr", {"lr": math.nan}),
        ("momentum", {"momentum": -0.1}),
        ("momentum", {"optimizer": "adam", "momentum": 0.9}),
        ("weight_decay", {"weight_decay": -0.1}),
        ("objective", {"objective": "moon"}),
        ("lr_schedule", {"lr_schedule": "poly"}),
    ],
)
def test_errors_name_the_key(key: str, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^clients\.{key}: "):
        ClientsConfig(**values)


def test_the_cohort_is_everybody_unless_told() -> None:
    assert ClientsConfig(num=12).cohort_size == 12
    assert ClientsConfig(num=12, per_round=5).cohort_size == 5
