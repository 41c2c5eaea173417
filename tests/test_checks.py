"""Keys that change nothing are named; the configurations that we ship have none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flare_dist.clients.flare import FlareConfig
from flare_dist.data.config import DataConfig
from flare_dist.run.checks import keys_without_effect
from flare_dist.run.config import Config, load_config
from flare_dist.server.config import ServerConfig

CONFIGS = [
    path
    for path in sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
    if not path.name.startswith(("frontier", "flash_study"))  # the common ground of several methods
]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_what_we_ship_has_an_effect(path: Path) -> None:
    assert not keys_without_effect(load_config(path))


def test_what_has_none_is_named_with_what_it_would_need() -> None:
    config = Config()
    assert not keys_without_effect(config)
    flare = replace(config, clients=replace(config.clients, flare=FlareConfig(tau=0.5)))
    assert keys_without_effect(flare) == {"clients.objective=flare": ["clients.flare.tau"]}
    assert not keys_without_effect(replace(flare, clients=replace(flare.clients, objective="flare")))
    (need,) = keys_without_effect(replace(config, data=DataConfig(alpha=0.1)))
    assert need == "data.partition=dirichlet|dirichlet_unbalanced|quantity"
    gradient = replace(config, mode="gradient", server=ServerConfig(lr=0.3), data=DataConfig(partition="dirichlet"))
    assert keys_without_effect(gradient) == {"mode=federated": ["data.partition", "server.lr"]}
