"""Locks on disks with flock and without: two holders never, a killed one only until its host's next process."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flare_dist.data import cache
from flare_dist.locks import HeldError, has_flock, held_path, take
from flare_dist.records import rundir

DIE_HOLDING = "import os, sys, filelock; lock = filelock.SoftFileLock(sys.argv[1]); lock.acquire(); os._exit(0)"


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def _no_flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk as Lustre without `-o flock`, or NFS without a lock daemon."""

    def flock(*arguments: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


def hold_as_another(path: Path) -> None:
    """Leave the lock as a process of another host has it."""
    held_path(path).write_text("123\nnode17\n")


def test_a_disk_with_flock_locks_by_it(tmp_path: Path) -> None:
    assert has_flock(tmp_path)
    with take(tmp_path / "lock"), pytest.raises(HeldError, match="wait for it to end"):
        take(tmp_path / "lock")
    assert not held_path(tmp_path / "lock").exists()


@pytest.mark.usefixtures("_no_flock")
def test_without_flock_two_processes_do_not_hold_one_lock(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock"
    holder = f"{held_path(path)}, of process {os.getpid()} on host {socket.gethostname()}"
    with take(path), pytest.raises(HeldError, match=holder):
        take(path)
    assert not held_path(path).exists()
    with take(path):
        pass


@pytest.mark.usefixtures("_no_flock")
def test_a_dead_holder_of_this_host_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    subprocess.run([sys.executable, "-c", DIE_HOLDING, str(held_path(path))], check=True)
    assert held_path(path).exists()
    with take(path):
        pass


@pytest.mark.usefixtures("_no_flock")
@pytest.mark.parametrize(
    ("claim", "key", "lock"),
    [
        (rundir.claim, "output_dir", rundir.LOCK),
        (lambda directory: rundir.take_lock("clients.state_dir", directory / "lock"), "clients.state_dir", "lock"),
    ],
)
def test_a_holder_of_another_host_is_named_with_what_to_do(
    tmp_path: Path, claim: Callable[[Path], object], key: str, lock: str
) -> None:
    hold_as_another(tmp_path / lock)
    held = held_path(tmp_path / lock)
    message = (
        f"^{key}: another run is writing to {tmp_path}; this disk has no flock, so the lock is {held}, of process "
    )
    with pytest.raises(ValueError, match=f"{message}123 on host node17; .* rm '{held}'$"):
        claim(tmp_path)
    held.unlink()
    claim(tmp_path)


@pytest.mark.usefixtures("_no_flock")
def test_who_waits_for_the_cache_says_for_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / cache.FOLDER).mkdir()
    hold_as_another(tmp_path / cache.FOLDER / "lock")
    held, attempts = held_path(tmp_path / cache.FOLDER / "lock"), []

    def take_at_last(path: Path, seconds: float) -> object:
        attempts.append(path)
        if len(attempts) == 3:
            held.unlink()
        return take(path)

    monkeypatch.setattr(cache, "take", take_at_last)
    with cache.locked(tmp_path) as folder:
        assert folder == tmp_path / cache.FOLDER
    (said,) = caplog.messages
    assert said.startswith("data.root: waiting for another process")
    assert f"rm '{held}'" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_no_holder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match=rf"^output_dir: cannot lock {tmp_path}"):
        rundir.claim(tmp_path)
