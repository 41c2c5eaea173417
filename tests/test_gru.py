"""The character model: it takes text alone, and learns it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from flare_dist.comm.world import World
from flare_dist.config.load import load_config
from flare_dist.data.batches import BatchSource
from flare_dist.data.config import DataConfig
from flare_dist.data.datasets import load
from flare_dist.layout import parameter_layout
from flare_dist.models.registry import build
from flare_dist.rounds.build_run import build_for, build_run, divide
from flare_dist.rounds.federated import federated_round
from flare_dist.rounds.federation import Federation
from flare_dist.run.evaluation import evaluate
from flare_dist.tasks.builtin import CLASSIFICATION, NEXT_TOKEN

ROOT = Path(__file__).parent

SAMPLE = ROOT / "shakespeare"


def data_config(**settings: Any) -> DataConfig:
    return DataConfig(name="shakespeare", root=str(SAMPLE), sequence_length=30, **settings)


def test_a_model_of_text_refuses_images_and_the_others_text() -> None:
    with pytest.raises(ValueError, match=r"^model\.name: cannot build gru for inputs of shape \(1, 28, 28\): it reads"):
        build("gru", "group", (1, 28, 28), 10, 0, CLASSIFICATION)
    for name in ("2nn", "cnn", "torchvision:resnet18"):
        with pytest.raises(ValueError, match=rf"^model\.name: .*{name}.* inputs of shape \(30,\)"):
            build(name, "group", (30,), 86, 0, NEXT_TOKEN, torch.int64)


def test_the_published_configuration_learns_the_sample() -> None:
    """flare/gru.yaml with fewer and larger steps: FLARE on all local steps, but not on the embedding."""
    torch.set_num_threads(1)
    config = load_config(ROOT.parent / "configs" / "flare" / "gru.yaml")
    assert config.clients.flare.exclude == ("embedding.*",)
    gentle = dataclasses.replace(config.clients.flare, tau=0.002)
    config = dataclasses.replace(
        config,
        rounds=2,
        data=data_config(partition="natural"),
        clients=dataclasses.replace(config.clients, num=3, per_round=None, lr=0.3, flare=gentle),
        compression=dataclasses.replace(config.compression, density=0.01),
    )
    data = load(config.data, config.seed)
    model = build_for(config, data)
    assert parameter_layout(model).total == 4_048_470
    fed = build_run(config, World(), data, divide(config, data), model)
    assert isinstance(fed, Federation)
    losses = [federated_round(round_, fed)["train_loss"] for round_ in range(1, 3)]
    assert losses[-1] < losses[0] - 0.3
    fed.clients.trainer.model.load(fed.server.parameters.data, fed.server.buffers)
    found = evaluate(fed.clients.trainer.model.module, BatchSource(data.test, data.mean, data.std, "cpu"), data.task)
    assert found["loss"] < 4.0
    assert found["accuracy"] > 0.1
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
