"""Print tables: at full width into a file, and on a terminal in blocks that fit."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table

_ENDLESS = 10_000  # characters of a line that nothing breaks
_LONGEST_WORD = 24  # of a heading, before it is broken
_BORDER = 3  # characters between two columns


def print_table(table: Table) -> None:
    """Print a table on standard output; on a terminal, columns that have no room follow in blocks below."""
    output = wide_console()
    for block in blocks(table, output):
        output.print(block)


def wide_console() -> Console:
    """Make a console for tables; a file or a pipe has no edge to wrap at."""
    output = Console()
    if not output.is_terminal:
        output.width = _ENDLESS
    return output


def blocks(table: Table, console: Console) -> list[Table]:
    """Divide a table into tables that fit on the console, each with the first column; one that fits stays as it is.

    Headings are broken between words, the cells of all columns but the first not at all.
    """
    if _measure(console, table).maximum <= console.width:
        return [table]
    first, *others = table.columns
    label = min(_cells_width(console, first, _ENDLESS), console.width // 3)
    room = max(console.width - label - _BORDER - 1, _BORDER + 1)
    divided: list[list[tuple[Column, int]]] = []
    left = 0
    for column in others:
        width = min(_cells_width(console, column, _LONGEST_WORD), room - _BORDER)
        if width + _BORDER > left:
            divided.append([(first, label)])
            left = room
        divided[-1].append((column, width))
        left -= width + _BORDER
    tables = [_joined(columns) for columns in divided]
    tables[-1].caption = table.caption
    return tables


def _measure(console: Console, cell: object) -> Measurement:
    """Measure a cell or a table that has all the room that it needs."""
    return Measurement.get(console, console.options.update(max_width=_ENDLESS), cell)  # type: ignore[arg-type]


def _cells_width(console: Console, column: Column, longest_word: int) -> int:
    """Return the width of a column whose cells are in one line, and whose heading is broken between words."""
    heading = min(_measure(console, column.header).minimum, longest_word)
    return max([heading, *(_measure(console, cell).maximum for cell in column.cells)])


def _joined(columns: list[tuple[Column, int]]) -> Table:
    """Make a table of columns of another, each of so many characters."""
    table = Table()
    for column, width in columns:
        table.add_column(column.header, justify=column.justify, overflow="fold", width=width)
    for cells in zip(*(column.cells for column, _ in columns)):
        table.add_row(*cells)
    return table
