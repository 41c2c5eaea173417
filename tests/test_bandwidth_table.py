"""The bandwidth command prints its table and writes CSV and a plot."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from flare_dist import cli
from flare_dist.analysis.bandwidth import totals
from flare_dist.analysis.run_logs import read_run
from tests.helpers.extras import needs
from tests.helpers.run_logs import table_of, write_run


def test_buffers_count_wherever_bytes_up_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """4.4 MB dense against .8 MB of payloads and buffers: 5.5 and not 10."""
    directory = write_run(tmp_path / "run", buffer_bytes=400_000)
    log = read_run(directory, {})
    run = totals(log, [], "ranks", 0.15)
    assert run.compression == pytest.approx(5.5)
    assert run.target is not None
    assert run.target["bytes_up"] == 2 * 800_000
    command = ["bandwidth", str(directory), "--target", "0.15", "--output_dir", str(tmp_path / "report")]
    assert cli.main(command) == 0
    printed = {cells[1].strip(): cells[2].strip() for cells in table_of(capsys.readouterr().out)}
    assert printed["bytes up"] == "2.4 MB"
    assert printed["of these, buffers"] == "1.2 MB"
    assert printed["bytes up until then"] == "1.6 MB"
    assert printed["compression of the uplink"] == "5.5 x"
    with (tmp_path / "report/bandwidth.csv").open() as file:
        (row,) = csv.DictReader(file)
    sizes = {key: float(row[key]) for key in ("bytes_up", "uplink_bytes", "compression", "until target: bytes_up")}
    assert list(sizes.values()) == [2_400_000, 1_200_000, pytest.approx(5.5), 1_600_000]


@needs("plots")
def test_the_command_writes_a_table_csv_and_a_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [str(write_run(tmp_path / "[/dense]$x^")), str(write_run(tmp_path / "sparse", uplink_bytes=40_000))]
    command = ["bandwidth", *runs, "--link", "1Mbps", "--target", "0.2", "--format", "svg"]
    command += ["--x", "projected:1Mbps"]
    assert cli.main([*command, "--output_dir", str(tmp_path / "report")]) == 0
    printed = capsys.readouterr().out
    for words in ("bytes up", "120 kB (-90.0%)", "a round at 1Mbps", "5.9 s", "round with accuracy 0.2"):
        assert words in printed
    with (tmp_path / "report/bandwidth.csv").open() as file:
        dense, sparse = csv.DictReader(file)
    assert float(dense["uplink_bytes"]) == 1_200_000
    assert float(sparse["seconds at 1Mbps"]) == pytest.approx(3 * 5.9)
    names = {"bandwidth.csv", "seconds.svg", "accuracy_against_projected_1Mbps.svg"}
    assert {path.name for path in (tmp_path / "report").iterdir()} == names
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main([*command, "--output_dir", str(tmp_path / "bare")]) == 0
    assert [path.name for path in (tmp_path / "bare").iterdir()] == ["bandwidth.csv"]
    assert "no plot: plots need matplotlib" in capsys.readouterr().out
