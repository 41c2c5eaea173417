"""Name, make, list and remove the files of a state directory: one for each version of each client's state.

STATE_DIR/00012/12345-7.bin   version 7 of what client 12345 remembers
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from flare_dist.disk import DiskError, explained, sync_path

KEY = "clients.state_dir"
FOLDER_CLIENTS = 1000  # in one folder: directories with a hundred thousand files are slow to list
SYNCING = 16  # threads; a file system writes what several of them wait for at once


def version_path(directory: Path, client: int, number: int) -> Path:
    """Name the file of one version of a client's state."""
    return directory / f"{client // FOLDER_CLIENTS:05d}" / f"{client}-{number}.bin"


def create(path: Path, nbytes: int, content: Path | None) -> None:
    """Make a file of zeros, or a copy of the file `content`; raises DiskError if the disk does not take it."""
    try:
        with explained(KEY, path, nbytes):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # never into a file that has a second name
            if content:
                shutil.copyfile(content, path)
                return
            with path.open("wb") as file:
                file.truncate(nbytes)
                if hasattr(os, "posix_fallocate"):  # not on macOS
                    # A full disk must be noticed here: in a mapped file it would end the process with SIGBUS.
                    os.posix_fallocate(file.fileno(), 0, nbytes)
    except DiskError:
        with suppress(OSError):
            path.unlink(missing_ok=True)  # half a file only takes the space that is missing
        raise


def link_or_copy(source: Path, path: Path, nbytes: int) -> None:
    """Give a file a second name, or copy it to another file system.

    Neither run writes to it again, and each removes its own name of it.
    """
    with explained(KEY, path, nbytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, path)
        except OSError:
            shutil.copyfile(source, path)


def versions_in(directory: Path) -> Iterator[tuple[Path, int, int]]:
    """List (file, client, number) of every version there is."""
    for path in directory.glob("[0-9]*/*-*.bin"):
        client, number = path.stem.split("-", maxsplit=1)
        if client.isdecimal() and number.isdecimal() and path == version_path(directory, int(client), int(number)):
            yield path, int(client), int(number)


def remove_versions(directory: Path, is_ours: Callable[[int], bool], kept: Container[tuple[int, int]] = ()) -> None:
    """Remove all versions of our clients but those `kept`, (client, number); other files stay."""
    for path, client, number in versions_in(directory):
        if is_ours(client) and (client, number) not in kept:
            path.unlink()


def sync(paths: Sequence[Path]) -> None:
    """Wait until version files and their names are on the disk."""
    if not paths:
        return
    folders = {path.parent for path in paths}
    with ThreadPoolExecutor(SYNCING) as pool:
        for step in (paths, folders, {folder.parent for folder in folders}):
            list(pool.map(_sync, step))


def _sync(path: Path) -> None:
    with explained(KEY, path):  # over a network a full disk is reported no earlier
        sync_path(path)
