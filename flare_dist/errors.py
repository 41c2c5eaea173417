"""Write errors of one line: of settings out of range, of paths whatever bytes they have, and of other people's code."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Real
from pathlib import Path

import torch

# In errors of torch that have no class of their own.
_NO_MEMORY = ("can't allocate memory", "STATUS_ALLOC_FAILED", "CUDA out of memory")
# Folders that hold no code of the user's own.
_NOT_THEIRS = ("<", str(Path(torch.__file__).parent), str(Path(__file__).parent))


class ReportedError(RuntimeError):
    """Raised if a run cannot go on for a reason outside of it; the message is one line for the user."""


class AgreedError(ReportedError):
    """Raised on every rank alike, so that none has to tell the others of it (comm/heartbeat.py)."""

    is_agreed = True


class OutOfMemoryError(RuntimeError):
    """Raised if a step finds no memory; the message is one line for the user, and the traceback tells where."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell if no memory was left for tensors: of a GPU, of the CPU, or for a workspace of cuBLAS or cuDNN."""
    words = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in words for sign in _NO_MEMORY)


def printable(path: str | Path) -> str:
    """Return `path` as it can be printed and logged anywhere: bytes that are not UTF-8 and control characters escaped.

    A name in Latin-1 reaches Python with surrogates, which no output takes; a line break in a name would cut a message.
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in str(path))


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else ascii(character)[1:-1]


def reason(error: Exception) -> str:
    """Return the message of `error` in one line, without the path that an OSError repeats."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    words = _on_one_line(error)
    if isinstance(error, OSError | ValueError | SyntaxError) and words:
        return words
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def reason_in_code(error: BaseException) -> str:
    """Describe an error of the user's code: its class if that helps, its message, and the place in the user's file."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_theirs(f.filename)]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    kind = "" if isinstance(error, RuntimeError | ValueError) else f"{type(error).__name__}: "
    return f"{kind}{_on_one_line(error)}{place}"


def is_theirs(filename: str) -> bool:
    """Tell whether a file of a traceback is neither PyTorch's nor ours."""
    return not filename.startswith(_NOT_THEIRS)


def _on_one_line(error: BaseException) -> str:
    return printable(" ".join(str(error).split()))  # decoders quote the damaged bytes


def refusal(key: str, path: str | Path, problem: str) -> ValueError:
    """Make the error of a file or folder that cannot be used: `key: path: problem`."""
    return ValueError(f"{key}: {printable(path)}: {problem}")


def unknown_choice(key: str, value: object, known: Iterable[str]) -> ValueError:
    """Make the error of a name that is none of `known`: `key: unknown choice, got 'x'; choose from a, b`."""
    names = list(known)
    similar = get_close_matches(str(value), names, 1, 0.7)
    advice = f"did you mean {similar[0]}? Choose from" if similar else "choose from"
    return ValueError(f"{key}: unknown choice, got {value!r}; {advice} {', '.join(names)}")


def not_installed(user: str, library: str, package: str) -> ModuleNotFoundError:
    """Make the error of an optional library that is missing: what needs it, and what to run."""
    return ModuleNotFoundError(f"{user}: {library} is not installed; run pip install {package}", name=library)


def check_choice(key: str, value: str, known: Iterable[str]) -> None:
    """Raise ValueError that names the dotted `key` if `value` is none of the `known` names."""
    names = list(known)
    if value not in names:
        raise unknown_choice(key, value, names)


def check_number(key: str, value: object) -> None:
    """Raise ValueError that names the dotted `key` if `value` is no number, such as one in quotes."""
    if not isinstance(value, Real):
        raise ValueError(f"{key}: must be a number, got {value!r}; give one, without quotes or brackets")


def check_least(key: str, value: float | None, least: int) -> None:
    """Raise ValueError that names the dotted `key` if `value` is below `least` or NaN; None, not given, passes."""
    if value is not None:
        check_number(key, value)
    if value is not None and not value >= least:
        raise ValueError(f"{key}: out of range, got {value}; choose at least {least}")


def check_whole(key: str, value: object, least: int) -> None:
    """Raise ValueError that names the dotted `key` if `value` is no whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{key}: must be a whole number, got {value!r}; choose one of at least {least}")
    check_least(key, value, least)


def check_range(key: str, value: float | None, interval: str) -> None:
    """Raise ValueError that names the dotted `key` if `value` is not in the interval or NaN; None, not given, passes.

    The interval is written as in mathematics, e.g. "(0, 1]" without 0 and with 1, and is shown so.
    """
    if value is not None:
        check_number(key, value)
    low, high = map(float, interval[1:-1].split(","))
    above = value is None or low < value or (interval[0] == "[" and value == low)
    below = value is None or value < high or (interval[-1] == "]" and value == high)
    if not (above and below):
        raise ValueError(f"{key}: out of range, got {value}; choose a number in {interval}")
