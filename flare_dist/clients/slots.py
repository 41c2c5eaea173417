"""The files of a state directory, in which clients' memory is kept: one for each version of each client's.

    STATE_DIR/00012/12345-7.bin   version 7 of what client 12345 remembers: its vectors in float32, one after another

A version that a checkpoint names is never written to again; the next change is made in a copy, the next version. So
every complete checkpoint finds the bytes that it was written with, at whatever moment a run is killed.
"""

from __future__ import annotations

import os
import shutil
import stat
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flare_dist.disk import DiskError, explained

KEY = "clients.state_dir"
FOLDER_CLIENTS = 1000  # in one folder: directories with a hundred thousand files are slow to list
ALIGNMENT = 16  # entries: each vector begins at a cache line, as those in memory do
SYNCING = 16  # threads; a file system writes what several of them wait for at once


class Version(NamedTuple):
    """One version of a client's memory."""

    number: int
    checksum: int  # CRC-32 of the file


@dataclass(frozen=True)
class SlotFormat:
    """Where the vectors `names`, each float32 [total], lie in a file."""

    names: tuple[str, ...]
    total: int

    @property
    def _stride(self) -> int:
        return -(-self.total // ALIGNMENT) * ALIGNMENT

    @property
    def nbytes(self) -> int:
        """The length of a file."""
        return 4 * self._stride * len(self.names)

    def map(self, path: Path, writable: bool) -> Tensor:
        """The whole file as float32 [entries], mapped until the tensor is gone; changes are kept where `writable`."""
        return torch.from_file(str(path), shared=writable, size=self.nbytes // 4, dtype=torch.float32)

    def vectors(self, mapped: Tensor) -> dict[str, Tensor]:
        """Views of the vectors by name."""
        return {name: own[: self.total] for name, own in zip(self.names, mapped.split(self._stride))}


@dataclass(frozen=True)
class Slots(Mapping[int, dict[str, Tensor]]):
    """The memory of clients as files hold it, by client; what is read is checked, and is the reader's own.

    Reading raises RuntimeError where a file is not what was written.
    """

    directory: Path
    format: SlotFormat
    versions: dict[int, Version]  # by client
    # (client, number) of versions that older checkpoints alone name, by the round whose checkpoint has newer ones
    superseded: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    @classmethod
    def of(cls, directory: Path, saved: Iterable[dict[str, Any]], is_ours: Callable[[int], bool]) -> Slots:
        """What one rank or several have `saved`, as far as the clients are ours."""
        layout = SlotFormat((), 0)
        versions: dict[int, Version] = {}
        superseded: dict[int, list[tuple[int, int]]] = {}
        for part in saved:
            layout = SlotFormat(tuple(part["names"]), part["total"])
            versions |= {client: Version(*own) for client, own in part["versions"].items() if is_ours(client)}
            for round_, old in part["superseded"].items():
                superseded.setdefault(round_, []).extend(tuple(own) for own in old if is_ours(own[0]))
        return cls(directory, layout, versions, superseded)

    def saved(self) -> dict[str, Any]:
        """What a checkpoint holds of them, in plain containers."""
        versions = {client: tuple(version) for client, version in self.versions.items()}
        layout = {"names": list(self.format.names), "total": self.format.total}
        return layout | {"versions": versions, "superseded": self.superseded}

    def __getitem__(self, client: int) -> dict[str, Tensor]:
        return self.format.vectors(self.check(client))

    def check(self, client: int) -> Tensor:
        """A client's file, mapped, once it was seen to be what was written."""
        path = self.path(client, self.versions[client].number)
        mapped = self.format.map(path, writable=False)
        if checksum(mapped) != self.versions[client].checksum:
            raise RuntimeError(f"clients.state_dir: {path} is damaged: it does not have the checksum of its checkpoint")
        return mapped

    def __iter__(self) -> Iterator[int]:
        return iter(self.versions)

    def __len__(self) -> int:
        return len(self.versions)

    def path(self, client: int, number: int) -> Path:
        return slot_path(self.directory, client, number)

    def problems(self) -> list[str]:
        """Which files are missing or have another length, without reading them."""
        found = []
        for client, version in self.versions.items():
            path = self.path(client, version.number)
            try:
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):
                    found.append(f"{path} is not a file")
                elif status.st_size != self.format.nbytes:
                    found.append(f"{path} has {status.st_size} bytes instead of {self.format.nbytes}")
            except OSError as error:
                found.append(f"{path}: {error.strerror}")
        return found

    def bring_to(self, other: Slots) -> None:
        """The same versions in the directory of `other`: a second name, or a copy on another file system."""
        for client, version in self.versions.items():
            source, path = self.path(client, version.number), other.path(client, version.number)
            with explained(KEY, path, self.format.nbytes):
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(source, path)  # neither run writes to it again, and each removes its own name of it
                except OSError:
                    shutil.copyfile(source, path)
        sync([other.path(client, version.number) for client, version in self.versions.items()])


def checksum(mapped: Tensor) -> int:
    return zlib.crc32(mapped.numpy().data)


def create(path: Path, nbytes: int, content: Path | None) -> None:
    """A new file of zeros, or with the same content as another; raises DiskError if the disk does not take it."""
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


def slot_path(directory: Path, client: int, number: int) -> Path:
    return directory / f"{client // FOLDER_CLIENTS:05d}" / f"{client}-{number}.bin"


def remove_versions(directory: Path, is_ours: Callable[[int], bool], kept: Container[tuple[int, int]] = ()) -> None:
    """Remove all versions of our clients but those `kept`, (client, number); other files stay."""
    for path, client, number in versions_in(directory):
        if is_ours(client) and (client, number) not in kept:
            path.unlink()


def versions_in(directory: Path) -> Iterator[tuple[Path, int, int]]:
    """(file, client, number) of every version there is."""
    for path in directory.glob("[0-9]*/*-*.bin"):
        client, number = path.stem.split("-", maxsplit=1)
        if client.isdecimal() and number.isdecimal() and path == slot_path(directory, int(client), int(number)):
            yield path, int(client), int(number)


def sync(paths: Sequence[Path]) -> None:
    """Wait until files and their names are on the disk."""
    if not paths:
        return
    folders = {path.parent for path in paths}
    with ThreadPoolExecutor(SYNCING) as pool:
        for step in (paths, folders, {folder.parent for folder in folders}):
            list(pool.map(_sync_state, step))


def _sync_state(path: Path) -> None:
    with explained(KEY, path):  # over a network a full disk is told no earlier
        sync_path(path)


def sync_path(path: Path) -> None:
    """fsync a file or a directory, whose entry for a renamed file must survive as well."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
