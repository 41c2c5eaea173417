"""Rows of metrics.jsonl are read back, but for damaged ones."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest

from flare_dist.analysis.metrics_file import read_metrics
from flare_dist.records.metrics import read_rows


def row(round_: int) -> dict[str, float]:
    return {"round": round_, "test_accuracy": round_ / 10, "test_loss": 1.0, "uplink_bytes": 100, "round_seconds": 0.5}


def test_unreadable_lines_are_left_out_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("flare_dist"), "propagate", True)
    lines = [json.dumps(row(round_)) for round_ in range(4)]
    lines[1:2] = [
        "5",
        "{}",
        '"x"',
        '{"round": "a"}',
        '{"round": 1, "uplink_bytes": "9"}',
        '{"round": 1, "uplink_bytes": null}',
        '{"rou',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    with caplog.at_level("WARNING", logger="flare_dist"):
        assert [r["round"] for r in read_rows(tmp_path, up_to=3)] == [0, 2, 3]
        assert [r["round"] for r in read_rows(tmp_path)] == [0, 2, 3]
    assert "no readable line for rounds 1: totals are incomplete" in caplog.text


def test_a_metric_that_is_null_is_nan(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"round": 0, "test_loss": null, "groups": {"a": {"auroc": null}}}\n')
    for rows in (read_rows(tmp_path), read_rows(tmp_path, 0), read_metrics(tmp_path)):
        assert math.isnan(rows[0]["test_loss"])
        assert math.isnan(rows[0]["groups"]["a"]["auroc"])
