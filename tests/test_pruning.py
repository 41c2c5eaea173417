"""The highest scores are kept, and settings that cannot be are refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from flare_dist.comm.host import Host
from flare_dist.layout import Entry
from flare_dist.sparse_training.layers import Layers
from flare_dist.sparse_training.masks import layer_counts
from flare_dist.sparse_training.pruning import PruningConfig, highest, layer_shares


def test_the_highest_scores_are_kept_globally_or_by_layer() -> None:
    entries = (Entry("a", (10,), 0), Entry("b", (5, 8), 12))
    layers = Layers.of(entries, Host())
    scores = torch.rand(52, generator=torch.Generator().manual_seed(0))
    everything = torch.ones(52, dtype=torch.bool)
    mask = highest(scores, layers, 12, everything, None)
    prunable = torch.cat([scores[:10], scores[12:]])
    kept = torch.cat([mask[:10], mask[12:]])
    assert (int(kept.sum()), bool(mask[10:12].all())) == (12, True)
    assert prunable[kept].min() > prunable[~kept].max()
    again = highest(scores, layers, 6, mask, None)
    assert (mask | ~again).all()
    assert layer_counts(highest(scores, layers, 20, everything, layer_shares("uniform", entries)), layers) == [4, 16]
    # ERK: 10 / 10 against 13 / 40 of the weights
    assert layer_counts(highest(scores, layers, 18, everything, layer_shares("erk", entries)), layers) == [8, 10]
    tied = highest(torch.ones(52), layers, 12, everything, None)
    assert layer_counts(tied, layers) == [10, 2]
    lopsided = highest(scores * (torch.arange(52) < 12), layers, 5, everything, None)
    assert layer_counts(lopsided, layers) == [4, 1]  # no layer dies


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"criterion": "obd"},
            "pruning.criterion: unknown choice, got 'obd'; "
            "choose from magnitude, random, snip, grasp, synflow, threshold",
        ),
        ({"scope": "layer"}, "pruning.scope: unknown choice, got 'layer'; choose from global, erk, uniform"),
        ({"data": "all"}, "pruning.data: unknown choice, got 'all'; choose from clients, server"),
        ({"steps": 0}, "pruning.steps: out of range, got 0; choose at least 1"),
        ({"batches": 0}, "pruning.batches: out of range, got 0; choose at least 1"),
        ({"frac": 0.0}, "pruning.frac: out of range, got 0.0; choose a number in (0, 1]"),
        ({"threshold": -1.0}, "pruning.threshold: out of range, got -1.0; choose at least 0"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        PruningConfig(**settings)
