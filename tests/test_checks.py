"""Keys that change nothing are named; the files under configs/ have none (test_presets.py)."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flare_dist.algorithms.flare import FlareConfig
from flare_dist.clients.config import ClientsConfig
from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import Config
from flare_dist.data.config import DataConfig
from flare_dist.run.checks import check_run, keys_without_effect
from flare_dist.server.config import ServerConfig
from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.pruning import PruningConfig
from tests.helpers.runs import start, tiny

SPARSE = SparseTrainingConfig(method="spdst", density=0.5, hetero=((0.5, 0.5), (0.5, 1.0)))
SCAFFOLD = ClientsConfig(objective="scaffold")


def test_what_has_none_is_named_with_what_it_would_need() -> None:
    config = Config()
    assert not keys_without_effect(config)
    flare = replace(config, clients=replace(config.clients, flare=FlareConfig(tau=0.5)))
    assert keys_without_effect(flare) == {"clients.objective=flare": ["clients.flare.tau"]}
    assert not keys_without_effect(replace(flare, clients=replace(flare.clients, objective="flare")))
    (need,) = keys_without_effect(replace(config, data=DataConfig(alpha=0.1)))
    assert need == "data.partition=dirichlet|dirichlet_unbalanced|quantity"
    remembering = replace(config, clients=replace(config.clients, state_dir="states"))
    assert not keys_without_effect(remembering)
    forgetful = replace(remembering, compression=CompressionConfig(error_feedback="none"))
    assert list(keys_without_effect(forgetful).values()) == [["clients.state_dir"]]
    assert list(keys_without_effect(replace(remembering, mode="gradient")).values()) == [["clients.state_dir"]]
    gradient = replace(config, mode="gradient", server=ServerConfig(lr=0.3), data=DataConfig(partition="dirichlet"))
    assert keys_without_effect(gradient) == {"mode=federated": ["data.partition", "server.lr"]}


def test_keys_of_the_federation_change_nothing_in_mode_centralised() -> None:
    """Passes over the pooled data are counted by clients.local_*, and nothing is sent."""
    config = Config(
        mode="centralised",
        server=ServerConfig(lr=0.3),
        clients=ClientsConfig(num=3, per_round=2, weighting="uniform", local_epochs=2),
        data=DataConfig(partition="dirichlet"),
        compression=CompressionConfig(density=0.1),
    )
    assert keys_without_effect(config) == {
        "mode=federated": [
            "data.partition", "clients.num", "clients.per_round", "clients.weighting", "server.lr",
        ],
        "mode=federated|gradient": ["compression.density"],
    }  # fmt: skip
    assert keys_without_effect(replace(config, mode="gradient"))["mode=federated|centralised"] == [
        "clients.local_epochs"
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sparse_training": SPARSE}, ""),
        ({"sparse_training": replace(SPARSE, update_mode="mean")}, "weights that clients with a smaller budget lack"),
        ({"sparse_training": replace(SPARSE, update_mode="masked_mean")}, ""),
        ({"clients": SCAFFOLD, "compression": CompressionConfig(error_feedback="none")}, "control variate drifts"),
        ({"clients": SCAFFOLD}, ""),
        ({"server": ServerConfig("fedadam")}, "got null with server.optimizer=fedadam and compression.density=0.01"),
        ({"server": ServerConfig("fedadam", betas=(0.0, 0.99))}, ""),
        ({"server": ServerConfig("fedadagrad")}, ""),
        ({"server": ServerConfig("fedadam"), "compression": CompressionConfig(density=1.0)}, ""),
        ({"server": ServerConfig("fedadam"), "compression": CompressionConfig(error_feedback="none")}, ""),
    ],
)
def test_what_is_allowed_and_means_something_is_said(
    settings: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("flare_dist"), "propagate", True)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3))
    check_run(replace(Config(), **settings), [torch.arange(3)], model)
    assert said in caplog.text
    assert said or not caplog.text


def test_keys_of_masks_that_change_nothing_are_named_with_the_method_that_they_need() -> None:
    config = Config(sparse_training=SparseTrainingConfig(density=0.1))
    assert keys_without_effect(config) == {"a sparse_training.method": ["sparse_training.density"]}
    pdst = SparseTrainingConfig(method="pdst", density=0.1, prune_rate=0.5, r_int=2, init_epochs=3)
    assert keys_without_effect(Config(sparse_training=pdst)) == {
        "a sparse_training.method that moves masks": ["sparse_training.prune_rate"],
        "sparse_training.method=jmwst|feddst|prunefl": ["sparse_training.r_int"],
        "sparse_training.method=spdst|jmwst": ["sparse_training.init_epochs"],
    }
    assert keys_without_effect(Config(pruning=PruningConfig(steps=3, frac=0.2))) == {
        "sparse_training.method=pruned|prunefl": ["pruning.steps", "pruning.frac"]
    }
    pruned = Config(sparse_training=SparseTrainingConfig(method="pruned"))
    synflow = replace(pruned, pruning=PruningConfig(criterion="synflow", steps=100, batches=3))
    assert keys_without_effect(synflow) == {"a pruning.criterion that looks at data": ["pruning.batches"]}


def test_dtypes_that_cannot_be_saved_are_refused() -> None:
    model = nn.Linear(3, 5)
    model.register_buffer("waves", torch.ones(2, dtype=torch.complex128))
    with pytest.raises(ValueError, match=r"^model\.name: waves is torch\.complex128, which model\.safetensors cannot"):
        check_run(Config(), [torch.arange(10)], model)


@pytest.mark.parametrize(("steps", "warned"), [(None, False), (3, False), (4, True)])
def test_more_regularised_steps_than_there_are_is_worth_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, steps: int | None, warned: bool
) -> None:
    """Each of the five clients has 108 / 5 examples, hence three batches of eight."""
    config = tiny(tmp_path, rounds=1)
    flare = replace(config.clients.flare, steps=steps)
    start(replace(config, clients=replace(config.clients, objective="flare", flare=flare)))
    said = "clients.flare.steps: more than the local steps of a round, got 4 with local_steps=3; all are regularised"
    assert (said in caplog.messages) is warned


def test_an_objective_without_clients_is_worth_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny(tmp_path, rounds=1, mode="centralised")
    start(replace(config, clients=replace(config.clients, objective="fedprox")))
    assert any(
        message.startswith("mode: clients.objective and step_ahead have no effect") for message in caplog.messages
    )


def test_momentum_twice_is_worth_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny(tmp_path, rounds=1, compression=CompressionConfig(density=0.02, error_feedback="dgc"))
    start(replace(config, clients=replace(config.clients, momentum=0.9)))
    assert any(message.startswith("clients.momentum: dgc has its own momentum") for message in caplog.messages)
