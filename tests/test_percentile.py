"""The percentile is the entry that sorting finds, whatever the vector looks like."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from flare_dist.algorithms.percentile import magnitude_percentile

LONG = 300_001  # long enough to be sampled


def vector(kind: str, numel: int) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    normal = torch.randn(numel, generator=rng)
    return {
        "normal": normal,
        "every third zero": torch.where(torch.arange(numel) % 3 == 0, 0.0, normal),
        "zeros": torch.zeros(numel),
        "equal": torch.full((numel,), -0.25),
        "heavy tail": normal / torch.rand(numel, generator=rng).square(),
        "sorted": torch.linspace(-3, 2, numel),
        "few values": normal.round(),
    }[kind]


@pytest.mark.parametrize("percentile", [0, 10, 50, 99.9])
@pytest.mark.parametrize("numel", [1, 2, 10, 11, LONG])
@pytest.mark.parametrize("kind", ["normal", "every third zero", "zeros", "equal", "heavy tail", "sorted", "few values"])
def test_it_is_the_nearest_rank(kind: str, numel: int, percentile: float) -> None:
    x = vector(kind, numel)
    expected = np.sort(x.abs().numpy())[round(percentile / 100 * (numel - 1))]
    assert magnitude_percentile(x, percentile) == expected


def test_a_misleading_sample_costs_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Misled:
        def integers(self, high: int, size: int) -> np.ndarray:
            return np.arange(size)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Misled())
    x = torch.cat([torch.zeros(70_000), torch.rand(LONG)])
    assert magnitude_percentile(x, 50) == np.sort(x.numpy())[round(0.5 * (len(x) - 1))]


def test_float64_is_not_rounded() -> None:
    x = torch.randn(LONG, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert magnitude_percentile(x, 50) == np.sort(x.abs().numpy())[LONG // 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_changes_nothing() -> None:
    x = vector("normal", LONG)
    assert magnitude_percentile(x.cuda(), 50) == magnitude_percentile(x, 50)
