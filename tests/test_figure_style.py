"""Figures have the sizes of papers, colours that readers tell apart, and the formats that are asked for."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from PIL import Image

from flare_dist.analysis.figure_style import PALETTE, Look, cut, figure_at, limit_ticks, line_styles
from tests.helpers.extras import needs

pytestmark = needs("plots")


def test_the_palette_is_that_of_petroff() -> None:
    style = importlib.import_module("matplotlib.style")
    assert [entry["color"] for entry in style.library["petroff10"]["axes.prop_cycle"]] == list(PALETTE)


@pytest.mark.parametrize(("size", "inches"), [("column", 3.4), ("page", 7.0)])
def test_a_figure_has_the_width_of_a_column_or_a_page_at_300_dots_an_inch(
    size: str, inches: float, tmp_path: Path
) -> None:
    with figure_at(tmp_path / "a.b", Look(size, ("png",)), 2.0) as figure:
        figure.add_subplot()
    with Image.open(tmp_path / "a.b.png") as image:
        assert image.size == (round(300 * inches), 600)


def test_every_format_is_written_and_is_the_same_each_time(tmp_path: Path) -> None:
    written = []
    for folder in ("one", "two"):
        look = Look.parse("column", "png, svg,pdf,png")
        with figure_at(tmp_path / folder / "a", look, 2.0) as figure:
            figure.add_subplot(xlabel="bytes")
        written.append([path.read_bytes() for path in look.paths(tmp_path / folder / "a")])
    assert [data[:4] for data in written[0]] == [b"\x89PNG", b"<?xm", b"%PDF"]
    assert written[0] == written[1]
    assert b"/Type3" not in written[0][2]  # fonts that publishers refuse


@pytest.mark.parametrize(
    ("size", "formats", "message"),
    [
        ("poster", "png", "--size: unknown choice, got 'poster'; choose from column, page"),
        ("page", "png,gif", "--format: unknown choice, got 'gif'; choose from png, svg, pdf"),
    ],
)
def test_an_unknown_size_or_format_is_refused(size: str, formats: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Look.parse(size, formats)


def test_forty_lines_differ_in_colour_or_dash() -> None:
    assert len({pair for pair, _ in zip(line_styles(), range(40))}) == 40


def test_ticks_are_few_and_round() -> None:
    matplotlib = pytest.importorskip("matplotlib.figure")
    axis = matplotlib.Figure().add_subplot().xaxis
    for most in (4.1e6, 0.084, 37.0):
        limit_ticks(axis, 5)
        ticks = axis.get_major_locator().tick_values(0, most)
        assert 3 <= len(ticks) <= 6
        assert f"{ticks[1]:e}"[:3] in ("1.0", "2.0", "5.0")


def test_labels_are_broken_and_not_cut() -> None:
    label = "compression.density=0.01, clients.objective=flare, compression.error_feedback=ef21, cost=$1"
    assert " ".join(Look("column").lines(label)) == label.replace("$", "\\$")
    assert max(map(len, Look("column").lines(label))) <= 48
    assert cut("abcdefghijklmno", 10) == "abcdef…mno"


def test_a_name_in_a_script_that_the_font_lacks_is_no_warning(tmp_path: Path) -> None:
    with figure_at(tmp_path / "figure", Look(), 2.0) as figure:
        figure.suptitle("\u65e5\u672c\u8a9e")
    assert list(tmp_path.iterdir())
