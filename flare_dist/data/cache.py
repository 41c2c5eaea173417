"""Cache of work that is done once and shared by every process: a folder beside the data, a lock and checked files.

Nothing here is needed for a result, so a root that cannot be written only costs a warning and the time saved.
"""

from __future__ import annotations

import logging
import os
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from flare_dist.errors import printable, reason
from flare_dist.locks import HeldError, Lock, take

log = logging.getLogger(__name__)

FOLDER = ".flare_dist_cache"
WAIT_SECONDS = 10.0  # after which the log names the process that is waited for


@contextmanager
def locked(root: Path) -> Iterator[Path | None]:
    """Hold the lock of `root` across processes; yield its cache folder, or warn and yield None if it is unwritable."""
    folder = root / FOLDER
    try:
        lock = _take(folder / "lock")
    except OSError as error:
        log.warning(
            "data.root: %s: no cache there (%s); every process does the work itself", printable(folder), reason(error)
        )
        yield None
        return
    try:
        yield folder
    finally:
        lock.release()


def _take(path: Path) -> Lock:
    """Wait for a lock as long as it takes, and log the holder once: on some disks a killed process leaves it behind."""
    has_spoken = False
    while True:
        try:
            return take(path, WAIT_SECONDS)
        except HeldError as error:
            if not has_spoken:
                log.warning("data.root: waiting for another process that prepares the data (%s)", error)
            has_spoken = True


def cached_array(root: Path, name: str, fingerprint: str, build: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array that `build` makes, read from the cache of `root` if it was stored under the same `fingerprint`.

    One file for each `name`, replaced when the fingerprint changes. A truncated or damaged file is built anew. Several
    processes may call this at once: one builds and the others wait for it.
    """
    found = _read(root / FOLDER / f"{name}.npy", fingerprint)  # without the lock, since files appear whole
    if found is not None:
        return found
    with locked(root) as folder:
        if folder is None:
            return build()
        path = folder / f"{name}.npy"
        found = _read(path, fingerprint)
        if found is None:
            found = build()
            _write(path, fingerprint, found)
        return found


# Raised by numpy on absent or damaged files.
_DAMAGED = (OSError, EOFError, ValueError, TypeError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile)


def _read(path: Path, fingerprint: str) -> np.ndarray | None:
    """Read an array from a file of fingerprint, content and checksum; None unless all three agree."""
    try:
        with path.open("rb") as file:
            if str(np.load(file, allow_pickle=False)) != fingerprint:
                return None
            array = np.load(file, allow_pickle=False)
            return array if int(np.load(file, allow_pickle=False)) == _checksum(array) else None
    except _DAMAGED:
        return None


def _write(path: Path, fingerprint: str, array: np.ndarray) -> None:
    """Write beside `path` and rename, so that a reader sees the old file or the new one; warn if the disk is full."""
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            for part in (np.array(fingerprint), array, np.array(_checksum(array))):
                np.save(file, part, allow_pickle=False)
        os.chmod(temporary, 0o644)  # mkstemp makes it private; colleagues may share the root
        os.replace(temporary, path)
    except OSError as error:
        log.warning("data.root: %s: could not write the cache (%s)", printable(path), reason(error))
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)
