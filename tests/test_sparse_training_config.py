"""Defaults and refusals of the section sparse_training."""

from __future__ import annotations

from typing import Any

import pytest

from flare_dist.sparse_training.config import SparseTrainingConfig


def test_feddst_has_defaults_of_its_own() -> None:
    assert SparseTrainingConfig(method="feddst").resolved_update_mode == "masked_mean"
    assert SparseTrainingConfig(method="feddst").resolved_growth == "gradient"
    assert SparseTrainingConfig(method="jmwst").resolved_growth == "random"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r_end": 0}, "sparse_training.r_end: out of range, got 0; choose at least 1"),
        (
            {"hetero": ((0.5, 0.5), (0.5, 1.0))},
            "sparse_training.hetero: needs spdst or jmwst, .* with sparse_training.method=feddst; .*",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        SparseTrainingConfig(method="feddst", **settings)
