"""Read clients' states from files, one for each version of each client's (`version_files.py`).

A version that a checkpoint names is never written to again; the next change is made in a copy, the next version. So
every complete checkpoint finds the bytes that it was written with, at whatever moment a run is killed.
"""

from __future__ import annotations

import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flare_dist.clients.version_files import KEY, link_or_copy, sync, version_path

ALIGNMENT = 16  # entries: each vector begins at a cache line, as those in memory do


class Version(NamedTuple):
    """Identify one version of a client's state."""

    number: int
    checksum: int  # CRC-32 of the file


@dataclass(frozen=True)
class FileLayout:
    """Place the vectors `names`, each float32 [total] or of its own of `sizes`, in a file: one after another."""

    names: tuple[str, ...]
    total: int
    sizes: Mapping[str, int] = field(default_factory=dict, hash=False)

    @property
    def _strides(self) -> list[int]:
        return [-(-self._size(name) // ALIGNMENT) * ALIGNMENT for name in self.names]

    def _size(self, name: str) -> int:
        return self.sizes.get(name, self.total)

    @property
    def nbytes(self) -> int:
        """Compute the length of a file."""
        return 4 * sum(self._strides)

    def map(self, path: Path, writable: bool) -> Tensor:
        """Map a whole file as float32 [entries], until the tensor is gone; changes reach the file if `writable`."""
        return torch.from_file(str(path), shared=writable, size=self.nbytes // 4, dtype=torch.float32)

    def vectors(self, mapped: Tensor) -> dict[str, Tensor]:
        """View the vectors of a mapped file by name."""
        return {name: own[: self._size(name)] for name, own in zip(self.names, mapped.split(self._strides))}


@dataclass(frozen=True)
class StoredStates(Mapping[int, dict[str, Tensor]]):
    """Map clients to their states in files; what is read is checked, and is the reader's own.

    Reading raises RuntimeError if a file is not what was written.
    """

    directory: Path
    layout: FileLayout
    versions: dict[int, Version]  # by client
    # (client, number) of versions that older checkpoints alone name, by the round whose checkpoint has newer ones
    superseded: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    @classmethod
    def of(cls, directory: Path, saved: Iterable[dict[str, Any]], is_ours: Callable[[int], bool]) -> StoredStates:
        """Join what one rank or several have `saved`, as far as the clients are ours."""
        layout = FileLayout((), 0)
        versions: dict[int, Version] = {}
        superseded: dict[int, list[tuple[int, int]]] = {}
        for part in saved:
            layout = FileLayout(tuple(part["names"]), part["total"], part.get("sizes", {}))
            versions |= {client: Version(*own) for client, own in part["versions"].items() if is_ours(client)}
            for round_, old in part["superseded"].items():
                superseded.setdefault(round_, []).extend(tuple(own) for own in old if is_ours(own[0]))
        return cls(directory, layout, versions, superseded)

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint holds of them, in plain containers."""
        versions = {client: tuple(version) for client, version in self.versions.items()}
        layout: dict[str, Any] = {"names": list(self.layout.names), "total": self.layout.total}
        if self.layout.sizes:
            layout["sizes"] = dict(self.layout.sizes)
        return layout | {"versions": versions, "superseded": self.superseded}

    def __getitem__(self, client: int) -> dict[str, Tensor]:
        return self.layout.vectors(self.check(client))

    def __iter__(self) -> Iterator[int]:
        return iter(self.versions)

    def __len__(self) -> int:
        return len(self.versions)

    def check(self, client: int) -> Tensor:
        """Map a client's file, and raise RuntimeError if it is not what was written."""
        path = self.path(client, self.versions[client].number)
        mapped = self.layout.map(path, writable=False)
        if checksum(mapped) != self.versions[client].checksum:
            raise RuntimeError(f"{KEY}: {path} is damaged: it does not have the checksum of its checkpoint")
        return mapped

    def path(self, client: int, number: int) -> Path:
        """Name the file of one version of a client's state."""
        return version_path(self.directory, client, number)

    def named(self) -> set[tuple[int, int]]:
        """List (client, number) of what the checkpoint of these states names, and the kept ones before it."""
        older = {own for old in self.superseded.values() for own in old}
        return older | {(client, version.number) for client, version in self.versions.items()}

    def problems(self) -> list[str]:
        """Describe the files that are missing or have another length, without reading them."""
        found = []
        for client, version in self.versions.items():
            path = self.path(client, version.number)
            try:
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):
                    found.append(f"{path} is not a file")
                elif status.st_size != self.layout.nbytes:
                    found.append(f"{path} has {status.st_size} bytes instead of {self.layout.nbytes}")
            except OSError as error:
                found.append(f"{path}: {error.strerror}")
        return found

    def copy_to(self, other: StoredStates) -> None:
        """Put the same versions into the directory of `other`: second names, or copies on another file system."""
        paths = []
        for client, version in self.versions.items():
            path = other.path(client, version.number)
            link_or_copy(self.path(client, version.number), path, self.layout.nbytes)
            paths.append(path)
        sync(paths)


def checksum(mapped: Tensor) -> int:
    """Compute the CRC-32 of a mapped file."""
    return zlib.crc32(mapped.numpy().data)
