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


def holds(band: Any, client: int, y: float) -> bool:
    """Tell whether the band of a class covers this place."""
    return any(path.contains_point((client + 0.3, y)) for path in band.get_paths())


def test_holdings_are_stacked_as_counts_and_as_shares(drawn: list[Any], tmp_path: Path) -> None:
    plots.plot_holdings(COUNTS, ["cat", "dog"], ["bern", "oslo", "a $1"], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    of_counts, of_shares = drawn[0].axes
    cat, dog = of_counts.collections
    assert [holds(cat, 0, y) for y in (0.1, 1.9, 2.1)] == [True, True, False]
    assert [holds(dog, 0, y) for y in (1.9, 2.1, 2.9, 3.1)] == [False, True, True, False]
    assert [holds(dog, 1, y) for y in (0.1, 2.9, 3.1)] == [True, True, False]
    cat, dog = of_shares.collections
    assert [holds(cat, 0, y) for y in (0.1, 0.65, 0.68)] == [True, True, False]
    assert [holds(dog, 0, y) for y in (0.65, 0.68, 0.99)] == [False, True, True]
    assert not holds(dog, 2, 0.1)
    assert [label.get_text() for label in of_shares.get_xticklabels()] == ["0 bern", "1 oslo", r"2 a \$1"]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["cat", "dog"]


def test_long_names_are_cut_and_many_are_left_out(drawn: list[Any], tmp_path: Path) -> None:
    plots.plot_holdings(COUNTS[:, :1], ["c" * 30], ["s" * 30, "", ""], tmp_path / "a.png")
    assert drawn[0].axes[1].get_xticklabels()[0].get_text() == "0 " + "s" * 23 + "…"
    assert drawn[0].legends[0].get_texts()[0].get_text() == "c" * 23 + "…"
    plots.plot_holdings(torch.ones(61, 27, dtype=torch.int64), list(map(str, range(27))), ["x"] * 61, tmp_path / "b")
    assert not drawn[1].legends
    assert len(drawn[1].axes[0].collections) == 27
    colours = {tuple(band.get_facecolor()[0]) for band in drawn[1].axes[0].collections}
    assert len(colours) == 27
