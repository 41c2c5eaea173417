"""Paths and errors in the words of one line, whatever bytes a stranger's file name has."""

from __future__ import annotations

from pathlib import Path


def shown(path: str | Path) -> str:
    """Return `path` as it can be printed and logged anywhere: bytes that are not UTF-8 and control characters escaped.

    A name in Latin-1 reaches Python with surrogates, which no output takes; a line break in a name would cut a message.
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in str(path))


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else ascii(character)[1:-1]


def reason(error: Exception) -> str:
    """Say in one line what `error` says, without the path that an OSError repeats."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    words = shown(" ".join(str(error).split()))  # decoders quote the damaged bytes
    if isinstance(error, OSError | ValueError | SyntaxError) and words:
        return words
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def refusal(path: str | Path, problem: str, key: str = "data.root") -> ValueError:
    """The error of a file or folder that cannot be used: `key: path: problem`."""
    return ValueError(f"{key}: {shown(path)}: {problem}")
