"""The settings of a sweep are named by what differs, and keep the runs that diverged in their count."""

from __future__ import annotations

import csv
from pathlib import Path

from flare_dist.analysis.means import means_table
from flare_dist.cli.sweep_settings import settings_of
from flare_dist.studies.grid import Grid
from flare_dist.studies.sweep_results import best_of
from tests.helpers.sweeps import Processes, play_grid


def test_the_table_gives_mean_and_spread_and_marks_the_best(tmp_path: Path, processes: Processes) -> None:
    rows = play_grid(tmp_path, Grid({"clients.lr": ["0.2", "9"]}, {}, [0, 1]))
    rows += play_grid(tmp_path / "other", Grid({"clients.lr": ["0.1"]}, {}, [0]))
    table = means_table(settings_of(rows, ["clients.lr"]), best_of(rows))
    columns = [list(column.cells) for column in table.columns]
    assert columns[0] == ["lr=0.2 *", "lr=9", "lr=0.1"]
    assert columns[2] == ["[bold]0.6500 ± 0.0707[/bold]", "-", "0.5000"]
    assert columns[3] == ["0.5500 ± 0.0707", "-", "[bold]0.9000[/bold]"]


def test_keys_with_one_value_are_not_in_the_label(tmp_path: Path, processes: Processes) -> None:
    rows = play_grid(tmp_path, Grid({"clients.lr": ["0.2", "0.1"], "rounds": ["3"]}, {}, [0]))
    assert [setting.label for setting in settings_of(rows, ["clients.lr", "rounds"])] == ["lr=0.2", "lr=0.1"]
    assert [setting.label for setting in settings_of(rows[:1], ["clients.lr", "rounds"])] == ["as configured"]


def test_results_csv_has_the_metric_of_the_task(tmp_path: Path, processes: Processes) -> None:
    play_grid(tmp_path, Grid({"clients.lr": ["9", "0.2"]}, {}, [0]))
    with (tmp_path / "results.csv").open() as file:
        diverged, finished = csv.DictReader(file)
    assert (finished["metric"], finished["better"], finished["test_accuracy"]) == ("accuracy", "max", "0.6")
    assert (diverged["metric"], diverged["test_accuracy"]) == ("", "")
