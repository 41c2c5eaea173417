"""Table of the natural client of each image, root/groups.csv: lines "train/<class>/<file>,<group>".

Lines of test images, "test/<class>/<file>,<group>", are read if there are any, and then of all.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flare_dist.errors import printable, reason, refusal

_DELIMITERS = (",", ";", "\t")  # a spreadsheet writes ";" if decimals have a comma


def read_groups(root: Path, train: Sequence[str], test: Sequence[str]) -> tuple[list[str] | None, list[str] | None]:
    """Read the groups of the images at these paths, by name; None if there is no table, or it has no test image.

    Raises ValueError that names the table if it cannot be read, lacks an image or puts one into two groups.
    """
    table = root / "groups.csv"
    if not os.path.lexists(table):  # a broken link is an error, not an absent table
        return None, None
    parts = [[Path(path).relative_to(root).as_posix() for path in part] for part in (train, test)]
    keys = {key for part in parts for key in part}
    text = _text(table)
    tries = [_named(table, text, delimiter, keys) for delimiter in _DELIMITERS if delimiter in text]
    named = max(tries, key=len, default={})
    has_test = any(key in named for key in parts[1])
    missing = next((key for key in (*parts[0], *(parts[1] if has_test else ())) if key not in named), None)
    if missing is not None:
        hint = "" if text.isascii() or _is_utf8(text) else "; the table is not UTF-8, save it as such"
        raise refusal("data.root", table, f"has no line '{printable(missing)},<group>'{hint}")
    return [named[key] for key in parts[0]], [named[key] for key in parts[1]] if has_test else None


def number_groups(names: Sequence[str] | None) -> tuple[Tensor | None, tuple[str, ...]]:
    """Number groups 0, 1, … in sorted order of their names: (int64 [n], the names as they can be printed)."""
    if names is None:
        return None, ()
    found, codes = np.unique(names, return_inverse=True)
    return torch.from_numpy(codes.astype(np.int64)), tuple(printable(str(name)) for name in found)


def _text(table: Path) -> str:
    """Read the table; names of files that are not UTF-8 get surrogates, as they do when a folder is listed."""
    try:
        content = table.read_bytes()
    except OSError as error:
        raise refusal("data.root", table, reason(error)) from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise refusal("data.root", table, "is UTF-16; save it as UTF-8")
    return content.decode("utf-8-sig", "surrogateescape")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _named(table: Path, text: str, delimiter: str, keys: set[str]) -> dict[str, str]:
    """Read the group of each path among `keys`; a path with Windows' backslashes is the one with slashes."""
    named: dict[str, str] = {}
    try:
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
            if len(row) < 2:
                continue
            path = row[0].strip()
            group = row[1].strip()
            key = path if path in keys else path.replace("\\", "/").removeprefix("./")
            if key not in keys:
                continue
            if not group:
                raise refusal("data.root", table, f"has no group for {printable(key)}")
            if named.setdefault(key, group) != group:
                raise refusal(
                    "data.root",
                    table,
                    f"puts {printable(key)} into two groups, {printable(named[key])} and {printable(group)}",
                )
    except csv.Error as error:
        raise refusal("data.root", table, f"is not a table ({error})") from error
    return named
