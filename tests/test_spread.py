"""The worst, the best and the deviation over groups or clients."""

from __future__ import annotations

import math

import pytest

from flare_dist.tasks.spread import mean_over_examples, spread

SITES = {
    "north": {"accuracy": 0.98, "examples": 90},
    "south": {"accuracy": 0.88, "examples": 10},
    "empty": {"accuracy": math.nan, "examples": 0},
}


def test_the_worst_member_is_named() -> None:
    found = spread(SITES, "group", ("accuracy", "max"))
    assert found == {
        "worst_group_name": "south",
        "worst_group_accuracy": 0.88,
        "best_group_accuracy": 0.98,
        "group_accuracy_std": pytest.approx(0.05),
    }
    assert spread(SITES, "group", ("accuracy", "min"))["worst_group_name"] == "north"
    assert spread({"empty": SITES["empty"]}, "group", ("accuracy", "max")) == {}


def test_a_mean_weighs_members_by_their_examples() -> None:
    assert mean_over_examples(SITES, "accuracy") == pytest.approx(0.97)
    assert math.isnan(mean_over_examples({"empty": SITES["empty"]}, "accuracy"))
