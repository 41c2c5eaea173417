"""Weighted means over a round's cohort."""

from __future__ import annotations

import math

import torch

from flare_dist.comm.cohort import Cohort, mean_in_order
from flare_dist.comm.world import World


def test_a_mean_in_order_leaves_out_what_is_not_finite() -> None:
    cohort = Cohort(dict.fromkeys((1, 2, 5), 0), {1: 0.2, 2: 0.3, 5: 0.5})
    own = {1: torch.tensor([1.0, 2.0]), 2: torch.tensor([math.inf, 0.0]), 5: torch.tensor([3.0, 4.0])}
    mean, finite = mean_in_order(World(), cohort, own, 2)
    assert finite == [1, 5]
    torch.testing.assert_close(mean, torch.tensor([1.7, 2.4]) / 0.7)
    assert mean_in_order(World(), cohort, dict.fromkeys(own, torch.full((2,), math.nan)), 2) == (None, [])
