"""Checkpoints: damage is noticed, all ranks fall back together, and old sets are removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from flare_dist.config.config import CheckpointConfig
from flare_dist.models.config import ModelConfig
from tests.helpers.runs import assert_same_run, start, tiny


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes(content if how == "flipped" else content[: len(content) // 2])


@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_damaged_file_makes_all_ranks_fall_back(straight: Path, tmp_path: Path, how: str, rank: int) -> None:
    start(tiny(tmp_path), 2, kill_in_round=5)
    newest = tmp_path / "checkpoints" / "round-00000004" / f"rank-{rank:05d}.pt"
    newest.unlink() if how == "missing" else damage(newest, how)
    start(tiny(tmp_path), 2)
    assert_same_run(straight, tmp_path, wire=False)


def test_a_set_without_a_manifest_is_not_used(straight: Path, tmp_path: Path) -> None:
    start(tiny(tmp_path), kill_in_round=5)
    (tmp_path / "checkpoints" / "round-00000004" / "manifest.json").unlink()
    start(tiny(tmp_path))
    assert_same_run(straight, tmp_path)


def test_nothing_is_lost_silently_when_every_checkpoint_is_damaged(tmp_path: Path) -> None:
    start(tiny(tmp_path), kill_in_round=5)
    for path in tmp_path.glob("checkpoints/*/rank-00000.pt"):
        damage(path, "flipped")
    with pytest.raises(ValueError, match=r"checkpoint\.resume: no checkpoint in .* is whole"):
        start(tiny(tmp_path))


def test_files_of_an_unfinished_set_are_not_mixed_into_another(straight: Path, tmp_path: Path) -> None:
    """Two ranks were killed before the manifest of round 4; one rank then saves round 4 alone."""
    start(tiny(tmp_path), 2, kill_in_round=5)
    (tmp_path / "checkpoints" / "round-00000004" / "manifest.json").unlink()
    start(tiny(tmp_path), 1, kill_in_round=5)
    assert [path.name for path in (tmp_path / "checkpoints" / "round-00000004").glob("rank-*")] == ["rank-00000.pt"]
    start(tiny(tmp_path), 3)
    assert_same_run(straight, tmp_path, wire=False)


def test_all_checkpoints_but_the_last_two_are_removed(tmp_path: Path) -> None:
    start(tiny(tmp_path, checkpoint=CheckpointConfig(every=1, keep=3)))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


def test_another_model_is_refused(straight: Path, tmp_path: Path) -> None:
    other = tiny(tmp_path, model=ModelConfig(name="cnn"), checkpoint=CheckpointConfig(resume=str(straight)))
    with pytest.raises(ValueError, match=r"checkpoint\.resume: .* holds another model"):
        start(other)
