"""Tabulate the sizes of a message from the codecs themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from flare_dist.compression.index_codecs import INDEX_CODECS, bound_bits
from flare_dist.compression.value_codecs import VALUE_CODECS

ENTRIES = 10_000_000
DENSITIES = (0.1, 0.01, 0.001, 0.0001, 0.00001)


def index_rows() -> list[list[str]]:
    """Compute the bytes of an index by codec and density, and the fewest possible on average."""
    rows = [["density", *(f"``{name}``" for name in INDEX_CODECS), "fewest possible"]]
    for density in DENSITIES:
        kept = round(density * ENTRIES)
        sizes = [codec.nbytes(ENTRIES, kept) / kept for codec in INDEX_CODECS.values()]
        rows.append([f"{density:g}", *map(_size, sizes), _size(bound_bits(ENTRIES, kept) / 8 / kept)])
    return rows


def value_rows() -> list[list[str]]:
    """Compute the bytes of 1,000 values of one tensor by codec, its table included."""
    return [["value codec", "bytes of 1,000 values"]] + [
        [f"``{name}``", f"{codec.nbytes(1000, 1 if codec.looks_at_groups else 0):,}"]
        for name, codec in VALUE_CODECS.items()
    ]


def _size(nbytes: float) -> str:
    return f"{nbytes:.2f}" if nbytes < 100 else f"{nbytes:,.0f}"


class Sizes(SphinxDirective):
    """Show the table of indices or of values."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return [table({"indices": index_rows, "values": value_rows}[self.arguments[0]]())]


def table(rows: Sequence[Sequence[str]]) -> nodes.table:
    """Build a table whose first row is its head."""
    group = nodes.tgroup(cols=len(rows[0]))
    group += [nodes.colspec(colwidth=1) for _ in rows[0]]
    body = [_row(row) for row in rows]
    group += nodes.thead("", body[0])
    group += nodes.tbody("", *body[1:])
    return nodes.table("", group)


def _row(cells: Sequence[str]) -> nodes.row:
    def content(cell: str) -> nodes.Node:
        return nodes.literal(text=cell.strip("`")) if cell.startswith("``") else nodes.Text(cell)

    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", content(cell))) for cell in cells))


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("sizes", Sizes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
