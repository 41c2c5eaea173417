"""Amounts and lists as people read them: 1.04 GB, 20 kB, 8.01 h, 1 rank; ranks 1, 3 and 4."""

from __future__ import annotations

from collections.abc import Sequence

MOST_LISTED = 8  # numbers that a message names one by one


def show_bytes(count: float) -> str:
    """Write a number of bytes with three significant digits, and below 1,000 as it is.

    >>> show_bytes(1_036_000_000), show_bytes(999_999), show_bytes(12)
    ('1.04 GB', '1 MB', '12 B')
    """
    rounded = float(f"{count:.3g}")  # first, so that 999,999 B are 1 MB and not 1e+03 kB
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if rounded >= size:
            return f"{_three_digits(rounded / size)} {unit}"
    return f"{count:.0f} B"


def show_seconds(seconds: float) -> str:
    """Write seconds with three significant digits.

    >>> show_seconds(5.9), show_seconds(0.02), show_seconds(28_836)
    ('5.9 s', '20 ms', '8.01 h')
    """
    if seconds >= 3600:
        return f"{_three_digits(seconds / 3600)} h"
    return f"{_three_digits(seconds)} s" if seconds >= 0.1 else f"{1000 * seconds:.3g} ms"


def show_numbered(noun: str, numbers: Sequence[int]) -> str:
    """Name some ranks or clients by number, e.g. rank 1, or ranks 1, 3 and 4; of many the first ones."""
    if len(numbers) == 1:
        return f"{noun} {numbers[0]}"
    listed = [str(number) for number in numbers[:MOST_LISTED]]
    last = f"{len(numbers) - MOST_LISTED} more" if len(numbers) > MOST_LISTED else listed.pop()
    return f"{noun}s {', '.join(listed)} and {last}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """Write a number of things, e.g. 1 rank or 2 ranks; `many` is the plural, if that is not `one` with an s."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def _three_digits(number: float) -> str:
    """Write a number of at least 0.1 without an exponent."""
    return f"{number:.3g}" if float(f"{number:.3g}") < 1000 else f"{number:,.0f}"
