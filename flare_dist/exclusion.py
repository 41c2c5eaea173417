"""Options that do not go together: the type of a row, and the errors and warnings that rows make.

The rows stand in compatibility.py, those of a method in its file. This module is below all others, so that every part
can check its own options before a whole configuration exists.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, NamedTuple

SHOWN = 60  # characters of a value in a message


class Exclusion(NamedTuple):
    """Exclude options that do not go together, or warn if they mean something unexpected together.

    Args:
        keys: dotted keys and facts that meet; a message begins with the first and shows the values of all. A fact is
            something outside the configuration, such as a layer of the model.
        condition: the case in words, for the page of the documentation.
        holds: whether the case applies; is given an object with sections of `Config` and facts.
        reason: why it is excluded; the middle of "key: reason, got value; remedy".
        remedy: what to do instead.
        reads: other sections and facts that `holds` reads.
    """

    keys: tuple[str, ...]
    condition: str
    holds: Callable[[Any], bool]
    reason: str
    remedy: str
    reads: tuple[str, ...] = ()

    def applies(self, given: dict[str, Any]) -> bool:
        """Tell whether every key and fact of the row is given, and the case applies."""
        needed = {key.partition(".")[0] for key in self.keys} | set(self.reads)
        return needed <= given.keys() and self.holds(SimpleNamespace(**given))

    def message(self, given: dict[str, Any]) -> str:
        """Write the one line of an error or a warning."""
        first, *others = [(key, functools.reduce(_member, key.split("."), given)) for key in self.keys]
        pairs = [f"{key}={_shown(value)}" for key, value in others]
        meeting = ", ".join(pairs[:-1]) + " and " * (len(pairs) > 1) + "".join(pairs[-1:])
        got = f"{_shown(first[1])} with {meeting}" if pairs else _shown(first[1])
        return f"{first[0]}: {self.reason}, got {got}; {self.remedy}"


class Need(NamedTuple):
    """Name keys that change nothing unless another setting makes them count.

    Args:
        pattern: the dotted keys, with * as in file names.
        counts: whether they have an effect, given a configuration.
        needs: what they need, in words.
    """

    pattern: str
    counts: Callable[[Any], bool]
    needs: str


def refuse(rows: Iterable[Exclusion], **given: Any) -> None:
    """Raise ValueError for the first row that applies.

    `given` are sections of the configuration by their names, and facts; rows that need others are passed over.
    """
    for message in messages(rows, **given):
        raise ValueError(message)


def messages(rows: Iterable[Exclusion], **given: Any) -> Iterable[str]:
    """Yield the message of every row that applies, in order."""
    return (row.message(given) for row in rows if row.applies(given))


def _member(owner: Any, name: str) -> Any:
    return owner[name] if isinstance(owner, dict) else getattr(owner, name)


def _shown(value: Any) -> str:
    """Write a value as it stands in a file, cut off after `SHOWN` characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = f"[{', '.join(map(_shown, value))}]" if isinstance(value, (tuple, list)) else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
