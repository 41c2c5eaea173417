"""A disk that takes no more ends a run with one line on every rank, and the run goes on once there is room."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from flare_dist import cli
from flare_dist.clients.version_files import create
from flare_dist.comm.world import World
from flare_dist.config.config import Config
from flare_dist.disk import DiskError, explained
from flare_dist.errors import ReportedError
from flare_dist.records import files
from tests.helpers.disks import no_file_longer_than
from tests.helpers.runs import assert_same_run, start, start_rank, tiny
from tests.ranks import run_ranks


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


def test_half_a_state_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "00000" / "1-1.bin"
    with no_file_longer_than(1000), pytest.raises(DiskError, match=rf"^clients\.state_dir: cannot write {path}: "):
        create(path, 4096, None)
    assert not path.exists()


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
            start_rank(world, config, None)
        except ReportedError as error:
            return str(error)
    return ""


def test_a_run_that_filled_its_disk_goes_on_bitwise(straight: Path, tmp_path: Path) -> None:
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
