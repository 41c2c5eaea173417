"""Locks between processes, also on disks that have none of their own.

Most disks have flock, which ends with the process that holds it. Lustre mounted without `-o flock` (ENOSYS) and NFS
without a lock daemon (ENOLCK) do not. There the lock is a second file, LOCK.held, that names its holder by process id
and host. If its holder was killed, the next process of that host takes it over. A process of another host cannot tell
whether the holder lives, so its error names the file and the holder.
"""

from __future__ import annotations

import errno
import fcntl
import tempfile
from pathlib import Path

from filelock import BaseFileLock as Lock
from filelock import FileLock, SoftFileLock, Timeout

NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
HELD = ".held"
TAKEOVER_SECONDS = 1.0  # in which a dead holder's file is found and replaced


class HeldError(Exception):
    """Raised if another process has the lock; the message names it as far as it can be known, and what to do."""


def has_flock(directory: Path) -> bool:
    """Tell whether files in `directory` can be locked by flock; raises OSError if it cannot be written to."""
    with tempfile.TemporaryFile(dir=directory, prefix=".flock-") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_FLOCK:
                return False
            raise
    return True


def take(path: Path, wait_seconds: float = 0.0) -> Lock:
    """Hold the lock `path` until this process ends or releases it; its folder is made if need be.

    Raises HeldError if another process still has it after `wait_seconds`, OSError if the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if has_flock(path.parent):
        lock: Lock = FileLock(path)
    else:
        path.touch()  # to be seen, as one of flock's is
        lock = SoftFileLock(held_path(path))
        wait_seconds = max(wait_seconds, TAKEOVER_SECONDS)
    try:
        lock.acquire(timeout=wait_seconds)
    except Timeout as error:
        raise HeldError(_holder(Path(lock.lock_file))) from error
    return lock


def held_path(path: Path) -> Path:
    """Return the path of the file that stands for the lock `path` on a disk without flock."""
    return path.with_name(path.name + HELD)


def _holder(held: Path) -> str:
    """Say who has the lock and what to do, as far as the lock's file says."""
    if not held.name.endswith(HELD):
        return "wait for it to end"
    try:
        process, host = held.read_text(encoding="utf-8", errors="replace").split()[:2]
    except (OSError, ValueError):
        process = host = "unknown"
    host = host.partition("?")[0]  # filelock writes a container's namespace behind it
    return (
        f"this disk has no flock, so the lock is {held}, of process {process} on host {host}; "
        f"if no such process runs there any more: rm '{held}'"
    )
