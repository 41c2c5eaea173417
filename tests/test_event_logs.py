"""Event files tell the same as metrics.jsonl, and those of other trainers are read by their tags."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from flare_dist.analysis.bandwidth import totals
from flare_dist.analysis.event_logs import parse_tags
from flare_dist.analysis.links import Link, project
from flare_dist.analysis.run_logs import read_run
from tests.helpers.run_logs import write_run


def test_event_files_tell_the_same_as_metrics(tmp_path: Path) -> None:
    written = read_run(write_run(tmp_path / "metrics"), {})
    events = read_run(write_run(tmp_path / "events", events=True), {})
    assert len(written.rows) == len(events.rows) == 4
    for row, other in zip(written.rows, events.rows):
        for key, value in row.items():
            assert other[key] == pytest.approx(value), key


def test_another_trainers_logs_are_read_by_their_tags(tmp_path: Path) -> None:
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


def test_tags_of_another_trainer_read_new_style_scalars_and_leave_our_logs_alone(tmp_path: Path) -> None:
    ours = write_run(tmp_path / "ours")
    with SummaryWriter(str(tmp_path / "theirs")) as writer:
        for step in range(1, 4):
            writer.add_scalar("comm/up", 1000, step, new_style=True)
    tags = {"uplink_bytes": "comm/up"}
    assert [row["uplink_bytes"] for row in read_run(tmp_path / "theirs", tags).rows] == [1000] * 3
    assert read_run(ours, tags).rows[1]["uplink_bytes"] == 400_000
