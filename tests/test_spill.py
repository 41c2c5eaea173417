"""Memory in files: what ClientStates does, and versions that checkpoints can rely on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from flare_dist.clients.slots import SlotFormat, Slots, remove_versions, slot_path
from flare_dist.clients.spill import SpilledStates
from flare_dist.disk import DiskError

CPU = torch.device("cpu")


def spilled(directory: Path, names: tuple[str, ...] = ("residual", "mask")) -> SpilledStates:
    return SpilledStates(names, 5, CPU, directory)


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*/*.bin"))


def checkpoint(states: SpilledStates, round_: int) -> Slots:
    """What one that resumes reads of the checkpoint of a round."""
    saved = states.for_checkpoint(round_)
    assert saved["clients"] == {}
    return Slots.of(states.clients.directory, [saved["slots"]], lambda client: True)


def change(states: SpilledStates, client: int, amount: float = 1.0) -> None:
    with states.lend(client) as lent:
        lent["residual"].add_(amount)


def test_memory_starts_at_zero_is_each_client_s_own_and_stays(tmp_path: Path) -> None:
    states = spilled(tmp_path)
    assert len(states.clients) == 0
    with states.lend(3) as lent:
        assert list(lent) == ["residual", "mask"]
        assert all(v.dtype == torch.float32 and v.shape == (5,) and not v.any() for v in lent.values())
        assert all(v.data_ptr() % 64 == 0 for v in lent.values())
        lent["residual"].fill_(1.0)
    with states.lend(4) as lent:
        assert not lent["residual"].any()
    with states.lend(3) as lent:
        assert (lent["residual"] == 1).all()
        assert not lent["mask"].any()
    assert sorted(states.clients) == [3, 4]


def test_changes_come_home_from_another_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = spilled(tmp_path)
    move = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda vector, device: move(vector, device, copy=True))
    for round_ in range(2):
        with states.lend(3) as lent:
            assert (lent["residual"] == round_).all()
            lent["residual"].add_(1.0)
    assert (states.clients[3]["residual"] == 2).all()


def test_what_a_checkpoint_names_is_not_written_to_again(tmp_path: Path) -> None:
    states = spilled(tmp_path)
    change(states, 3)
    first = checkpoint(states, 1)
    before = slot_path(tmp_path, 3, 1).read_bytes()
    change(states, 3)
    change(states, 3)
    assert files(tmp_path) == ["3-1.bin", "3-2.bin"]  # changed in place until the next checkpoint
    assert slot_path(tmp_path, 3, 1).read_bytes() == before
    assert (first[3]["residual"] == 1).all()
    assert (checkpoint(states, 2)[3]["residual"] == 3).all()


def test_versions_that_no_checkpoint_names_are_removed(tmp_path: Path) -> None:
    states = spilled(tmp_path)
    for round_ in (1, 2, 3):
        change(states, 3)
        if round_ == 1:
            change(states, 1003)  # takes part no more
        checkpoint(states, round_)
        states.release(max(1, round_ - 1))
    assert files(tmp_path) == ["1003-1.bin", "3-2.bin", "3-3.bin"]


def test_what_no_checkpoint_names_goes_when_a_run_resumes(tmp_path: Path) -> None:
    states = spilled(tmp_path)
    change(states, 3)
    checkpoint(states, 1)
    change(states, 3)
    slots = checkpoint(states, 2)
    change(states, 3)
    change(states, 7)
    other = tmp_path / "00000" / "notes-1.bin"
    other.touch()
    again = spilled(tmp_path)
    again.take_over(slots)
    assert files(tmp_path) == ["3-1.bin", "3-2.bin", "notes-1.bin"]  # the first one is for the checkpoint before
    assert (again.clients[3]["residual"] == 2).all()
    again.release(2)
    assert files(tmp_path) == ["3-2.bin", "notes-1.bin"]


def test_each_rank_looks_after_its_own_clients(tmp_path: Path) -> None:
    states = spilled(tmp_path)
    for client in range(4):
        change(states, client)
    remove_versions(tmp_path, lambda client: client % 2 == 1)
    assert files(tmp_path) == ["0-1.bin", "2-1.bin"]


def test_another_run_s_files_are_never_written_to(tmp_path: Path) -> None:
    states = spilled(tmp_path / "one")
    for client in (3, 4):
        change(states, client)
    slots = checkpoint(states, 1)
    before = slot_path(tmp_path / "one", 3, 1).read_bytes()
    other = spilled(tmp_path / "other")
    other.take_over(slots)
    change(other, 3)
    checkpoint(other, 2)
    other.release(2)
    assert files(tmp_path / "other") == ["3-2.bin", "4-1.bin"]
    assert files(tmp_path / "one") == ["3-1.bin", "4-1.bin"]
    assert slot_path(tmp_path / "one", 3, 1).read_bytes() == before
    for path in (tmp_path / "one").glob("*/*.bin"):
        path.unlink()
    change(other, 4)
    assert (other.clients[4]["residual"] == 2).all()


def test_another_run_s_files_are_copied_from_another_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: Path) -> None:
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    test_another_run_s_files_are_never_written_to(tmp_path)


def test_another_rule_s_memory_is_read_and_written_anew(tmp_path: Path) -> None:
    states = spilled(tmp_path / "one", ("residual",))
    change(states, 3)
    other = spilled(tmp_path / "other", ("velocity", "residual"))
    other.take_over(checkpoint(states, 1))
    assert (other.clients[3]["residual"] == 1).all()
    assert not other.clients[3]["velocity"].any()


@pytest.mark.parametrize("how", ["missing", "cut"])
def test_files_that_are_not_whole_are_found_without_reading(tmp_path: Path, how: str) -> None:
    states = spilled(tmp_path)
    change(states, 3)
    slots = checkpoint(states, 1)
    assert slots.problems() == []
    path = slot_path(tmp_path, 3, 1)
    path.unlink() if how == "missing" else path.write_bytes(path.read_bytes()[:-1])
    (problem,) = slots.problems()
    assert str(path) in problem


def test_a_flipped_bit_is_found_when_its_client_takes_part(tmp_path: Path) -> None:
    states = spilled(tmp_path)
    change(states, 3)
    change(states, 4)
    slots = checkpoint(states, 1)
    path = slot_path(tmp_path, 3, 1)
    content = bytearray(path.read_bytes())
    content[17] ^= 1
    path.write_bytes(content)
    again = spilled(tmp_path)
    again.take_over(slots)
    change(again, 4)
    with pytest.raises(RuntimeError, match=rf"clients\.state_dir: {path} is damaged"):
        change(again, 3)


def test_files_and_their_names_are_on_the_disk_before_a_checkpoint_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    states = spilled(tmp_path)
    for client in (3, 1003):
        change(states, client)
    states.for_checkpoint(1)
    paths = [slot_path(tmp_path, client, 1) for client in (3, 1003)]
    assert sorted(synced[:2]) == [str(path) for path in paths]
    assert sorted(synced[2:4]) == [str(path.parent) for path in paths]
    assert synced[4:] == [str(tmp_path)]
    states.for_checkpoint(2)
    assert len(synced) == 5  # what has not changed is there already


def resident() -> int:
    """Bytes of this process in memory, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_does_not_grow_with_clients(tmp_path: Path) -> None:
    """Forty megabytes are lent and given back; two of them at a time are mapped."""
    states = SpilledStates(("residual",), 500_000, CPU, tmp_path)
    change(states, 0)
    before = resident()
    for client in range(20):
        change(states, client)
    checkpoint(states, 1)
    for client in range(20):
        change(states, client)
    assert resident() - before < 10 * 2**20


def test_a_full_disk_is_an_error_before_a_client_trains(tmp_path: Path) -> None:
    """In a mapped file it would end the process without a word."""
    states = SpilledStates(("residual",), 2**58, CPU, tmp_path)
    message = r"^clients\.state_dir: cannot write .*: (File too large|No space)"
    with pytest.raises(DiskError, match=message), states.lend(3):
        pass
    assert not list(tmp_path.glob("*/*"))


def test_vectors_begin_at_cache_lines_and_fill_their_file(tmp_path: Path) -> None:
    layout = SlotFormat(("residual", "mask"), 17)
    assert layout.nbytes == 2 * 4 * 32
    (tmp_path / "file").write_bytes(bytes(layout.nbytes))
    vectors = layout.vectors(layout.map(tmp_path / "file", writable=False))
    assert [(name, vector.shape) for name, vector in vectors.items()] == [("residual", (17,)), ("mask", (17,))]
