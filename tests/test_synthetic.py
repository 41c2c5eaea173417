"""The synthetic data set: seeded, learnable, of the sizes that its settings name."""

from __future__ import annotations

import pytest
import torch

from flare_dist.data.config import DataConfig
from flare_dist.data.datasets import load
from flare_dist.data.synthetic import SyntheticConfig
from tests.helpers.images import equal

SMALL = SyntheticConfig(examples=300, test_examples=80, shape=(3, 8, 8), classes=5, groups=7)


def test_synthetic_is_seeded_and_learnable() -> None:
    config = DataConfig(name="synthetic", synthetic=SMALL)
    splits = load(config, seed=0)
    assert splits.train.inputs.shape == (300, 3, 8, 8)
    assert splits.train.groups is not None
    assert splits.train.groups.unique().tolist() == list(range(7))
    assert equal(splits.train, load(config, seed=0).train)
    assert not equal(splits.train, load(config, seed=1).train)
    x, y = splits.train.inputs.float().flatten(1), splits.train.labels
    means = torch.stack([x[y == c].mean(0) for c in range(5)])
    guess = torch.cdist(splits.test.inputs.float().flatten(1), means).argmin(1)
    assert (guess == splits.test.labels).float().mean() > 0.9


@pytest.mark.parametrize("key", ["examples", "test_examples", "classes", "groups", "shape"])
def test_synthetic_config_errors_name_the_key(key: str) -> None:
    with pytest.raises(ValueError, match=rf"^data\.synthetic\.{key}: "):
        SyntheticConfig(**{key: (3, 0, 8) if key == "shape" else 0})  # type: ignore[arg-type]
