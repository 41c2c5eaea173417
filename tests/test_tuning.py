"""A key is tuned on validation data alone, and a value at the edge of the search is pointed out."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from flare_dist.studies.grid import Grid
from tests.helpers.sweeps import Processes, play_grid


def test_tuning_uses_validation_data_alone_and_the_first_seed(
    tmp_path: Path, processes: Processes, caplog: pytest.LogCaptureFixture
) -> None:
    rows = play_grid(tmp_path, Grid({}, {"clients.lr": ["0.1", "0.2", "0.3", "9"]}, [0, 1]))
    assert [(row["purpose"], row["clients.lr"], row["seed"]) for row in rows] == [
        *(("tuning", lr, 0) for lr in ("0.1", "0.2", "0.3", "9")),
        ("result", "0.2", 0),
        ("result", "0.2", 1),
    ]
    held_out = [dict(itertools.pairwise(command)).get("--data.validation") for command in processes.commands]
    assert held_out == ["0.1"] * 4 + [None] * 2
    assert not caplog.messages or "edge" not in " ".join(caplog.messages)


@pytest.mark.parametrize(
    ("tried", "edge"),
    [(["0.2", "0.1", "0.3"], False), (["0.3", "0.2"], True), (["0.1", "0.2"], True), (["0.2"], False)],
)
def test_the_edge_of_a_search_is_pointed_out(
    tmp_path: Path, processes: Processes, caplog: pytest.LogCaptureFixture, tried: list[str], edge: bool
) -> None:
    play_grid(tmp_path, Grid({}, {"clients.lr": tried}, [0]))
    assert ("clients.lr = 0.2 is at the edge" in " ".join(caplog.messages)) is edge


def test_a_setting_that_always_diverges_has_no_result(tmp_path: Path, processes: Processes) -> None:
    rows = play_grid(tmp_path, Grid({}, {"clients.lr": ["9"]}, [0]))
    assert [row["purpose"] for row in rows] == ["tuning"]
