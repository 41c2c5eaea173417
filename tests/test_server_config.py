"""Defaults and refusals of the section server."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from flare_dist.server.config import ServerConfig


def test_defaults_of_optimizers_are_those_published() -> None:
    assert ServerConfig(optimizer="fedavgm").settings.momentum == 0.9
    assert ServerConfig(optimizer="fedavgm", momentum=0.0).settings.momentum == 0.0
    assert ServerConfig(optimizer="fedadam").settings[2:4] == ((0.9, 0.99), 1e-3)
    assert ServerConfig(optimizer="fedadagrad").settings.betas == (0.0, 0.99)
    assert ServerConfig(optimizer="fedavgm", nesterov=True).settings.nesterov
    assert not ServerConfig(optimizer="fedavgm", momentum=0.0).has_memory
    assert ServerConfig(optimizer="fedadagrad").has_memory


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
            {"nesterov": True},
            "server.nesterov: there is no momentum to look ahead by, got true with server.optimizer=sgd and "
            "server.momentum=null; use sgd or fedavgm with a momentum",
        ),
        (
            {"optimizer": "rmsprop", "momentum": 0.9, "nesterov": True},
            "server.nesterov: there is no momentum to look ahead by, got true with server.optimizer=rmsprop",
        ),
        (
            {"optimizer": "sgd", "betas": (0.9, 0.9)},
            "server.betas: this optimizer takes no betas, got [0.9, 0.9] with server.optimizer=sgd",
        ),
        (
            {"optimizer": "fedadam", "betas": (0.9, 1.0)},
            "server.betas: out of range, got 1.0; choose ",
        ),
        ({"optimizer": "fedadam", "tau": 0.0}, "server.tau: out of range, got 0.0; choose a number in (0, 1e19)"),
    ],
)
def test_optimizers_that_cannot_be_are_said_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        ServerConfig(**settings)
    assert "\n" not in str(error.value)


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
