"""Plots of seconds and of densities draw what was logged, in both sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flare_dist.analysis.bandwidth import totals
from flare_dist.analysis.densities import Densities
from flare_dist.analysis.figure_style import Look
from flare_dist.analysis.links import Link
from flare_dist.analysis.plots import plot_densities, plot_seconds, seconds_of_a_round
from flare_dist.analysis.run_logs import read_run
from tests.helpers.extras import needs
from tests.helpers.run_logs import write_run

pytestmark = needs("plots")


def test_the_seconds_of_a_round_are_divided_by_activity(drawn: list[Any], tmp_path: Path) -> None:
    runs = [totals(read_run(write_run(tmp_path / "$run"), {}), [Link.parse("1Mbps")], "ranks", None)] * 2
    parts = {"compute": 1.5, "select": 0.2, "communication": 0.1, "other": 0.2}
    assert seconds_of_a_round(runs[0]) == pytest.approx(parts)
    plot_seconds(runs, Look(), tmp_path / "seconds")
    (axes,) = drawn[0].axes
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == pytest.approx([*parts.values(), 5.9] * 2)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["measured", "1Mbps"] * 2
    assert len(drawn[0].legends[0].get_texts()) == 5


@pytest.mark.parametrize("size", ["column", "page"])
def test_densities_are_drawn_by_layer_and_over_the_rounds(size: str, drawn: list[Any], tmp_path: Path) -> None:
    densities = Densities(["a", "b"], {"0": [0.1, 0.2], "3": [0.3, 0.1]}, [(0, [0.5, 0.6]), (2, [0.7, 0.8])])
    plot_densities(densities, Look(size), tmp_path / "densities")
    of_layers, over_rounds = drawn[0].axes
    assert [bar.get_width() for bar in of_layers.patches] == [0.7, 0.8]
    assert [list(line.get_ydata()) for line in over_rounds.get_lines()] == [[0.5, 0.7], [0.6, 0.8]]
