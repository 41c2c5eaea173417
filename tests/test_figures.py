"""Options of figures are checked before work, and what was never measured is not drawn."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

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


def test_runs_without_the_metric_have_no_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    group = Group("a", [RunLog("a", [{"round": 1, "uplink_bytes": 5}])], {})
    draw_curves([group], SimpleNamespace(**OPTIONS), tmp_path)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^output_dir: cannot write to "):
        save_means([Setting("a", {}, {}, 1)], ("accuracy", "max"), SimpleNamespace(**OPTIONS), tmp_path / "file")
