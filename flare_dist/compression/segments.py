"""Segments: the parts of a flat vector that are selected from, and how many entries of each are kept.

They follow from a layout and a density, so they are planned before anything is selected.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple

from flare_dist.layout import ParameterLayout


class Segment(NamedTuple):
    """A slice of the flat vector, `blocks` blocks of `numel` entries, of each of which `k` may be kept."""

    offset: int
    numel: int
    k: int
    blocks: int = 1


Count = Callable[[int, float], int]


def count_kept(numel: int, density: float) -> int:
    """Return ceil(numel * density), with the density read as the decimal that is written (0.07 * 100 is 7, not 8)."""
    return math.ceil(numel * Decimal(repr(density)))


def count_in_paper(numel: int, density: float) -> int:
    """Return round(numel * density) + 1, halves to even, and never more than there are, as FLARE's code keeps."""
    return min(numel, round(numel * Decimal(repr(density))) + 1)


def tensor_segments(layout: ParameterLayout, density: float, count: Count, block: int = 0) -> list[Segment]:
    return [Segment(e.offset, e.numel, count(e.numel, density)) for e in layout.entries if e.numel]


def global_segments(layout: ParameterLayout, density: float, count: Count, block: int = 0) -> list[Segment]:
    return [Segment(0, layout.total, count(layout.total, density))] if layout.total else []


def block_segments(layout: ParameterLayout, density: float, count: Count, block: int = 4096) -> list[Segment]:
    """Divide each tensor into blocks of `block` entries, the last one shorter (SparseLoCo 2025)."""
    segments = []
    for entry in layout.entries:
        blocks, rest = divmod(entry.numel, block)
        if blocks:
            segments.append(Segment(entry.offset, block, count(block, density), blocks))
        if rest:
            segments.append(Segment(entry.end - rest, rest, count(rest, density)))
    return segments


def row_segments(layout: ParameterLayout, density: float, count: Count, block: int = 0) -> list[Segment]:
    """Divide each tensor into the rows of its dimension 0; a vector's are single entries, all of which are kept."""
    segments = []
    for entry in layout.entries:
        if entry.numel:
            rows = entry.shape[0] if entry.shape else 1
            row = entry.numel // rows
            segments.append(Segment(entry.offset, row, count(row, density), rows))
    return segments


COUNTS: dict[str, Count] = {"ceil": count_kept, "paper": count_in_paper}
SCOPES: dict[str, Callable[..., list[Segment]]] = {
    "tensor": tensor_segments,
    "block": block_segments,
    "row": row_segments,
    "global": global_segments,
}
