"""Curves are means in bands, named by what differs, on axes with units."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flare_dist.analysis.curves_plot import is_logarithmic, plot_curves, stem_of
from flare_dist.analysis.figure_style import Look
from flare_dist.analysis.run_logs import RunLog, read_run
from flare_dist.analysis.seed_groups import Group
from flare_dist.analysis.x_axis import XAxis
from tests.helpers.extras import needs
from tests.helpers.run_logs import write_run

pytestmark = needs("plots")


@pytest.fixture
def run(tmp_path: Path) -> RunLog:
    return read_run(write_run(tmp_path / "run"), {})


def better(run: RunLog, by: float) -> RunLog:
    return replace(run, rows=[row | {"test_accuracy": row["test_accuracy"] + by} for row in run.rows])


def test_a_line_is_the_mean_of_seeds_in_a_band_of_their_deviation(
    run: RunLog, drawn: list[Any], tmp_path: Path
) -> None:
    groups = [Group("lr=0.1", [run, better(run, 0.2)], {}), Group("lr=$2", [run], {})]
    paths = plot_curves(groups, XAxis("rounds"), Look("column", ("png", "pdf")), tmp_path)
    assert [path.name for path in paths] == ["accuracy_against_rounds.png", "accuracy_against_rounds.pdf"]
    (axes,) = drawn[0].axes
    first, second = axes.get_lines()
    assert first.get_ydata() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert first.get_color() != second.get_color()
    (band,) = axes.collections
    edges = band.get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == pytest.approx((0.1 - 0.02**0.5, 0.4 + 0.02**0.5))
    legend = drawn[0].legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["lr=0.1", r"lr=\$2"]
    assert legend.get_title().get_text() == "mean ± deviation over 1 to 2 seeds"


def test_ticks_have_units_and_bytes_far_apart_lie_on_a_logarithmic_axis(
    run: RunLog, drawn: list[Any], tmp_path: Path
) -> None:
    dense = replace(run, rows=[row | {"uplink_bytes": 100 * row.get("uplink_bytes", 0)} for row in run.rows])
    for groups in ([Group("a", [run], {})], [Group("a", [run], {}), Group("b", [dense], {})]):
        plot_curves(groups, XAxis("uplink"), Look(), tmp_path)
    near, far = (figure.axes[0] for figure in drawn[::1])
    assert (near.get_xscale(), far.get_xscale()) == ("linear", "log")
    assert "400 kB" in [label.get_text() for label in near.get_xticklabels()]
    assert {"1 MB", "10 MB", "100 MB"} <= {label.get_text() for label in far.get_xticklabels()}
    assert len(near.get_lines()[0].get_xdata()) == 4
    assert len(far.get_lines()[0].get_xdata()) == 3  # without the initial model, before any bytes


def test_the_axis_names_the_metric_and_its_direction(run: RunLog, drawn: list[Any], tmp_path: Path) -> None:
    rows = [row | {"test_rmse": 1.0} for row in run.rows]
    group = Group("a", [replace(run, rows=rows, best=("rmse", "min"))], {})
    (path,) = plot_curves([group], XAxis("seconds"), Look(), tmp_path)
    assert path.name == "rmse_against_seconds.png"
    assert drawn[0].axes[0].get_ylabel() == "test rmse (lower is better)"
    assert stem_of([replace(group, runs=[replace(run, best=("a/b", "max"))])], XAxis()) == "a%2Fb_against_uplink"


def test_rounds_are_never_logarithmic() -> None:
    amounts = [[0.0, 1.0], [0.0, 1000.0]]
    assert is_logarithmic(XAxis("uplink"), amounts)
    assert not is_logarithmic(XAxis("rounds"), amounts)
    assert not is_logarithmic(XAxis("uplink"), [[0.0, 1.0], [0.0, 7.0]])
