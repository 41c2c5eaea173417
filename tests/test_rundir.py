"""A run directory holds one run: nothing in it is overwritten or shared by mistake."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flare_dist.comm.world import World
from flare_dist.config.config import CheckpointConfig
from flare_dist.records import rundir
from tests.helpers.runs import assert_same_run, start, start_rank, tiny
from tests.ranks import run_ranks


def test_a_finished_run_without_checkpoints_is_not_overwritten(straight: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(straight, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints")
    config = (copy / "config.yaml").read_text().replace(str(straight), str(copy))
    (copy / "config.yaml").write_text(config)
    before = (copy / "model.safetensors").stat().st_mtime_ns
    start(tiny(copy))
    assert (copy / "model.safetensors").stat().st_mtime_ns == before


def test_files_of_others_are_not_removed(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("somebody's own")
    with pytest.raises(ValueError, match=r"output_dir: .* holds config.yaml of something that is not a run"):
        start(tiny(tmp_path))
    assert (tmp_path / "config.yaml").read_text() == "somebody's own"


def test_a_run_killed_before_its_first_round_is_started_anew(tmp_path: Path) -> None:
    with rundir.claim(tmp_path):
        rundir.write_config(tmp_path, tiny(tmp_path))
    start(tiny(tmp_path))
    assert (tmp_path / "summary.json").exists()


def test_two_runs_in_one_directory_are_refused(tmp_path: Path) -> None:
    with rundir.claim(tmp_path), pytest.raises(ValueError, match=r"output_dir: another run is writing"):
        start(tiny(tmp_path))
    start(tiny(tmp_path))


def test_a_run_that_came_in_between_is_not_overwritten(straight: Path, tmp_path: Path) -> None:
    """It started and ended while this one was still reading its data."""
    copy = shutil.copytree(straight, tmp_path / "copy")
    with pytest.raises(ValueError, match=r"output_dir: another run has written to .* while this one was starting"):
        rundir.claim(copy, held=False)
    with rundir.claim(copy, held=True):
        pass


def test_resume_never_starts_over_and_keeps_the_files_of_the_user(straight: Path, tmp_path: Path) -> None:
    start(tiny(tmp_path, seed=1))
    (tmp_path / "notes.txt").write_text("the user's own")
    start(tiny(tmp_path, checkpoint=CheckpointConfig(every=2, resume="never")))
    assert_same_run(straight, tmp_path)
    assert (tmp_path / "notes.txt").exists()


def start_in_own_directory(world: World, root: Path) -> str:
    """A run whose ranks are given different directories, as on nodes without a shared disk."""
    (root / str(world.rank)).mkdir()
    with pytest.raises(ValueError, match="output_dir") as caught:
        start_rank(world, tiny(root / str(world.rank)))
    return str(caught.value)


def test_nodes_without_a_shared_directory_are_refused(tmp_path: Path) -> None:
    messages = run_ranks(start_in_own_directory, 2, tmp_path)
    assert all("is not shared by all nodes" in message for message in messages)
