"""Totals are the sums of what was logged, and name what a star cannot tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from flare_dist import cli
from flare_dist.analysis.bandwidth import totals, unknown_slowest
from flare_dist.analysis.links import Link, project
from flare_dist.analysis.run_logs import read_run
from tests.helpers.run_logs import ROW, write_run


def test_a_star_takes_the_slowest_of_the_clients_trained_in_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four clients on two ranks took 1.7 s of a round; in a star each has a machine of its own."""
    link, there_and_back = Link("", 1e6), 8 * 4.4 / 4
    row = ROW | {"slowest_client_seconds": 0.9}
    assert project(row, link, "star") == pytest.approx(2.0 - 0.1 - 1.7 + 0.9 + there_and_back)
    assert project(row, link, "ranks") == project(ROW, link, "ranks")
    assert project(row | {"round_seconds": 1.0}, link, "star") == pytest.approx(0.9 + there_and_back)
    old = str(write_run(tmp_path / "old"))
    new = str(write_run(tmp_path / "new", slowest_client_seconds=0.9))
    command = ["bandwidth", new, old, "--link", "1Mbps", "--output_dir", str(tmp_path / "report")]
    assert cli.main([*command, "--topology", "star"]) == 0
    said = capsys.readouterr()
    assert [line for line in said.err.splitlines() if "slowest" in line] == [
        f"warning: {old}: rounds without slowest_client_seconds: 3 (older logs and clients trained as one batch lack "
        "them); the star adds up the clients that a process trained in turn"
    ]
    assert "seconds of the slowest client" in said.out
    assert cli.main(command) == 0
    assert "slowest" not in capsys.readouterr().err
    assert unknown_slowest(read_run(write_run(tmp_path / "one", clients=2), {})) is None  # a client on each rank
    assert unknown_slowest(read_run(write_run(tmp_path / "gradient", steps=20, clients=8), {})) is None
    logged = write_run(tmp_path / "events", events=True, clients=8, slowest_client_seconds=0.9)
    assert unknown_slowest(read_run(logged, {})) is None  # the initial model's evaluation is no round


def test_totals_are_sums_and_tell_when_the_target_was_reached(tmp_path: Path) -> None:
    run = totals(read_run(write_run(tmp_path / "run"), {}), [Link("slow", 1e6)], "ranks", 0.15)
    assert (run.rounds, run.value, run.compression) == (3, 0.3, 10)
    assert run.amounts["uplink_bytes"] == 3 * 400_000
    assert run.communicating == pytest.approx(0.05)
    assert run.projected == {"slow": pytest.approx(3 * 5.9)}
    assert run.target == {
        "round": 2,
        "bytes_up": 800_000,
        "downlink_bytes": 8_000_000,
        "round_seconds": 4,
        "slow": pytest.approx(2 * 5.9),
    }
    assert totals(read_run(tmp_path / "run", {}), [], "ranks", 0.9).target is None
    at_once = totals(read_run(tmp_path / "run", {}), [], "ranks", 0.0).target
    assert at_once is not None
    assert at_once["round"] == 0
