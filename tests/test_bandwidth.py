"""What is read from logs is what was logged, and projections follow from the stated model of a link."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

from flare_dist import cli
from flare_dist.analysis import plots
from flare_dist.analysis.bandwidth import check_same_work, parse_tags, read_run, totals
from flare_dist.analysis.links import Link, project
from flare_dist.run.tracking import tag

ROW = {
    "clients": 4,
    "uplink_bytes": 400_000,
    "downlink_bytes": 4_000_000,
    "buffer_bytes": 0,
    "dense_bytes": 4_000_000,
    "wire_bytes": 1_000_000,
    "collectives": 3,
    "ranks": 2,
    "round_seconds": 2.0,
    "compute_seconds": 1.5,
    "select_seconds": 0.2,
    "communication_seconds": 0.1,
    "waiting_seconds": 0.05,
}


def write_run(directory: Path, rows: int = 4, batch_size: int = 10, events: bool = False, **changes: Any) -> Path:
    """A run directory whose accuracy is a tenth of the round; only its event files where `events`."""
    directory.mkdir(parents=True)
    config = {"mode": "federated", "clients": {"batch_size": batch_size}, "engine": {"gradient_accumulation_steps": 1}}
    (directory / "config.yaml").write_text(yaml.safe_dump(config | {"eval_every": 1}))
    logged: list[dict[str, Any]] = [{"round": 0, "test_accuracy": 0.0}]
    logged += [{"round": n, "test_accuracy": n / 10, **ROW, **changes} for n in range(1, rows)]
    if events:
        with SummaryWriter(str(directory)) as writer:
            for row in logged:
                for key, value in row.items():
                    if tag(key):
                        writer.add_scalar(str(tag(key)), value, row["round"])
    else:
        (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in logged))
    return directory


@pytest.mark.parametrize(
    ("text", "rate", "latency", "duplex"),
    [
        ("100Mbps", 1e8, 0, "full"),
        ("1Gbps/20ms", 1e9, 0.02, "full"),
        ("56kbps/half", 56e3, 0, "half"),
        ("12.5MBps", 1e8, 0, "full"),
        ("2.5Gbps/500us/shared", 2.5e9, 5e-4, "shared"),
    ],
)
def test_links_as_they_are_written(text: str, rate: float, latency: float, duplex: str) -> None:
    link = Link.parse(text)
    assert (link.text, link.rate, link.duplex) == (text, rate, duplex)
    assert link.latency == pytest.approx(latency)


@pytest.mark.parametrize(
    "text",
    ["fast", "100", "0Mbps", "1Gbps/soon", "1Gbps/20", "1..Gbps", "Gbps", "", "1Gbps/1ms/2ms", "1Gbps/full/half"],
)
def test_what_is_no_link(text: str) -> None:
    with pytest.raises(ValueError, match=r"--link: expected RATE"):
        Link.parse(text)


def test_a_collective_takes_its_bytes_and_its_steps() -> None:
    """A megabyte on the wire of two ranks is half a megabyte through each link in each direction."""
    for duplex, seconds in (("full", 4.0), ("half", 8.0), ("shared", 8.0)):
        assert Link("", 1e6, 0.0, duplex).seconds(1e6, 1, 2) == pytest.approx(seconds)
    assert Link("", 1e6, 0.1).seconds(0, 3, 5) == pytest.approx(3 * 4 * 0.1)
    assert Link("", 1e6, 0.1).seconds(1e6, 3, 1) == 0


def test_a_round_among_ranks_and_in_a_star() -> None:
    link = Link("", 1e6, 0.01)
    assert project(ROW, link, "ranks") == pytest.approx(2.0 - 0.1 + 4.0 + 3 * 0.01)
    assert project(ROW, link, "star") == pytest.approx(2.0 - 0.1 + 8 * 4.4 / 4 + 2 * 0.01)
    assert project(ROW | {"steps": 20}, link, "star") == pytest.approx(2.0 - 0.1 + 8 * 4.4 / 4 + 20 * 2 * 0.01)


def test_buckets_travel_while_later_gradients_are_computed() -> None:
    """Two steps of a second, buckets of half a second on this link, sent after 0.2, 0.6 and 0.8 s."""
    row: dict[str, Any] = {
        "ranks": 2,
        "steps": 2,
        "round_seconds": 2.0,
        "compute_seconds": 2.0,
        "communication_seconds": 0.0,
    }
    row |= {"collectives": 6, "wire_bytes": 6e5, "bucket_sent_after": [0.2, 0.6, 0.8], "bucket_wire": [1e5] * 3}
    link = Link("", 8e5)  # a bucket is 50,000 bytes through each link
    assert project(row, link, "ranks") == pytest.approx(2 * (1 + (0.2 + 3 * 0.5 - 0.8)))
    assert project(row, Link("", 8e12), "ranks") == pytest.approx(2.0, abs=1e-6)
    assert project(row | {"wire_bytes": 7e5}, link, "ranks") == pytest.approx(2 * 1.9 + 0.5)


def test_event_files_say_the_same_as_metrics(tmp_path: Path) -> None:
    written = read_run(write_run(tmp_path / "metrics"), {})
    events = read_run(write_run(tmp_path / "events", events=True), {})
    assert len(written.rows) == len(events.rows) == 4
    for row, other in zip(written.rows, events.rows):
        for key, value in row.items():
            assert other[key] == pytest.approx(value), key


def test_another_trainer_s_logs(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(3):
            writer.add_scalar("comm/up", 1000, step, walltime=100.0 + 5 * step)
            writer.add_scalar("lr", 0.1, step, walltime=100.0 + 5 * step)
    (run,) = [read_run(tmp_path, {"wire_bytes": "comm/up"}, ranks=2)]
    assert [row["wire_bytes"] for row in run.rows] == [1000] * 3
    assert totals(run, [], "ranks", None).amounts["round_seconds"] == 15  # the first is taken to be like the second
    assert totals(run, [], "ranks", None).amounts["wire_bytes"] == 3000
    assert project(run.rows[1], Link("", 1e6), "ranks") == pytest.approx(5 + 0.004)
    with pytest.raises(ValueError, match=r"has no tag comm/down \(its tags: comm/up, lr\)"):
        read_run(tmp_path, {"downlink_bytes": "comm/down"})
    with pytest.raises(ValueError, match="has no tag that is known"):
        read_run(tmp_path, {})
    with pytest.raises(ValueError, match="has no uplink_bytes; --tag uplink_bytes=TAG names it"):
        project(run.rows[1] | {"clients": 2}, Link("", 1e6), "star")
    with pytest.raises(ValueError, match=r"--tag: expected KEY=TAG, got 'wire_bytes'"):
        parse_tags(["wire_bytes"])


def test_new_style_scalars_and_ours_beside_another_s(tmp_path: Path) -> None:
    ours = write_run(tmp_path / "ours")
    with SummaryWriter(str(tmp_path / "theirs")) as writer:
        for step in range(1, 4):
            writer.add_scalar("comm/up", 1000, step, new_style=True)
    tags = {"uplink_bytes": "comm/up"}
    assert [row["uplink_bytes"] for row in read_run(tmp_path / "theirs", tags).rows] == [1000] * 3
    assert read_run(ours, tags).rows[1]["uplink_bytes"] == 400_000


def test_gradient_runs_of_other_rank_counts_are_other_work(tmp_path: Path) -> None:
    for ranks in (1, 4):
        write_run(tmp_path / str(ranks), ranks=ranks)
        config = yaml.safe_load((tmp_path / str(ranks) / "config.yaml").read_text())
        (tmp_path / str(ranks) / "config.yaml").write_text(yaml.safe_dump(config | {"mode": "gradient"}))
    runs = [read_run(tmp_path / str(ranks), {}) for ranks in (1, 4)]
    said = check_same_work(runs)
    assert said is not None
    assert "differ in ranks" in said
    assert check_same_work([runs[0], runs[0]]) is None


def test_totals_and_the_target(tmp_path: Path) -> None:
    run = totals(read_run(write_run(tmp_path / "run"), {}), [Link("slow", 1e6)], "ranks", 0.15)
    assert (run.rounds, run.accuracy, run.compression) == (3, 0.3, 10)
    assert run.amounts["uplink_bytes"] == 3 * 400_000
    assert run.communicating == pytest.approx(0.05)
    assert run.projected == {"slow": pytest.approx(3 * 5.9)}
    assert run.target == {
        "round": 2,
        "uplink_bytes": 800_000,
        "downlink_bytes": 8_000_000,
        "round_seconds": 4,
        "slow": pytest.approx(2 * 5.9),
    }
    assert totals(read_run(tmp_path / "run", {}), [], "ranks", 0.9).target is None


def test_different_work_is_refused_unless_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(write_run(tmp_path / str(size), batch_size=size)) for size in (10, 20)]
    said = check_same_work([read_run(Path(run), {}) for run in runs])
    assert said is not None
    assert "the runs differ in clients.batch_size" in said
    assert cli.main(["bandwidth", *runs]) == 2
    assert "--allow_different compares them all the same" in capsys.readouterr().err
    assert cli.main(["bandwidth", *runs, "--allow_different", "--output_dir", str(tmp_path / "report")]) == 0
    assert "Beware: the runs differ in clients.batch_size" in (tmp_path / "report/bandwidth.html").read_text()
    (tmp_path / "10/config.yaml").write_text("[not, a, configuration")
    said = check_same_work([read_run(Path(run), {}) for run in runs])
    assert said is not None
    assert "has no config.yaml" in said


def test_the_command_writes_a_table_csv_plots_and_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [str(write_run(tmp_path / "[/dense]$x^")), str(write_run(tmp_path / "sparse", uplink_bytes=40_000))]
    command = ["bandwidth", *runs, "--link", "1Mbps", "--target", "0.2", "--output_dir", str(tmp_path / "report")]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    for words in ("bytes up", "120 kB (-90.0%)", "a round at 1Mbps", "5.9 s", "round with accuracy 0.2"):
        assert words in printed
    with (tmp_path / "report/bandwidth.csv").open() as file:
        dense, sparse = csv.DictReader(file)
    assert float(dense["uplink_bytes"]) == 1_200_000
    assert float(sparse["seconds at 1Mbps"]) == pytest.approx(3 * 5.9)
    page = (tmp_path / "report/bandwidth.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page
    assert "full-duplex" in page

    def missing(width: float, height: float) -> None:
        raise plots.MissingMatplotlibError("no matplotlib")

    monkeypatch.setattr(plots, "_figure", missing)
    assert cli.main([*command[:-1], str(tmp_path / "bare")]) == 0
    assert sorted(path.name for path in (tmp_path / "bare").iterdir()) == ["bandwidth.csv", "bandwidth.html"]


def test_directories_without_a_log_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds neither metrics"):
        read_run(tmp_path, {})
    (tmp_path / "metrics.jsonl").write_text("{")
    with pytest.raises(ValueError, match="has no readable line"):
        read_run(tmp_path, {})
