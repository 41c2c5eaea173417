"""A disk that takes no more ends a run with one line on every rank, and the run goes on once there is room."""

from __future__ import annotations

import errno
import io
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from flare_dist import cli
from flare_dist.clients.slots import create
from flare_dist.comm.world import World
from flare_dist.config.config import Config
from flare_dist.disk import DiskError, explained
from flare_dist.records import files
from flare_dist.records.files import on_all_ranks, save_model, save_state, write_text
from flare_dist.records.tracking import METRICS, EventWriter, Tracker
from tests.ranks import run_ranks
from tests.test_trainer import _start, assert_same_run, start, straight, tiny  # noqa: F401  (straight is a fixture)


def fill(path: Path) -> None:
    """Let the next write to `path` meet a full disk."""
    path.with_name(f".{path.name}.{os.getpid()}.tmp").symlink_to("/dev/full")


@contextmanager
def no_file_longer_than(nbytes: int) -> Iterator[None]:
    """A limit of this process, which a write meets as it would a full disk, but with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_is_told_with_what_is_needed_and_what_is_there(tmp_path: Path, code: int) -> None:
    with (
        pytest.raises(DiskError, match=rf"^output_dir: cannot write {tmp_path}/a: .* \(it needs 1,024 bytes, "
                                       r"[\d,]+ of [\d,]+ bytes are free\); make room, and the same command"),
        explained("output_dir", tmp_path / "a", 1024),
    ):  # fmt: skip
        raise OSError(code, os.strerror(code))


def test_a_disk_that_was_taken_away_is_told_in_its_words(tmp_path: Path) -> None:
    with (
        pytest.raises(DiskError, match=r"^output_dir: cannot write .*: Read-only file system; the same command"),
        explained("output_dir", tmp_path / "a"),
    ):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("write", "needed"),
    [
        (lambda path: save_state(path, {"a": [torch.zeros(5000)], "b": 1}), "20,000"),
        (lambda path: save_model(path, {"a": torch.zeros(5000)}), "20,0.."),
        (lambda path: write_text(path, "x" * 20_000), "20,000"),
    ],
)
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, write: Any, needed: str) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    fill(path)
    with pytest.raises(DiskError, match=rf"cannot write {path}: No space left on device \(it needs {needed} bytes"):
        write(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_logs_end_with_one_error_and_without_a_thread(tmp_path: Path) -> None:
    row = {"round": 0, "test_loss": 1.0}

    def write_until_full() -> None:
        with Tracker(tmp_path, [], 3, Console(file=io.StringIO())) as tracker, no_file_longer_than(300):
            for _ in range(100):
                tracker.write(row)

    before = threading.active_count()
    with pytest.raises(DiskError, match=rf"^output_dir: cannot write {tmp_path / METRICS}: File too large"):
        write_until_full()
    assert threading.active_count() == before


def test_an_event_file_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    events = EventWriter(tmp_path)
    for step in range(100):
        events.add_scalar("loss/train", 1.0, step, 0.0)
    for end in (events.flush, events.close):
        with no_file_longer_than(100), pytest.raises(OSError, match="File too large"):
            end()


def test_half_a_state_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "00000" / "1-1.bin"
    with no_file_longer_than(1000), pytest.raises(DiskError, match=rf"^clients\.state_dir: cannot write {path}: "):
        create(path, 4096, None)
    assert not path.exists()


def fail_on_rank_1(world: World) -> str:
    try:
        with on_all_ranks(world):
            if world.rank == 1:
                raise DiskError("output_dir: cannot write /scratch/größe: no")
    except DiskError as error:
        return str(error)
    return ""


def test_every_rank_hears_of_it() -> None:
    assert run_ranks(fail_on_rank_1, 2) == ["output_dir: cannot write /scratch/größe: no"] * 2


def start_on_a_filling_disk(world: World, config: Config) -> str:
    """What a rank says whose second checkpoint does not fit, on rank 1 alone."""
    saves, real_save = [], torch.save

    def save(state: Any, file: Any) -> None:
        saves.append(state)
        real_save(state, file)
        if world.rank == 1 and len(saves) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.torch, "save", save)
        try:
            _start(world, config, None)
        except DiskError as error:
            return str(error)
    return ""


def test_a_run_that_filled_its_disk_goes_on_bitwise(straight: Path, tmp_path: Path) -> None:  # noqa: F811
    one, other = run_ranks(start_on_a_filling_disk, 2, tiny(tmp_path))
    assert one == other
    assert one.startswith(
        f"output_dir: cannot write {tmp_path}/checkpoints/round-00000004/rank-00001.pt: No space left"
    )
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["round-00000002"]
    start(tiny(tmp_path), 2)
    assert_same_run(straight, tmp_path, wire=False)


def test_the_command_line_says_it_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*arguments: object) -> None:
        raise DiskError("output_dir: cannot write a: No space left on device")

    monkeypatch.setattr(cli.training, "train", train)
    assert cli.main(["train", "--config", "configs/smoke.yaml", "--output_dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: output_dir: cannot write a: No space left on device"
