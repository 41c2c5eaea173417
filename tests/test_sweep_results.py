"""The table of a sweep gives mean and spread over the seeds."""

from __future__ import annotations

from pathlib import Path

from flare_dist.studies.grid import Grid
from flare_dist.studies.sweep_results import results_table
from tests.helpers.sweeps import Processes, play_grid


def test_the_table_gives_mean_and_spread_and_marks_the_best(tmp_path: Path, processes: Processes) -> None:
    rows = play_grid(tmp_path, Grid({"clients.lr": ["0.2", "9"]}, {}, [0, 1]))
    rows += play_grid(tmp_path / "other", Grid({"clients.lr": ["0.1"]}, {}, [0]))
    table = results_table(rows, ["clients.lr"])
    columns = [list(column.cells) for column in table.columns]
    assert columns[0] == ["clients.lr=0.2 *", "clients.lr=9", "clients.lr=0.1"]
    assert columns[2] == ["0.6500 ± 0.0707", "-", "0.5000"]
    assert columns[3] == ["0.5500 ± 0.0707", "-", "0.9000"]
