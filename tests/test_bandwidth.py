"""What is read from logs is what was logged, and projections follow from the stated model of a link."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

from flare_dist import cli
from flare_dist.analysis import plots
from flare_dist.analysis.bandwidth import (
    check_same_work,
    metric_against_bytes,
    parse_tags,
    read_run,
    totals,
    unknown_slowest,
)
from flare_dist.analysis.densities import read_densities
from flare_dist.analysis.links import TOPOLOGIES, Link, project
from flare_dist.analysis.report import lines
from flare_dist.records.tensorboard import tag

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


def test_of_clients_trained_in_turn_a_star_takes_the_slowest(
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


def test_buffers_count_wherever_bytes_up_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """4.4 MB dense against .8 MB of payloads and buffers: 5.5 and not 10."""
    directory = write_run(tmp_path / "run", buffer_bytes=400_000)
    log = read_run(directory, {})
    run = totals(log, [], "ranks", 0.15)
    assert run.compression == pytest.approx(5.5)
    assert run.target is not None
    assert run.target["bytes_up"] == 2 * 800_000
    assert metric_against_bytes(log) == [(800_000, 0.1), (1_600_000, 0.2), (2_400_000, 0.3)]
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
    assert "5.5 x" in (tmp_path / "report/bandwidth.html").read_text()


def table_of(printed: str) -> list[list[str]]:
    return [line.split("│") for line in printed.splitlines() if "│" in line]


@pytest.mark.parametrize(
    "damage",
    ['{"round": 2, "uplink', "[]", '{"round": "2"}', '{"round": 2, "uplink_bytes": "1"}', '{"round": 2, "ranks": NaN}'],
)
def test_damaged_lines_of_metrics_are_named(tmp_path: Path, damage: str) -> None:
    directory = write_run(tmp_path / "run", rows=5)
    path = directory / "metrics.jsonl"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows[:2], damage, *rows[3:]]) + '\n{"round": 5, "upl')
    log = read_run(directory, {})
    assert [row["round"] for row in log.rows] == [0, 1, 3, 4]
    assert log.notes == [f"{path}: damaged lines are left out: 3"]  # the last one may still be written


def test_metrics_of_random_damage_are_read_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", logger="flare_dist")
    directory = write_run(tmp_path / "run", bucket_sent_after=[0.1], bucket_wire=[10], steps=2)
    path, draw = directory / "metrics.jsonl", random.Random(18)
    whole = path.read_bytes()
    for _ in range(500):
        data = bytearray(whole)
        place = draw.randrange(len(data))
        data[place : place + draw.choice([0, 1, 1, 9, 200])] = draw.randbytes(draw.choice([0, 1, 1, 9]))
        path.write_bytes(data)
        try:
            log = read_run(directory, {})
            for topology in TOPOLOGIES:
                lines([totals(log, [Link("", 1e6)], topology, 0.2)], 0.2)
        except ValueError as error:
            refused = str(error)
            assert str(directory) in refused
            assert "\n" not in refused


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


@pytest.mark.parametrize("damage", ['{"a": 1.0}', '{"a": 1.0, "b": "?"}', "[0.5]"])
def test_damaged_densities_are_refused_with_the_path(tmp_path: Path, damage: str) -> None:
    directory = write_run(tmp_path / "run", layer_densities={"a": 1.0, "b": 0.5})
    assert read_densities(directory).rounds[-1] == (3, [1.0, 0.5])
    path = directory / "metrics.jsonl"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows[:3], rows[3].replace('{"a": 1.0, "b": 0.5}', damage)]) + "\n")
    with pytest.raises(ValueError, match=rf"^densities: {path} has a damaged line"):
        read_densities(directory)
