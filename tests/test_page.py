"""The report is one file that loads nothing, shows what the logs have, and escapes what users write."""

from __future__ import annotations

import html
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from flare_dist.analysis.links import Link
from flare_dist.analysis.page import MissingPlotlyError, write_page
from flare_dist.analysis.run_amounts import sum_up
from flare_dist.analysis.run_logs import read_run
from flare_dist.analysis.seed_groups import Group
from flare_dist.analysis.x_axis import XAxis
from tests.helpers.extras import needs
from tests.helpers.run_logs import write_run

pytestmark = needs("plots")

UPLINK = XAxis("uplink")


def page_of(
    tmp_path: Path, link: Link | None = None, axis: XAxis = UPLINK, **changes: Any
) -> tuple[str, dict[str, Any]]:
    """Write the report on two settings; returns it without plotly's script, and its data."""
    members = {"oslo": {"accuracy": 0.1}, "</script><b>": {"accuracy": 0.3}}
    runs = [read_run(write_run(tmp_path / name, groups=members, **changes), {}) for name in ("a", "b", "c")]
    groups = [Group("lr=<0.1>", runs[:2], {"clients.lr": "<0.1>"}), Group("dense", runs[2:], {})]
    path = write_page(tmp_path / "out/report.html", sum_up(groups, [], "ranks", None), link, axis, ["a & b"])
    scripts = re.compile(r"<script>.*?</script>", re.DOTALL)
    text = path.read_text()
    (found,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    return scripts.sub("", text), json.loads(html.unescape(found))


def test_the_page_loads_nothing_and_escapes_what_users_write(tmp_path: Path) -> None:
    text, data = page_of(tmp_path)
    assert not re.search(r"(src|href)=|http|@import|url\(", text)
    assert "lr=&lt;0.1&gt;" in text
    assert "a &amp; b" in text
    assert "<b>" not in text
    assert data["members"]["names"] == ["oslo", "</script><b>"]
    assert (tmp_path / "out/report.html").stat().st_size > 3_000_000  # plotly is in it


def test_the_slider_projects_as_the_model_of_links_does(tmp_path: Path) -> None:
    text, data = page_of(tmp_path, Link.parse("1Mbps"))
    assert data["rates"][0] == "1 Mbps"
    assert data["projected"][0]["x"][0] == pytest.approx([0, 5.9, 11.8, 17.7])
    assert data["projected"][-1]["x"][0] == pytest.approx([0, 1.9, 3.8, 5.7], rel=1e-3)
    assert 'data-seconds="17.7 s|' in text
    assert data["axes"]["uplink"]["x"][1] == [0, 400_000, 800_000, 1_200_000]


def test_the_page_begins_at_the_axis_that_was_asked_for(tmp_path: Path) -> None:
    text, _ = page_of(tmp_path / "rounds", axis=XAxis("rounds"))
    assert '<option value="rounds" selected>' in text
    text, data = page_of(tmp_path / "projected", axis=XAxis.parse("projected:3Mbps/20ms"))
    assert " selected" not in text
    assert f'value="{data["rates"].index("3 Mbps")}"' in text
    assert "latency 20 ms" in text


def test_a_log_that_cannot_be_projected_has_a_page_without_a_slider(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    rows = (tmp_path / "a/metrics.jsonl").read_text().replace('"wire_bytes"', '"other_bytes"')
    (tmp_path / "a/metrics.jsonl").write_text(rows)
    run = read_run(tmp_path / "a", {})
    found = sum_up([Group("one", [run], {})], [], "ranks", None)
    text = write_page(tmp_path / "report.html", found, None, UPLINK, []).read_text()
    assert "No times on other links" in text
    assert 'id="rate"' not in text


def test_without_plotly_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MissingPlotlyError, match=r"pip install 'flare_dist\[plots\]'"):
        page_of(tmp_path)
