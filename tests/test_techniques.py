"""Techniques differ in precision and exchange alone, whatever the configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from flare_dist.comm.config import GradientsConfig
from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import Config
from flare_dist.config.load import load_config, with_arguments
from flare_dist.engines.config import EngineConfig
from flare_dist.run.checks import check_run, keys_without_effect
from flare_dist.studies.techniques import DIFFERENCES, USUAL, find_techniques
from tests.helpers.published import PUBLISHED, ROOT, published
from tests.helpers.runs import data_parallel


def test_a_technique_is_the_same_exchange_whatever_the_configuration() -> None:
    found: dict[str, Any] = {}
    for original in [load_config(ROOT / "configs/compare/cnn.yaml"), *map(published, PUBLISHED)]:
        config = dataclasses.replace(original, engine=dataclasses.replace(original.engine, name="accelerate"))
        variants = {t: with_arguments(config, own) for t, own in find_techniques(",".join(DIFFERENCES), config).items()}
        exchanges = {t: (v.exchanged, v.gradients, v.engine.mixed_precision) for t, v in variants.items()}
        assert len(set(map(str, exchanges.values()))) == len(DIFFERENCES)
        assert found.setdefault("first", exchanges) == exchanges
        for technique, variant in variants.items():
            assert not keys_without_effect(variant)
            assert variant.exchanged.is_dense == ("topk" not in technique)
            momentum = 0.0 if technique == "topk_dgc" else config.clients.momentum
            assert variant.clients == dataclasses.replace(config.clients, momentum=momentum)
        assert variants["topk_dgc"].compression.dgc_momentum == config.clients.momentum
    assert set(USUAL) <= set(DIFFERENCES)


def test_keys_of_hooks_without_effect_are_named() -> None:
    base = Config(mode="gradient", gradients=GradientsConfig("fp16", powersgd_rank=2))
    assert keys_without_effect(base) == {"gradients.hook=powersgd": ["gradients.powersgd_rank"]}
    federated = dataclasses.replace(base, mode="federated", gradients=GradientsConfig("fp16"))
    assert keys_without_effect(federated) == {"mode=gradient": ["gradients.hook"]}


def test_momentum_of_the_optimizer_beside_dgc_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    used = data_parallel("x", compression=CompressionConfig(density=0.1, error_feedback="dgc"))
    check_run(used, [torch.arange(4)], nn.Linear(12, 4))
    assert "clients.momentum: dgc has its own momentum" in caplog.text
    caplog.clear()
    check_run(dataclasses.replace(used, gradients=GradientsConfig(hook="fp16")), [torch.arange(4)], nn.Linear(12, 4))
    assert "its own momentum" not in caplog.text


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_experiments_differ_in_precision_and_exchange_alone(name: str) -> None:
    own = published(name)
    base = published("baseline")
    alike = dataclasses.replace(own, compression=base.compression, engine=base.engine, output_dir=base.output_dir)
    assert alike == base
    assert own.engine == EngineConfig(name="deepspeed", mixed_precision="fp16" if "fp16" in name else "no")
    assert own.compression.is_dense == (name == "baseline")
