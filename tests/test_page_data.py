"""The curves of a report are thinned, marked and numbered; the worst groups of the data come first."""

from __future__ import annotations

import math
from pathlib import Path

from flare_dist.analysis.links import Link
from flare_dist.analysis.page_data import MOST_MEMBERS, MOST_POINTS, curves_data, links_of, members_data, style_of
from flare_dist.analysis.run_logs import RunLog, read_run
from flare_dist.analysis.seed_groups import Group
from tests.helpers.run_logs import write_run


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    rows = [{"round": n, "test_accuracy": n / 1000, "uplink_bytes": 1} for n in range(1001)]
    data = curves_data([Group("a", [RunLog("a", rows)], {})], [], "ranks")
    rounds = data["groups"][0]["rounds"]
    assert len(rounds) == MOST_POINTS
    assert (rounds[0], rounds[-1]) == (0, 1000)
    assert [len(axis["x"][0]) for axis in data["axes"].values()] == [MOST_POINTS] * 4


def test_what_is_not_finite_is_null() -> None:
    rows = [{"round": 0, "test_accuracy": math.nan}, {"round": 1, "test_accuracy": 0.123456}]
    (group,) = curves_data([Group("a", [RunLog("a", rows)], {})], [], "ranks")["groups"]
    assert group["mean"] == [None, 0.12346]


def test_far_bytes_lie_on_a_logarithmic_axis_with_ticks(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / str(size), uplink_bytes=size), {}) for size in (1_000, 100_000)]
    axis = curves_data([Group(run.name, [run], {}) for run in runs], [], "ranks")["axes"]["uplink"]
    assert axis["log"]
    assert (1e5, "100 kB") in axis["ticks"]


def test_the_slider_has_the_latency_of_the_chosen_link_and_its_rate() -> None:
    links = links_of(Link.parse("42Mbps/20ms/half"))
    assert [link.rate for link in links] == sorted(link.rate for link in links)
    assert "42 Mbps" in [link.text for link in links]
    assert {(link.latency, link.duplex) for link in links} == {(0.02, "half")}
    assert (links[0].text, links[-1].text) == ("1 Mbps", "10 Gbps")


def test_the_worst_groups_come_first_and_the_best_are_left_out() -> None:
    members = {f"site {n}": {"rmse": float(n)} for n in range(50)}
    run = RunLog("a", [{"round": 1, "groups": members}], best=("rmse", "min"))
    data = members_data([Group("a", [run], {})])
    assert data is not None
    assert data["names"][0] == "site 49"
    assert (len(data["names"]), data["count"]) == (MOST_MEMBERS, 50)
    assert members_data([Group("b", [RunLog("b", [{"round": 1}])], {})]) is None


def test_settings_differ_in_colour_or_dash() -> None:
    styles = [style_of(place) for place in range(40)]
    assert len({(style["colour"], style["dash"]) for style in styles}) == 40
    assert styles[9]["number"] == "10"
