"""A grid holds every combination once, as written, and every run has a directory of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flare_dist.studies.grid import Grid, Run, combinations, parse_values


def test_combinations_are_complete_and_in_order() -> None:
    assert combinations({}) == [{}]
    assert combinations({"a": ["1", "2"], "b": ["x", "y"]}) == [
        {"a": "1", "b": "x"},
        {"a": "1", "b": "y"},
        {"a": "2", "b": "x"},
        {"a": "2", "b": "y"},
    ]


def test_values_are_read_as_written() -> None:
    texts = ["clients.lr=0.1,1e-2", "a=no,bf16", "compression.warmup=[0.1, 0.2],[]", "x=null,1_0,1:30,2024-01-01"]
    assert parse_values("--grid", texts) == {
        "clients.lr": ["0.1", "1e-2"],
        "a": ["no", "bf16"],
        "compression.warmup": ["[0.1, 0.2]", "[]"],
        "x": ["null", "1_0", "1:30", "2024-01-01"],
    }


@pytest.mark.parametrize("texts", [["lr"], ["lr="], ["=1"], ["lr=1", "lr=2"], ["lr=1,1"], ["lr=[1"]])
def test_wrong_values_are_refused(texts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^--grid: expected each KEY=VALUE"):
        parse_values("--grid", texts)


def test_every_run_has_a_directory_of_its_own() -> None:
    runs = [Run({"data.root": root}, 0, False) for root in ("d/a/b", "d/a_b", "x" * 300, "x" * 301)]
    names = [run.directory(Path("sweep")).name for run in runs]
    assert len(set(names)) == 4
    assert all(run.directory(Path("sweep")).parent == Path("sweep") for run in runs)
    assert max(map(len, names)) < 250
    assert Run({"clients.lr": "1e-2"}, 3, True).directory(Path("s")) == Path("s/tuning/clients.lr=1e-2,seed=3")


@pytest.mark.parametrize(
    ("grid", "tune", "seeds", "message"),
    [
        ({"seed": ["1"]}, {}, [0], "--grid: use --seeds for seed"),
        ({}, {"output_dir": ["x"]}, [0], "--tune: use --output_dir for output_dir"),
        ({"a": ["1"]}, {"a": ["2"]}, [0], "--tune: a cannot be in --grid as well"),
        ({"data.validation": ["0"]}, {}, [0], "--grid: use --data.validation for data.validation"),
        ({}, {}, [], "--seeds: needs different whole numbers"),
        ({}, {}, [1, 1], "--seeds: needs different whole numbers"),
    ],
)
def test_wrong_grids_are_refused(grid: Any, tune: Any, seeds: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Grid(grid, tune, seeds)
