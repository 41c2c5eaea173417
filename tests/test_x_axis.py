"""A metric is drawn against what had been spent until its evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from flare_dist.analysis.run_logs import read_run
from flare_dist.analysis.x_axis import XAxis
from tests.helpers.run_logs import write_run


@pytest.mark.parametrize(
    ("text", "spent"),
    [
        ("uplink", [0, 800_000, 1_600_000, 2_400_000]),
        ("total", [0, 4_800_000, 9_600_000, 14_400_000]),
        ("rounds", [0, 1, 2, 3]),
        ("seconds", [0, 2, 4, 6]),
        ("projected:1Mbps", [0, 5.9, 11.8, 17.7]),
    ],
)
def test_points_add_up_what_rounds_took(text: str, spent: list[float], tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", buffer_bytes=400_000), {})
    points = XAxis.parse(text).points(run)
    assert [point.x for point in points] == pytest.approx(spent)
    assert [point.value for point in points] == [0, 0.1, 0.2, 0.3]
    assert [point.round for point in points] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bytes", "--x: unknown choice, got 'bytes'; choose from uplink, total, rounds, seconds, projected:RATE"),
        ("projected", "--x: unknown choice, got 'projected'"),
        ("projected:fast", "--x: projected: expected RATE"),
    ],
)
def test_other_axes_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        XAxis.parse(text)


def test_axes_write_their_units() -> None:
    shown = [XAxis.parse(text).show(2_500) for text in ("uplink", "rounds", "seconds", "projected:1Gbps/20ms")]
    assert shown == ["2.5 kB", "2500", "2,500 s", "2,500 s"]
    assert XAxis.parse("projected:1Gbps/20ms").name == "projected_1Gbps_20ms"
