"""Version files are named, listed, removed and written to the disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flare_dist.clients.version_files import remove_versions, version_path
from tests.helpers.states import change, files, mapped_states


def test_each_rank_looks_after_its_own_clients(tmp_path: Path) -> None:
    states = mapped_states(tmp_path)
    for client in range(4):
        change(states, client)
    remove_versions(tmp_path, lambda client: client % 2 == 1)
    assert files(tmp_path) == ["0-1.bin", "2-1.bin"]


def test_files_and_their_names_are_on_the_disk_before_a_checkpoint_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    states = mapped_states(tmp_path)
    for client in (3, 1003):
        change(states, client)
    states.for_checkpoint(1)
    paths = [version_path(tmp_path, client, 1) for client in (3, 1003)]
    assert sorted(synced[:2]) == [str(path) for path in paths]
    assert sorted(synced[2:4]) == [str(path.parent) for path in paths]
    assert synced[4:] == [str(tmp_path)]
    states.for_checkpoint(2)
    assert len(synced) == 5  # what has not changed is there already
