"""What runs came to is gathered by setting, in the direction of the task's metric."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flare_dist.analysis.links import Link
from flare_dist.analysis.run_amounts import sum_up
from flare_dist.analysis.run_logs import read_run
from flare_dist.analysis.seed_groups import Group
from tests.helpers.run_logs import write_run


def test_amounts_are_those_of_every_run(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name, validation_accuracy=0.5), {}) for name in ("a", "b")]
    (one,) = sum_up([Group("one", runs, {"k": "v"})], [Link.parse("1Mbps")], "ranks", 0.15)
    setting = one.setting
    assert (setting.label, setting.runs, dict(setting.values)) == ("one", 2, {"k": "v"})
    assert setting.amounts["test_accuracy"] == [0.3, 0.3]
    assert setting.amounts["validation_accuracy"] == [0.5, 0.5]
    assert setting.amounts["bytes_up"] == [1_200_000] * 2
    assert setting.amounts["seconds at 1Mbps"] == pytest.approx([17.7] * 2)
    assert setting.amounts["rounds until 0.15"] == [2, 2]
    assert setting.amounts["seconds at 1Mbps until 0.15"] == pytest.approx([11.8] * 2)


def test_the_best_value_follows_the_direction(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a"), {})
    (one,) = sum_up([Group("a", [run], {})], [], "ranks", None)
    assert one.amounts_of(0)["best_accuracy"] == 0.3
    lower = Group("a", [replace(run, best=("accuracy", "min"))], {})
    assert sum_up([lower], [], "ranks", None)[0].amounts_of(0)["best_accuracy"] == 0.0
    assert not any("until" in column for column in one.setting.amounts)
