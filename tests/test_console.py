"""Tables are readable at the width of a terminal, whole in a file."""

from __future__ import annotations

import pytest
from rich.console import Console
from rich.table import Table

from flare_dist.cli.console import blocks, print_table


def table(columns: int = 8) -> Table:
    built = Table("setting", *[f"seconds at {n} Mbps until 0.9" for n in range(columns)], caption="the best")
    built.add_row("density=0.01, sparsifier=topk", *[f"[bold]0.{n} ± 0.0132[/bold]" for n in range(columns)])
    return built


def printed(built: Table, width: int) -> list[list[str]]:
    """Print a table in blocks; returns the lines of each."""
    console = Console(width=width, color_system=None)
    lines = []
    for block in blocks(built, console):
        with console.capture() as capture:
            console.print(block)
        lines.append(capture.get().splitlines())
    return lines


@pytest.mark.parametrize("width", [60, 80, 100])
def test_columns_without_room_follow_below_and_no_cell_is_cut(width: int) -> None:
    found = printed(table(), width)
    text = " ".join(line for lines in found for line in lines)
    assert len(found) > 1
    assert all(len(line) <= width for lines in found for line in lines)
    assert "…" not in text
    assert [text.count(f"0.{n} ± 0.0132") for n in range(8)] == [1] * 8
    assert all(any("density=0.01" in line for line in lines) for lines in found)
    assert text.count("the best") == 1


def test_a_table_that_fits_is_left_as_it_is() -> None:
    built = table(2)
    assert blocks(built, Console(width=120)) == [built]


def test_long_headings_are_broken_and_a_narrow_terminal_is_no_error() -> None:
    name = "many/a-directory-with-a-name-of-fifty-two-characters"
    built = Table("", *[f"{name}-{n}" for n in range(4)])
    built.add_row("bytes up", *["5 MB (+814.3%)"] * 4)
    text = " ".join(line for lines in printed(built, 80) for line in lines)
    assert "…" not in text
    assert text.count("5 MB (+814.3%)") == 4
    assert all(len(line) <= 12 for lines in printed(built, 12) for line in lines)


def test_a_file_has_the_whole_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(table(40))
    assert len([line for line in capsys.readouterr().out.splitlines() if "density=0.01" in line]) == 1
