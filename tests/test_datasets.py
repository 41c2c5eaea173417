"""The data of a run: normalised by the training part alone, test inputs shaped like training inputs."""

from __future__ import annotations

import pytest
import torch

from flare_dist.data.config import DataConfig, SyntheticConfig
from flare_dist.data.datasets import load
from flare_dist.data.examples import Examples
from flare_dist.data.source import Source
from flare_dist.data.sources import SOURCES

SMALL = SyntheticConfig(examples=300, test_examples=80, shape=(3, 8, 8), classes=5, groups=7)


def test_statistics_leave_the_held_out_part_alone() -> None:
    config = DataConfig(name="synthetic", validation=0.5, synthetic=SMALL)
    splits = load(config, seed=0)
    torch.testing.assert_close(splits.mean, splits.train.inputs.double().mean((0, 2, 3)).float())


def test_test_inputs_have_the_shape_of_training_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, labels = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.arange(4) % 3
    source = Source(Examples(inputs, labels), Examples(inputs[..., :1], labels), classes=3)
    monkeypatch.setitem(SOURCES, "mine", lambda config, seed: source)
    with pytest.raises(
        ValueError, match=r"^data\.name: mine: test: inputs must have the shape \(1, 2, 2\) of train, got \(1, 2, 1\)"
    ):
        load(DataConfig(name="mine"), seed=0)
