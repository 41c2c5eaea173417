"""States in files do what ClientStates does, in versions that checkpoints can rely on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from flare_dist.clients.mapped_states import FileStates
from flare_dist.clients.version_files import version_path
from flare_dist.disk import DiskError
from tests.helpers.states import CPU, change, checkpoint, files, mapped_states


def test_memory_starts_at_zero_is_each_client_s_own_and_stays(tmp_path: Path) -> None:
    states = mapped_states(tmp_path)
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
    states = mapped_states(tmp_path)
    move = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda vector, device: move(vector, device, copy=True))
    for round_ in range(2):
        with states.lend(3) as lent:
            assert (lent["residual"] == round_).all()
            lent["residual"].add_(1.0)
    assert (states.clients[3]["residual"] == 2).all()


def test_what_a_checkpoint_names_is_not_written_to_again(tmp_path: Path) -> None:
    states = mapped_states(tmp_path)
    change(states, 3)
    first = checkpoint(states, 1)
    before = version_path(tmp_path, 3, 1).read_bytes()
    change(states, 3)
    change(states, 3)
    assert files(tmp_path) == ["3-1.bin", "3-2.bin"]  # changed in place until the next checkpoint
    assert version_path(tmp_path, 3, 1).read_bytes() == before
    assert (first[3]["residual"] == 1).all()
    assert (checkpoint(states, 2)[3]["residual"] == 3).all()


def test_versions_that_no_checkpoint_names_are_removed(tmp_path: Path) -> None:
    states = mapped_states(tmp_path)
    for round_ in (1, 2, 3):
        change(states, 3)
        if round_ == 1:
            change(states, 1003)  # takes part no more
        checkpoint(states, round_)
        states.release(max(1, round_ - 1))
    assert files(tmp_path) == ["1003-1.bin", "3-2.bin", "3-3.bin"]


def test_what_no_checkpoint_names_goes_when_a_run_resumes(tmp_path: Path) -> None:
    states = mapped_states(tmp_path)
    change(states, 3)
    checkpoint(states, 1)
    change(states, 3)
    stored = checkpoint(states, 2)
    change(states, 3)
    change(states, 7)
    other = tmp_path / "00000" / "notes-1.bin"
    other.touch()
    again = mapped_states(tmp_path)
    again.take_over(stored)
    assert files(tmp_path) == ["3-1.bin", "3-2.bin", "notes-1.bin"]  # the first one is for the checkpoint before
    assert (again.clients[3]["residual"] == 2).all()
    again.release(2)
    assert files(tmp_path) == ["3-2.bin", "notes-1.bin"]


def test_another_run_s_files_are_never_written_to(tmp_path: Path) -> None:
    states = mapped_states(tmp_path / "one")
    for client in (3, 4):
        change(states, client)
    stored = checkpoint(states, 1)
    before = version_path(tmp_path / "one", 3, 1).read_bytes()
    other = mapped_states(tmp_path / "other")
    other.take_over(stored)
    change(other, 3)
    checkpoint(other, 2)
    other.release(2)
    assert files(tmp_path / "other") == ["3-2.bin", "4-1.bin"]
    assert files(tmp_path / "one") == ["3-1.bin", "4-1.bin"]
    assert version_path(tmp_path / "one", 3, 1).read_bytes() == before
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
    states = mapped_states(tmp_path / "one", ("residual",))
    change(states, 3)
    other = mapped_states(tmp_path / "other", ("velocity", "residual"))
    other.take_over(checkpoint(states, 1))
    assert (other.clients[3]["residual"] == 1).all()
    assert not other.clients[3]["velocity"].any()


def resident() -> int:
    """Bytes of this process in memory, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_does_not_grow_with_clients(tmp_path: Path) -> None:
    """Forty megabytes are lent and given back; two of them at a time are mapped."""
    states = FileStates(("residual",), 500_000, CPU, tmp_path)
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
    states = FileStates(("residual",), 2**58, CPU, tmp_path)
    message = r"^clients\.state_dir: cannot write .*: (File too large|No space)"
    with pytest.raises(DiskError, match=message), states.lend(3):
        pass
    assert not list(tmp_path.glob("*/*"))
