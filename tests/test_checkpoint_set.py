"""A checkpoint on the disk counts if its manifest is there, and says which of its files are damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from flare_dist.records.checkpoint_set import MANIFEST, complete_rounds, damage_in, digests_of, folder_of, load_set
from flare_dist.records.files import save_state, sha256

LAYOUT: list[list[object]] = [["weight", [2]]]


def write_set(directory: Path, round_: int, size: int = 2) -> Path:
    """Save a set of `size` ranks with one client each, as checkpoint.save does."""
    folder = folder_of(directory, round_)
    folder.mkdir(parents=True)
    digests = {}
    for rank in range(size):
        path = folder / f"rank-{rank:05d}.pt"
        clients = {rank: {"residual": torch.full((2,), float(rank))}}
        server = {"weights": torch.ones(2)} if rank == 0 else {}
        save_state(path, {"round": round_, "layout": LAYOUT, "server": server, "clients": clients})
        digests[path.name] = sha256(path).hex()
    (folder / MANIFEST).write_text(json.dumps({"round": round_, "sha256": digests}))
    return folder


def test_only_rounds_with_a_manifest_are_complete(tmp_path: Path) -> None:
    for round_ in (10, 2):
        write_set(tmp_path, round_)
    folder_of(tmp_path, 20).mkdir()
    (tmp_path / "round-old").mkdir()
    (tmp_path / "round-old" / MANIFEST).touch()
    assert complete_rounds(tmp_path) == [2, 10]
    assert complete_rounds(tmp_path / "nowhere") == []


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"round": 3, "sha256": {}}'])
def test_a_manifest_that_is_damaged_or_of_another_round_names_no_files(tmp_path: Path, content: str) -> None:
    folder = write_set(tmp_path, 2)
    assert set(digests_of(folder)) == {"rank-00000.pt", "rank-00001.pt"}
    (folder / MANIFEST).write_text(content)
    assert digests_of(folder) == {}


def test_files_that_are_missing_or_changed_are_named(tmp_path: Path) -> None:
    folder = write_set(tmp_path, 2)
    digests = digests_of(folder)
    assert damage_in(folder, digests, sorted(digests)) == []
    (folder / "rank-00000.pt").unlink()
    (folder / "rank-00001.pt").write_bytes(b"other")
    missing, changed = damage_in(folder, digests, sorted(digests))
    assert "rank-00000.pt: No such file" in missing
    assert changed.endswith("rank-00001.pt does not have the checksum of its manifest")


@pytest.mark.parametrize("size", [1, 2, 3])
def test_each_rank_reads_the_server_and_its_own_clients(tmp_path: Path, size: int) -> None:
    folder = write_set(tmp_path, 2)
    restored = [load_set(folder, LAYOUT, None, rank, size) for rank in range(size)]
    assert all(torch.equal(own.server["weights"], torch.ones(2)) for own in restored)
    assert [sorted(own.clients) for own in restored] == [[c for c in (0, 1) if c % size == r] for r in range(size)]
    with pytest.raises(ValueError, match=r"^checkpoint\.resume: .* holds another model than model\.name builds"):
        load_set(folder, [["weight", [3]]], None, 0, 1)
