"""Plots of what clients hold: stacks that add up, names on the axes, thousands of clients in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flare_dist.analysis import plots

COUNTS = torch.tensor([[2, 1], [0, 3], [0, 0]])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Keep the figures that are saved, which are saved all the same."""
    figures: list[Any] = []
    save = plots._save

    def keep(figure: Any, path: Path) -> None:
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "_save", keep)
    return figures


def test_holdings_are_stacked_as_counts_and_as_shares(drawn: list[Any], tmp_path: Path) -> None:
    plots.plot_holdings(COUNTS, ["cat", "dog"], ["bern", "oslo", "a $1"], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    of_counts, of_shares = drawn[0].axes
    assert [patch.get_data().values.tolist() for patch in of_counts.patches] == [[2, 0, 0], [3, 3, 0]]
    shares = [patch.get_data().values.tolist() for patch in of_shares.patches]
    assert shares == [pytest.approx([2 / 3, 0, 0]), pytest.approx([1, 1, 0])]
    assert [patch.get_data().baseline.tolist() for patch in of_counts.patches] == [[0, 0, 0], [2, 0, 0]]
    assert [label.get_text() for label in of_shares.get_xticklabels()] == ["0 bern", "1 oslo", r"2 a \$1"]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["cat", "dog"]


def test_long_names_are_cut_and_many_are_left_out(drawn: list[Any], tmp_path: Path) -> None:
    plots.plot_holdings(COUNTS[:, :1], ["c" * 30], ["s" * 30, "", ""], tmp_path / "a.png")
    assert drawn[0].axes[1].get_xticklabels()[0].get_text() == "0 " + "s" * 23 + "…"
    assert drawn[0].legends[0].get_texts()[0].get_text() == "c" * 23 + "…"
    plots.plot_holdings(torch.ones(61, 27, dtype=torch.int64), list(map(str, range(27))), ["x"] * 61, tmp_path / "b")
    assert not drawn[1].legends
    assert len(drawn[1].axes[0].patches) == 27
    colours = {patch.get_facecolor() for patch in drawn[1].axes[0].patches}
    assert len(colours) == 27
