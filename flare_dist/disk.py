"""Errors of a disk that does not take a file of the run: which one, why, and how much space is left."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flare_dist.errors import ReportedError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class DiskError(ReportedError):
    """Raised if a file of the run cannot be written; the message is for the user."""


@contextmanager
def explained(key: str, path: Path, nbytes: int | None = None) -> Iterator[None]:
    """Raise DiskError that names the configuration's `key`, the path and the space left if the block meets an OSError.

    `nbytes` is the size of what is to be written, if that is known.
    """
    try:
        yield
    except OSError as error:
        raise DiskError(f"{key}: cannot write {path}: {_reason(error, path, nbytes)}") from error


def _reason(error: OSError, path: Path, nbytes: int | None) -> str:
    """Give the error in the system's words, and what to do."""
    if error.errno not in NO_ROOM:
        return f"{error.strerror or error}; the same command continues once it can be written"
    needed = f"it needs {nbytes:,} bytes, " if nbytes else ""
    return f"{error.strerror} ({needed}{free_space(path)}); make room, and the same command continues"


def free_space(path: Path) -> str:
    """Say how much of the disk that holds `path`, or is to hold it, is free."""
    try:
        usage = shutil.disk_usage(existing(path))
    except OSError as error:
        return f"free space unknown: {error.strerror}"
    return f"{usage.free:,} of {usage.total:,} bytes are free"


def existing(path: Path) -> Path:
    """Find the innermost folder on the way to `path` that is there, or `path` itself if it is."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def sync_path(path: Path) -> None:
    """Wait until a file is on the disk, or a directory, whose entry for a renamed file must survive as well."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
