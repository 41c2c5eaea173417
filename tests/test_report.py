"""`flare-dist report` groups seeds, and writes a page, a table and a figure."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import yaml

from flare_dist import cli
from flare_dist.cli.report import find_runs
from tests.helpers.extras import needs
from tests.helpers.run_logs import write_run

pytestmark = needs("plots")


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two seeds of one setting and one of another, as directories."""
    found = []
    for name, seed, density in (("a", 0, 0.1), ("b", 1, 0.1), ("c", 0, 1.0)):
        directory = write_run(tmp_path / "runs" / name)
        config = yaml.safe_load((directory / "config.yaml").read_text())
        config |= {"seed": seed, "output_dir": name, "compression": {"density": density}}
        (directory / "config.yaml").write_text(yaml.safe_dump(config))
        found.append(str(directory))
    return found


def test_seeds_are_grouped_and_everything_is_written(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["report", *runs, "--latex", "--format", "svg", "--x", "projected:1Mbps", "--output_dir", str(out)]
    assert cli.main(command) == 0
    names = {"report.html", "means.csv", "means.tex", "accuracy_against_projected_1Mbps.svg"}
    assert {path.name for path in out.iterdir()} == names
    with (out / "means.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["setting"], row["seeds"]) for row in rows] == [("density=0.1", "2"), ("density=1", "1")]
    assert "density=0.1" in capsys.readouterr().out
    assert "2 seeds" in (out / "report.html").read_text()


def test_different_work_is_told_and_not_refused(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = str(write_run(tmp_path / "other", batch_size=99))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["report", runs[0], other, "--output_dir", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "Beware of bytes and seconds: the runs differ in clients.batch_size" in said.err
    assert "no plot: plots need matplotlib" in said.out


def test_a_target_that_no_run_reached_is_told(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    command = ["report", *runs, "--output_dir", str(tmp_path / "out"), "--target"]
    assert cli.main([*command, "0.9"]) == 0
    assert "No run reached the target, accuracy 0.9." in capsys.readouterr().err
    assert "No run reached the target, accuracy 0.9." in (tmp_path / "out/report.html").read_text()
    assert cli.main([*command, "0.2"]) == 0
    assert "reached the target" not in capsys.readouterr().err


def test_a_directory_of_runs_stands_for_them_without_those_that_tuned(runs: list[str], tmp_path: Path) -> None:
    write_run(tmp_path / "runs/tuning/d")
    assert find_runs([str(tmp_path / "runs"), runs[0]]) == [Path(run) for run in runs]
    assert find_runs([str(tmp_path / "nothing")]) == [tmp_path / "nothing"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "wide"], "--size: unknown choice, got 'wide'; choose from column, page"),
        (["--x", "time"], "--x: unknown choice, got 'time'"),
        (["--target", "2"], "--target: out of range for accuracy, got 2.0; choose a number in (0, 1]"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    arguments: list[str], message: str, runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", *runs, *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_without_plotly_the_rest_is_written_and_the_status_tells(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["report", *runs, "--output_dir", str(tmp_path / "out")]) == 2
    assert "pip install 'flare_dist[plots]'" in capsys.readouterr().err
    assert (tmp_path / "out/means.csv").exists()
