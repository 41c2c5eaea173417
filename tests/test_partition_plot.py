"""Plots of what clients hold: stacks that add up, names on the axes, thousands of clients in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from flare_dist.analysis.figure_style import PALETTE, Look
from flare_dist.analysis.partition_plot import by_dominant_class, plot_holdings
from tests.helpers.extras import needs

pytestmark = needs("plots")

COUNTS = torch.tensor([[2, 1], [0, 3], [0, 0]])


def holds(band: Any, client: int, y: float) -> bool:
    """Tell whether the band of a class covers this place."""
    return any(path.contains_point((client + 0.3, y)) for path in band.get_paths())


def test_holdings_are_stacked_as_counts_and_as_shares(drawn: list[Any], tmp_path: Path) -> None:
    plot_holdings(COUNTS, ["cat", "dog"], ["bern", "oslo", "a $1"], Look(), tmp_path / "a")
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


def test_long_names_are_cut(drawn: list[Any], tmp_path: Path) -> None:
    plot_holdings(COUNTS[:, :1], ["c" * 30], ["s" * 30, "", ""], Look(), tmp_path / "a")
    assert drawn[0].axes[1].get_xticklabels()[0].get_text() == "0 " + "s" * 23 + "…"
    assert drawn[0].legends[0].get_texts()[0].get_text() == "c" * 23 + "…"


def test_more_classes_than_colours_are_the_rows_of_a_map(drawn: list[Any], tmp_path: Path) -> None:
    counts = torch.ones(3, 27, dtype=torch.int64)
    counts[1, 5] = 10
    plot_holdings(counts, list(map(str, range(27))), ["x", "y", "z"], Look(), tmp_path / "b", "labels")
    of_counts, of_shares = drawn[0].axes[:2]
    assert not drawn[0].legends
    assert of_counts.get_ylabel() == "labels"
    assert [bar.get_height() for bar in of_counts.patches] == [27, 36, 27]
    (image,) = of_shares.images
    assert image.get_array().shape == (27, 3)
    assert image.get_clim() == (0, 10 / 36)
    assert [label.get_text() for label in of_shares.get_xticklabels()] == ["0 x", "1 y", "2 z"]


def test_a_thousand_clients_are_a_curve_and_a_map(drawn: list[Any], tmp_path: Path) -> None:
    """Every tenth client holds the same class alone; the map shows a step for each."""
    counts = torch.zeros(1000, 10, dtype=torch.int64)
    counts[torch.arange(1000), torch.arange(1000) % 10] = torch.arange(1000) + 1
    for size in ("page", "column"):
        plot_holdings(counts, list("abcdefghij"), [""] * 1000, Look(size), tmp_path / size)
    of_counts, of_shares = drawn[0].axes[:2]
    assert of_counts.get_xlabel() == "1,000 clients: 1 to 1,000, median 500"
    assert len(of_counts.collections) == 1
    (image,) = of_shares.images
    shown = image.get_array()
    assert shown.shape == (10, 1000)
    assert (shown.argmax(0) == torch.arange(1000).numpy() // 100).all()
    assert [label.get_text() for label in of_shares.get_yticklabels()] == list("abcdefghij")


def test_clients_are_sorted_by_the_class_that_they_hold_most_of() -> None:
    shares = torch.tensor([[0.4, 0.6], [0.7, 0.3], [0.0, 1.0], [1.0, 0.0]])
    assert by_dominant_class(shares).tolist() == [3, 1, 2, 0]


def test_few_classes_have_the_colours_of_the_palette(drawn: list[Any], tmp_path: Path) -> None:
    plot_holdings(COUNTS, ["cat", "dog"], [""] * 3, Look("column"), tmp_path / "a")
    colours = [band.get_facecolor()[0].tolist() for band in drawn[0].axes[0].collections]
    assert colours == [[int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)] + [1.0] for colour in PALETTE[:2]]
