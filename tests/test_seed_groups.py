"""Seeds of one setting are one group, named by what differs, and averaged where all were measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from flare_dist.analysis.run_logs import RunLog
from flare_dist.analysis.seed_groups import group_runs, label_of, mean_curve
from flare_dist.analysis.x_axis import XAxis


def run(name: str, seed: int, values: list[float] | None = None, **config: Any) -> RunLog:
    rows = [
        {"round": n, "test_accuracy": value, "uplink_bytes": 10 * (seed + 1)} for n, value in enumerate(values or [])
    ]
    return RunLog(name, rows, config={"seed": seed, "output_dir": name, **config})


def test_runs_that_differ_in_their_seed_alone_are_one_group() -> None:
    runs = [run("a", 0, clients={"lr": 0.1}), run("b", 0, clients={"lr": 0.2}), run("c", 1, clients={"lr": 0.1})]
    groups = group_runs(runs, {"output_dir"})
    assert [[own.name for own in group.runs] for group in groups] == [["a", "c"], ["b"]]
    assert [group.label for group in groups] == ["lr=0.1", "lr=0.2"]
    assert groups[1].values == {"clients.lr": "0.2"}
    assert len(group_runs(runs, set())) == 3  # their directories differ, too


def test_keys_that_older_versions_did_not_save_have_their_defaults() -> None:
    runs = [run("a", 0), run("b", 1, clients={"lr_schedule": "constant"})]
    assert len(group_runs(runs, {"output_dir"})) == 1


def test_the_same_seed_twice_and_runs_without_a_configuration_are_kept_apart() -> None:
    runs = [run("a", 0), run("b", 0), RunLog("c", []), RunLog("d", [])]
    assert [group.label for group in group_runs(runs, {"output_dir"})] == ["a", "b", "c", "d"]


def test_names_of_runs_lose_the_directories_that_they_share() -> None:
    runs = [RunLog("/data/of/mine/a/1", []), RunLog("/data/of/mine/b", [])]
    assert [group.label for group in group_runs(runs, set())] == ["a/1", "b"]
    assert [group.label for group in group_runs(runs[:1], set())] == ["/data/of/mine/a/1"]
    mixed = [*runs[:1], RunLog("b", [])]
    assert [group.label for group in group_runs(mixed, set())] == ["/data/of/mine/a/1", "b"]


def test_labels_use_the_last_word_of_a_key_if_that_is_enough() -> None:
    assert label_of({"clients.lr": "0.1", "server.lr": "1", "compression.density": "0.01"}) == (
        "clients.lr=0.1, server.lr=1, density=0.01"
    )


def test_the_mean_is_over_rounds_that_all_runs_have() -> None:
    curve = mean_curve([run("a", 0, [0.0, 0.2, 0.4]), run("b", 1, [0.2, 0.4])], XAxis("uplink"))
    assert curve.rounds == [0, 1]
    assert curve.x == pytest.approx([15, 30])
    assert curve.mean == pytest.approx([0.1, 0.3])
    assert curve.deviation == pytest.approx([0.02**0.5] * 2)
    assert mean_curve([run("a", 0, [0.5])], XAxis("rounds")).deviation == []


def test_the_metric_is_that_of_the_task() -> None:
    log = replace(run("a", 0, [0.5]), best=("rmse", "min"))
    log.rows[0]["test_rmse"] = 3.0
    assert mean_curve([log], XAxis("rounds")).mean == [3.0]
