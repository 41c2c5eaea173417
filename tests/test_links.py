"""Links are read as they are written, and projections follow from the stated model of a link."""

from __future__ import annotations

from typing import Any

import pytest

from flare_dist.analysis.links import Link, project
from tests.helpers.run_logs import ROW


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
def test_a_link_is_read_as_it_is_written(text: str, rate: float, latency: float, duplex: str) -> None:
    link = Link.parse(text)
    assert (link.text, link.rate, link.duplex) == (text, rate, duplex)
    assert link.latency == pytest.approx(latency)


@pytest.mark.parametrize(
    "text",
    ["fast", "100", "0Mbps", "1Gbps/soon", "1Gbps/20", "1..Gbps", "Gbps", "", "1Gbps/1ms/2ms", "1Gbps/full/half"],
)
def test_other_texts_are_refused_as_links(text: str) -> None:
    with pytest.raises(ValueError, match=r"--link: expected RATE"):
        Link.parse(text)


def test_a_collective_takes_the_time_of_its_bytes_and_of_its_steps() -> None:
    """A megabyte on the wire of two ranks is half a megabyte through each link in each direction."""
    for duplex, seconds in (("full", 4.0), ("half", 8.0), ("shared", 8.0)):
        assert Link("", 1e6, 0.0, duplex).seconds(1e6, 1, 2) == pytest.approx(seconds)
    assert Link("", 1e6, 0.1).seconds(0, 3, 5) == pytest.approx(3 * 4 * 0.1)
    assert Link("", 1e6, 0.1).seconds(1e6, 3, 1) == 0


def test_a_round_is_projected_among_ranks_and_in_a_star() -> None:
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
