"""Rows of the report tell where time went, who does worst, and from when and what the runs are."""

from __future__ import annotations

from pathlib import Path

import pytest

from flare_dist.analysis.page_rows import origin_of, result_rows, spread_rows
from flare_dist.analysis.run_amounts import sum_up
from flare_dist.analysis.run_logs import RunLog, read_run
from flare_dist.analysis.seed_groups import Group
from tests.helpers.run_logs import write_run


def test_a_row_has_its_seeds_below_it_and_the_best_is_marked(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name, rows=rows), {}) for name, rows in (("a", 4), ("b", 4), ("c", 3))]
    found = sum_up([Group("one", runs[:2], {}), Group("two", runs[2:], {})], [], "ranks", None)
    one, two = result_rows(found, ["test_accuracy", "bytes_up"], [], "ranks")
    assert one["cells"] == [{"text": "0.3000", "best": True}, {"text": "1.2 MB", "best": False}]
    assert [run["cells"] for run in one["runs"]] == [["0.3000", "1.2 MB"]] * 2
    assert not two["cells"][0]["best"]
    assert sum(float(part["width"]) for part in one["time"]) == pytest.approx(100)
    assert one["time_words"].startswith("2 s a round: compute 1.5 s (75%)")


def test_a_run_without_seconds_says_so() -> None:
    found = sum_up([Group("a", [RunLog("a", [{"round": 0, "test_accuracy": 0.1}])], {})], [], "ranks", None)
    assert result_rows(found, ["test_accuracy"], [], "ranks")[0]["time"] == []


def test_the_worst_is_named_if_seeds_agree() -> None:
    row = {"round": 1, "worst_group_rmse": 3.0, "best_group_rmse": 1.0, "group_rmse_std": 0.5}
    runs = [RunLog("a", [row | {"worst_group_name": name}], best=("rmse", "min")) for name in ("oslo", "oslo", "bern")]
    (agreed,) = spread_rows([Group("a", runs[:2], {})])
    assert (agreed["kind"], agreed["worst"], agreed["deviation"]) == ("group", "3.0000 (oslo)", "0.5000")
    assert spread_rows([Group("a", runs, {})])[0]["worst"] == "3.0000"
    assert spread_rows([Group("b", [RunLog("b", [{"round": 1}])], {})]) == []


def test_dates_versions_and_hardware_are_listed_once() -> None:
    summary = {"versions": {"flare_dist": "0.1.0", "torch": "2.9"}, "hardware": {"device": "cpu", "ranks": 2}}
    runs = [RunLog("a", [{"round": 0, "time": 0.0}, {"round": 1, "time": 1e9}], summary=summary)] * 2
    origin = origin_of(Group("a", runs, {}))
    assert origin["began"] < origin["ended"]
    assert origin["versions"] == "flare_dist 0.1.0, torch 2.9"
    assert origin["hardware"] == "device cpu, ranks 2"
    assert origin_of(Group("b", [RunLog("b", [{"round": 0}])], {}))["began"] == "-"
