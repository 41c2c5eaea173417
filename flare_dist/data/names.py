"""Names of classes and sites: how messages list them, and which of them may be meant for one another."""

from __future__ import annotations

import difflib
import itertools
import unicodedata
from collections.abc import Iterable, Iterator

from flare_dist.errors import printable

_SHOWN = 5  # names that a message lists

# Other names that people give to the parts of a data set.
MEANT = {"train": ("training",), "test": ("testing",), "validation": ("val", "valid", "dev", "eval")}


def some(names: Iterable[str]) -> str:
    """List the first few names."""
    listed = [printable(name) for name in names]
    return ", ".join(listed[:_SHOWN]) + (", …" if len(listed) > _SHOWN else "") or "nothing"


def alike(name: str, names: Iterable[str]) -> list[str]:
    """Choose those of `names` that differ from `name` in case or in the composition of letters alone."""
    return [other for other in names if other != name and _plain(other) == _plain(name)]


def alike_pairs(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the pairs of `names` that are alike, each once and with the former first."""
    of_plain: dict[str, list[str]] = {}
    for name in names:
        of_plain.setdefault(_plain(name), []).append(name)
    for near_ones in of_plain.values():
        yield from itertools.combinations(near_ones, 2)


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def near(name: str, classes: list[str]) -> str:
    """Ask whether another class is meant by `name`; "" if none resembles it."""
    close = alike(name, classes) or difflib.get_close_matches(name, classes, 1)
    if not close:
        return ""
    same = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", close[0])
    return f"; did you mean {printable(close[0])}{' (the same letters, composed otherwise)' if same else ''}"
