"""Segments tile a layout, and densities are read as the decimals that are written."""

from __future__ import annotations

import pytest
import torch

from flare_dist.compression.segments import COUNTS, SCOPES, Segment, count_kept
from flare_dist.layout import ParameterLayout

LAYOUT = ParameterLayout.of(
    (name, torch.empty(shape)) for name, shape in {"a": (7, 11), "one": (), "none": (0,), "b": (40,), "c": (2,)}.items()
)


@pytest.mark.parametrize("density", [1e-5, 0.07, 0.5, 1.0])
def test_segments_tile_the_layout(density: float) -> None:
    """Tensors without entries have no segment; one with entries keeps at least one."""
    assert [s[:2] for s in SCOPES["tensor"](LAYOUT, density, count_kept)] == [(0, 77), (77, 1), (78, 40), (118, 2)]
    blocks = [s[:2] + s[3:] for s in SCOPES["block"](LAYOUT, density, count_kept, block=16)]
    assert blocks == [(0, 16, 4), (64, 13, 1), (77, 1, 1), (78, 16, 2), (110, 8, 1), (118, 2, 1)]
    assert SCOPES["global"](LAYOUT, density, count_kept) == [Segment(0, 120, count_kept(120, density))]
    assert all(
        1 <= s.k <= s.numel
        for scope in SCOPES.values()
        for count in COUNTS.values()
        for s in scope(LAYOUT, density, count, block=16)
    )


@pytest.mark.parametrize(
    ("numel", "density", "kept"),
    [
        (100, 0.07, 7),  # 100 * 0.07 is 7.000000000000001 in floating point
        (1000, 0.001, 1),
        (1001, 0.001, 2),
        (11_173_962, 1e-5, 112),
        (300, 1 / 3, 100),
        (3, 0.1, 1),
        (1, 1e-12, 1),
        (50, 1.0, 50),
        (10**12 + 1, 1.0, 10**12 + 1),
    ],
)
def test_densities_are_exact_decimals(numel: int, density: float, kept: int) -> None:
    assert count_kept(numel, density) == kept


@pytest.mark.parametrize("percent", range(1, 101))
def test_percentages_of_a_hundred_are_themselves(percent: int) -> None:
    assert count_kept(100, percent / 100) == percent
