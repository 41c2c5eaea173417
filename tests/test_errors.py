"""Words of errors: one printable line, whatever a file is called and whoever's code failed."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from flare_dist.errors import check_choice, check_least, check_range, printable, reason, reason_in_code, refusal


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain.png", "plain.png"),
        ("café ∀.png", "café ∀.png"),
        (b"caf\xe9".decode("utf-8", "surrogateescape"), "caf\\xe9"),
        ("two\nlines\x1b[0m", "two\\nlines\\x1b[0m"),
        ("\u200eleft", "\\u200eleft"),
    ],
)
def test_a_name_of_any_bytes_becomes_printable(name: str, shown: str) -> None:
    assert printable(name) == shown
    assert printable(name).isprintable()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError(2, "No such file or directory", "/a/path"), "No such file or directory"),
        (OSError("broken\ndata stream"), "broken data stream"),
        (ValueError("of two\n  lines"), "of two lines"),
        (KeyError("user_data"), "KeyError: 'user_data'"),
        (MemoryError(), "MemoryError"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_reason_is_one_line_without_the_path(error: Exception, words: str) -> None:
    assert reason(error) == words


def test_an_error_in_a_user_s_code_has_its_place_and_its_class_if_that_helps() -> None:
    with pytest.raises(KeyError) as unknown:
        dict[str, int]()["sizes"]
    assert reason_in_code(unknown.value).startswith("KeyError: 'sizes' (")
    assert "test_errors.py, line " in reason_in_code(unknown.value)
    assert reason_in_code(ValueError("too small")) == "too small"


def test_an_error_of_many_lines_in_a_user_s_code_becomes_one() -> None:
    assert reason_in_code(RuntimeError("shapes differ:\n  [2]\n\x1b[31m  [3]\n")) == "shapes differ: [2] \\x1b[31m [3]"


def test_a_refusal_names_the_key_and_the_path() -> None:
    assert str(refusal("data.root", "a\tb", "is a file")) == "data.root: a\\tb: is a file"


def test_an_unknown_choice_is_refused_with_the_choices() -> None:
    check_choice("mode", "b", ("a", "b"))
    with pytest.raises(ValueError, match=r"^mode: unknown choice, got 'x'; choose from a, b$"):
        check_choice("mode", "x", ("a", "b"))


@pytest.mark.parametrize(
    ("value", "interval"),
    [(1, "(0, 1]"), (1e-9, "(0, 1]"), (0, "[0, 1)"), (1e30, "(0, inf)"), (2**31, "[2, 2147483648]"), (None, "(0, 1]")],
)
def test_a_number_in_the_interval_passes(value: float | None, interval: str) -> None:
    check_range("a.b", value, interval)


@pytest.mark.parametrize(
    ("value", "interval"),
    [
        (0, "(0, 1]"),
        (1.5, "(0, 1]"),
        (1, "[0, 1)"),
        (-1, "[0, 1)"),
        (float("inf"), "(0, inf)"),
        (math.nan, "[0, 1]"),
    ],
)
def test_a_number_outside_the_interval_is_refused_with_the_interval(value: float, interval: str) -> None:
    message = f"a.b: out of range, got {value}; choose a number in {interval}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_range("a.b", value, interval)


@pytest.mark.parametrize("value", ["0.5", [0.5], "one"])
def test_what_is_no_number_is_refused_as_it_was_written(value: Any) -> None:
    for check in (lambda: check_range("a.b", value, "(0, 1]"), lambda: check_least("a.b", value, 2)):
        with pytest.raises(ValueError, match=rf"^a\.b: must be a number, got {re.escape(repr(value))}; give one, "):
            check()


@pytest.mark.parametrize("value", [1, 0.5, math.nan])
def test_a_number_below_the_least_is_refused_with_the_least(value: float) -> None:
    check_least("a.b", 2, 2)
    check_least("a.b", None, 2)
    with pytest.raises(ValueError, match=rf"^a\.b: out of range, got {value}; choose at least 2$"):
        check_least("a.b", value, 2)
