"""The bandwidth command prints its table and writes CSV and a plot."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import yaml

from flare_dist import cli
from flare_dist.analysis.bandwidth import totals
from flare_dist.analysis.run_amounts import sum_up
from flare_dist.analysis.run_logs import read_run
from flare_dist.analysis.seed_groups import Group
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
    names = {"bandwidth.csv", "means.csv", "seconds.svg", "accuracy_against_projected_1Mbps.svg"}
    assert {path.name for path in (tmp_path / "report").iterdir()} == names
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main([*command, "--output_dir", str(tmp_path / "bare")]) == 0
    assert {path.name for path in (tmp_path / "bare").iterdir()} == {"bandwidth.csv", "means.csv"}
    assert "no plot: plots need matplotlib" in capsys.readouterr().out


def test_seeds_are_one_column_named_by_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = []
    for name, seed, density, sent in (("a", 0, 0.1, 40_000), ("b", 1, 0.1, 60_000), ("c", 0, 1.0, 400_000)):
        directory = write_run(tmp_path / name, uplink_bytes=sent)
        config = yaml.safe_load((directory / "config.yaml").read_text())
        config |= {"seed": seed, "compression": {"density": density}}
        (directory / "config.yaml").write_text(yaml.safe_dump(config))
        runs.append(str(directory))
    out = tmp_path / "out"
    assert cli.main(["bandwidth", *runs, "--latex", "--target", "0.2", "--output_dir", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "density=0.1" in printed
    cells = {row[1].strip(): [cell.strip() for cell in row[2:4]] for row in table_of(printed)}
    assert cells["bytes up"] == ["150 kB", "1.2 MB (+700.0%)"]
    assert cells["bytes up until then"] == ["100 kB", "800 kB"]
    assert cells["round with accuracy 0.2"] == ["2", "2"]
    with (out / "bandwidth.csv").open() as file:
        assert [row["run"] for row in csv.DictReader(file)] == runs
    with (out / "means.csv").open() as file:
        assert [(row["setting"], row["seeds"]) for row in csv.DictReader(file)] == [
            ("density=0.1", "2"),
            ("density=1", "1"),
        ]
    assert "density=0.1" in (out / "means.tex").read_text()


def test_a_target_that_one_seed_missed_is_not_reached_by_the_setting(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / str(rows), rows=rows), {}) for rows in (2, 4)]
    (one,) = sum_up([Group("both", runs, {})], [], "ranks", 0.2)
    assert [found.target is None for found in one.totals] == [True, False]
    assert one.mean.target is None
    assert (one.mean.name, one.mean.rounds, one.mean.value) == ("both", 2, pytest.approx(0.2))
