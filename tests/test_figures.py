"""Options of figures are checked before work, and what was never measured is not drawn."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flare_dist.analysis.means import Setting
from flare_dist.analysis.run_logs import RunLog
from flare_dist.analysis.seed_groups import Group
from flare_dist.cli.figures import check_figures, draw_curves, parse_axis, save_means

OPTIONS = {"size": "page", "format": "png", "x": "uplink", "latex": False}


@pytest.mark.parametrize(("key", "value"), [("size", "a4"), ("format", "jpg"), ("x", "bytes"), ("x", "projected:x")])
def test_a_wrong_option_is_named(key: str, value: str) -> None:
    check_figures(SimpleNamespace(**OPTIONS))
    with pytest.raises(ValueError, match=f"^--{key}: .*got '{value.removeprefix('projected:')}'"):
        check_figures(SimpleNamespace(**OPTIONS | {key: value}))


def test_the_axis_has_the_topology_of_the_command() -> None:
    options = SimpleNamespace(**OPTIONS | {"x": "projected:1Gbps", "topology": "star"})
    assert parse_axis(options).topology == "star"


@pytest.mark.parametrize("asked", [{"x": "projected:1Gbps"}, {"link": ["1Gbps"]}])
def test_runs_to_which_a_link_makes_no_difference_are_named(
    asked: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sent = {"one": 0, "two": 5, "three": 0}
    logs = [RunLog(name, [{"round": 1, "wire_bytes": nbytes}]) for name, nbytes in sent.items()]
    group = Group("a", logs, {})
    for options in (asked, asked | {"topology": "star"}, {}):
        draw_curves([group], SimpleNamespace(**OPTIONS | options), tmp_path)
    assert [line.partition(":")[0] for line in caplog.messages] == ["one and 1 more"]


def test_runs_without_the_metric_have_no_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    group = Group("a", [RunLog("a", [{"round": 1, "uplink_bytes": 5}])], {})
    draw_curves([group], SimpleNamespace(**OPTIONS), tmp_path)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^output_dir: cannot write to "):
        save_means([Setting("a", {}, {}, 1)], ("accuracy", "max"), SimpleNamespace(**OPTIONS), tmp_path / "file")
