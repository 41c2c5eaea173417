"""Settings of the task."""

from __future__ import annotations

import pytest

from flare_dist.data.config import DataConfig
from flare_dist.data.datasets import load
from flare_dist.tasks.config import find_task


def test_the_task_is_the_data_s_own_unless_it_is_named() -> None:
    assert load(DataConfig(name="digits"), 0).task_name == "classification"
    with pytest.raises(ValueError, match=r"^data\.name: digits: train: labels must be float32 \[1442, 10\], got int64"):
        load(DataConfig(name="digits"), 0, "regression")
    with pytest.raises(
        ValueError, match=r"^task\.name: unknown choice, got 'ranking'; choose from auto, classification"
    ):
        find_task("ranking")
