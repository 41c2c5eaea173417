"""One style for every figure: sizes of a column and of a page, colours that colour-blind readers tell apart, formats.

matplotlib is part of the optional extra `plots`. The ten colours are those of Petroff, "Accessible Color Sequences for
Data Visualization" (https://arxiv.org/abs/2107.02270), which matplotlib has as the style petroff10.
"""

from __future__ import annotations

import itertools
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flare_dist.errors import unknown_choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure

PALETTE = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
DASHES = ("-", "--", ":", "-.")
WIDTHS = {"column": 3.4, "page": 7.0}  # inches, of the usual two-column paper
FORMATS = ("png", "svg", "pdf")
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
    "legend.title_fontsize": 7,
    "pdf.fonttype": 42,  # publishers refuse Type 3
    "svg.hashsalt": "flare_dist",  # the same figure, the same file
    "savefig.dpi": 300,
}
LETTERS = {"column": 48, "page": 100}  # of a legend that fit in a line


class MissingMatplotlibError(ValueError):
    """Report that a plot was asked for and matplotlib is not installed."""


@dataclass(frozen=True)
class Look:
    """Choose the size of a figure and the formats in which it is saved."""

    size: str = "page"  # one of WIDTHS
    formats: tuple[str, ...] = ("png",)  # some of FORMATS

    @staticmethod
    def parse(size: str, formats: str) -> Look:
        """Read --size and --format, as in png,pdf; ValueError names the option that is wrong."""
        if size not in WIDTHS:
            raise unknown_choice("--size", size, WIDTHS)
        names = tuple(dict.fromkeys(name.strip() for name in formats.split(",")))
        for name in names:
            if name not in FORMATS:
                raise unknown_choice("--format", name, FORMATS)
        return Look(size, names)

    @property
    def width(self) -> float:
        """Return the width in inches."""
        return WIDTHS[self.size]

    def paths(self, stem: Path) -> list[Path]:
        """Return the paths of a figure, one for each format; `stem` may have dots in its name."""
        return [stem.with_name(f"{stem.name}.{name}") for name in self.formats]

    def lines(self, label: str) -> list[str]:
        """Break a label into lines that fit, without what matplotlib would read as a formula."""
        broken = textwrap.wrap(label, LETTERS[self.size], break_on_hyphens=False, max_lines=4, placeholder=" …")
        return list(map(escape_dollars, broken)) or [""]


@contextmanager
def figure_at(stem: Path, look: Look, height: float) -> Iterator[Figure]:
    """Yield a figure of the look's width and `height` inches, and save it in all formats after the block.

    Raises ValueError if matplotlib is not installed or a file cannot be written.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingMatplotlibError("plots need matplotlib: pip install 'flare_dist[plots]'") from error
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(look.width, height), layout="constrained")
        yield figure
        for path in look.paths(stem):
            _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(path.suffix[1:])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            # A name in a script that no font of the figure has is shown by boxes, and by the table beside it.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(path, metadata=undated)
    except OSError as error:
        raise ValueError(f"output_dir: cannot write {path}: {error.strerror}") from error


def line_styles() -> Iterator[tuple[str, str]]:
    """Yield a colour and a dash for one line after another, forty before they repeat."""
    return itertools.cycle((colour, dash) for dash in DASHES for colour in PALETTE)


def show_ticks(axis: Any, show: Callable[[float], str]) -> None:
    """Label the ticks of an axis by a function from a value to its text."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: show(value) if value else "0"))


def limit_ticks(axis: Any, most: int = 7, whole: bool = False) -> None:
    """Keep an axis to so many ticks at round numbers, `whole` ones if it counts something."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(most, integer=whole, steps=[1, 2, 5, 10]))


def use_log_scale(axes: Axes, factors: tuple[float, ...]) -> None:
    """Make the x axis logarithmic, with ticks at these multiples of the powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=factors))
    axes.xaxis.set_minor_formatter(NullFormatter())


def escape_dollars(label: str) -> str:
    """Escape the dollars of a label, which matplotlib would read as a formula."""
    return label.replace("$", r"\$")


def cut(label: str, longest: int) -> str:
    """Shorten a label, in the middle: both its beginning and its end may be what differs."""
    if len(label) <= longest:
        return label
    end = longest // 3
    return f"{label[: longest - 1 - end]}…{label[-end:]}"
