"""Tables of means: mean ± deviation, the best in bold by the direction of its metric, and how many runs diverged."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from flare_dist.analysis.means import Setting, best_of_column, cell, means_table, write_latex, write_means

SETTINGS = [
    Setting("lr=0.1", {"clients.lr": "0.1"}, {"test_rmse": [1.0, 2.0], "bytes_up": [1e6, 1e6], "seconds": [3.0]}, 2),
    Setting("50 % & $x_1$", {"clients.lr": "9"}, {"test_rmse": [0.5], "bytes_up": [2e6]}, 2),
    Setting("lr=1", {"clients.lr": "1"}, {"test_rmse": [3.0, 3.0], "bytes_up": [3e6, 4e6]}, 2),
]


def test_cells_give_mean_and_deviation_with_units() -> None:
    assert cell(SETTINGS[0], "test_rmse") == "1.5000 ± 0.7071"
    assert cell(SETTINGS[0], "bytes_up") == "1 MB"  # the same for all
    assert cell(SETTINGS[2], "bytes_up") == "3.5 ± 0.707 MB"
    assert cell(SETTINGS[1], "test_rmse") == "0.5000 (1 diverged)"
    assert cell(SETTINGS[1], "seconds") == "-"
    assert cell(Setting("a", {}, {"rounds until 0.9": [3.0]}, 3), "rounds until 0.9") == "3 (2 never)"
    assert cell(Setting("a", {}, {"rounds until 0.9": [3.0, 4.0]}, 2), "rounds until 0.9") == "3.5 ± 0.7"


def test_the_best_is_that_of_the_metrics_direction_and_no_run_of_it_diverged() -> None:
    assert best_of_column(SETTINGS, "test_rmse", ("rmse", "min")) == {0}
    assert best_of_column(SETTINGS, "test_rmse", ("rmse", "max")) == {2}
    assert best_of_column(SETTINGS, "bytes_up", ("rmse", "min")) == set()
    assert best_of_column(SETTINGS[:1], "test_rmse", ("rmse", "min")) == set()
    tied = [Setting("a", {}, {"test_x": [0.1]}, 1), Setting("b", {}, {"test_x": [0.1 + 1e-9]}, 1)]
    assert best_of_column(tied, "test_x", ("x", "max")) == {0, 1}


def test_the_table_marks_the_best_in_bold_and_by_validation() -> None:
    held_out = [Setting(s.label, {}, {"validation_rmse": [n], **s.amounts}, 1) for n, s in enumerate(SETTINGS, 1)]
    table = means_table(held_out, ("rmse", "min"))
    columns = [list(column.cells) for column in table.columns]
    assert columns[0][0] == "lr=0.1 *"
    assert columns[2][0] == "[bold]1.0000[/bold]"
    assert table.caption == "* best by validation rmse"


def test_means_csv_has_keys_means_and_deviations_in_plain_numbers(tmp_path: Path) -> None:
    with write_means(tmp_path / "means.csv", SETTINGS).open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["clients.lr"] == "0.1"
    assert float(rows[0]["test_rmse mean"]) == 1.5
    assert float(rows[0]["test_rmse deviation"]) == pytest.approx(0.5**0.5)
    assert rows[1]["test_rmse deviation"] == ""
    assert rows[1]["seeds"] == "2"


def test_latex_is_escaped_and_the_best_is_bold(tmp_path: Path) -> None:
    text = write_latex(tmp_path / "means.tex", SETTINGS, ("rmse", "min")).read_text()
    assert r"\textbf{1.5000 $\pm$ 0.7071}" in text
    assert r"50 \% \& \$x\_1\$ & 0.5000 (1 diverged)" in text
    assert text.count(r"\\") == 4
    assert r"\toprule" in text
