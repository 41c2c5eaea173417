"""Damaged lines of metrics.jsonl are left out and named; the others are read."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from flare_dist.analysis.bandwidth import totals
from flare_dist.analysis.bandwidth_table import lines
from flare_dist.analysis.links import TOPOLOGIES, Link
from flare_dist.analysis.run_logs import read_run
from tests.helpers.run_logs import write_run


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
