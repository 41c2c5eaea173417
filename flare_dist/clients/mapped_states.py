"""Keep what clients remember between rounds in files, mapped while a client trains: more than fits into memory.

`FileStates` has the methods of `ClientStates` and keeps the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from flare_dist.clients.state import copy_by_name, on_device
from flare_dist.clients.version_files import create, remove_versions, sync
from flare_dist.clients.versions import FileLayout, StoredStates, Version, checksum


class FileStates:
    """Keep the states of the clients that live on this rank (`share`: rank, number of ranks) in files of `directory`.

    Not one vector stays in memory: what grows with the clients that took part is a version and a checksum of each.
    """

    def __init__(
        self,
        names: Sequence[str],
        total: int,
        device: torch.device,
        directory: Path,
        share: tuple[int, int] = (0, 1),
        sizes: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.names = names
        self.device = device
        self.share = share
        layout = FileLayout(tuple(names), total, dict(sizes))
        self.clients = StoredStates(directory, layout, {})  # reading one checks it
        self._changing: set[int] = set()  # clients whose version no checkpoint names yet
        self._unchecked: set[int] = set()  # clients whose version an earlier process wrote
        self._replaced: list[tuple[int, int]] = []  # versions that the last checkpoint names and the next one will not

    @contextmanager
    def lend(self, client: int) -> Iterator[dict[str, Tensor]]:
        """Lend a client's state on the training device; what is changed in it is kept where the state lives."""
        with self._changed(client) as home, on_device(home, self.device) as lent:
            yield lent

    def load(self, client: int, vectors: dict[str, Tensor]) -> None:
        """Take over a client's state from a checkpoint; a vector that the checkpoint does not hold starts at zero."""
        with self._changed(client) as home:
            copy_by_name(vectors, home)

    def take_over(self, saved: Mapping[int, dict[str, Tensor]]) -> None:
        """Begin with the states that a checkpoint holds; nothing else stays in the directory.

        What a killed process left there is removed. Another run's files stay as they are, whatever becomes of them
        here.
        """
        own = self.clients
        stored = saved if isinstance(saved, StoredStates) and saved.layout == own.layout else None
        is_here = stored is not None and stored.directory.resolve() == own.directory.resolve()
        kept = stored.named() if stored is not None and is_here else set()
        remove_versions(own.directory, lambda client: client % self.share[1] == self.share[0], kept)
        if stored is None:
            for client, vectors in saved.items():
                self.load(client, vectors)
            return
        own.versions.update(stored.versions)
        self._unchecked.update(stored.versions)
        if is_here:
            own.superseded.update(stored.superseded)
        else:
            stored.copy_to(own)

    def for_checkpoint(self, round_: int) -> dict[str, Any]:
        """Return what this rank's file of the checkpoint of `round_` holds; the files that it names are on the disk."""
        sync([self.clients.path(client, self.clients.versions[client].number) for client in sorted(self._changing)])
        self._changing.clear()
        if self._replaced:
            self.clients.superseded[round_] = self._replaced
            self._replaced = []
        return {"clients": {}, "slots": self.clients.saved()}  # the key that checkpoints have had from the first

    def release(self, oldest: int) -> None:
        """Remove the versions that no checkpoint names any more; the oldest checkpoint is that of round `oldest`."""
        superseded = self.clients.superseded
        for round_ in [round_ for round_ in superseded if round_ <= oldest]:
            for client, number in superseded.pop(round_):
                self.clients.path(client, number).unlink(missing_ok=True)

    @contextmanager
    def _changed(self, client: int) -> Iterator[dict[str, Tensor]]:
        """Map a client's vectors from the version that is to be written, and note its checksum afterwards."""
        number = self._writable(client)
        mapped = self.clients.layout.map(self.clients.path(client, number), writable=True)
        yield self.clients.layout.vectors(mapped)
        self.clients.versions[client] = Version(number, checksum(mapped))

    def _writable(self, client: int) -> int:
        """Return the number of a version that no checkpoint names; makes one if there is none yet."""
        before = self.clients.versions.get(client)
        if before and client in self._changing:
            return before.number
        number = 1
        content = None
        if before:
            number = before.number + 1
            content = self.clients.path(client, before.number)
            if client in self._unchecked:
                self.clients.check(client)
                self._unchecked.remove(client)
            self._replaced.append((client, before.number))
        create(self.clients.path(client, number), self.clients.layout.nbytes, content)
        self._changing.add(client)
        return number
