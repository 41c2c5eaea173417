"""Amounts read as people write them."""

from __future__ import annotations

import pytest

from flare_dist.units import counted, show_bytes, show_numbered, show_seconds


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.7, "1 kB"),
        (20_000, "20 kB"),
        (902_400, "902 kB"),
        (999_499, "999 kB"),
        (999_999, "1 MB"),
        (1_040_000_000, "1.04 GB"),
        (1.04e12, "1.04 TB"),
        (1.234567e15, "1,230 TB"),
    ],
)
def test_bytes_have_three_digits_and_no_exponent(count: float, expected: str) -> None:
    assert show_bytes(count) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0123, "12.3 ms"), (5.9, "5.9 s"), (100, "100 s"), (1234, "1,234 s"), (28_819, "8.01 h"), (4e6, "1,111 h")],
)
def test_seconds_have_no_exponent(seconds: float, expected: str) -> None:
    assert show_seconds(seconds) == expected


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([1], "rank 1"),
        ([1, 3], "ranks 1 and 3"),
        ([1, 3, 4], "ranks 1, 3 and 4"),
        (range(8), "ranks 0, 1, 2, 3, 4, 5, 6 and 7"),
        (range(12), "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 4 more"),
    ],
)
def test_ranks_are_named(numbers: list[int], expected: str) -> None:
    assert show_numbered("rank", numbers) == expected


@pytest.mark.parametrize(("number", "expected"), [(0, "0 ranks"), (1, "1 rank"), (2, "2 ranks")])
def test_one_has_no_s(number: int, expected: str) -> None:
    assert counted(number, "rank") == expected


def test_some_words_are_told_in_full() -> None:
    assert counted(1, "client lives", "clients live") == "1 client lives"
    assert counted(3, "client lives", "clients live") == "3 clients live"
