"""Files are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from flare_dist.disk import DiskError
from flare_dist.records.files import replacing, save_model, save_state, sha256, write_text
from tests.helpers.disks import fill


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        events.append("sync " + ("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file"))
        real_fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        events.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_text(tmp_path / "file", "content")
    assert events == ["sync file", "rename", "sync folder"]


def test_a_flipped_bit_changes_the_checksum(tmp_path: Path) -> None:
    save_state(tmp_path / "state", {"clients": {3: {"residual": torch.arange(5.0)}}})
    before = sha256(tmp_path / "state")
    content = bytearray((tmp_path / "state").read_bytes())
    content[200] ^= 1
    (tmp_path / "state").write_bytes(content)
    assert sha256(tmp_path / "state") != before


def test_saved_models_are_readable_by_others(tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", torch.nn.Linear(2, 2).state_dict())
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o444 == 0o444


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_model_with_texts_in_its_header_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    """The library alone writes them in another order each time."""
    tensors = {"w": torch.arange(3.0), "a": torch.tensor(True)}
    texts = {"format": "pt", "classes": '["Möwe", "a\\"b"]', "mean": "[0.1]", "std": "[0.2]", "groups": "[]"}
    for name in "abcd":
        save_model(tmp_path / name, tensors, texts)
    contents = {(tmp_path / name).read_bytes() for name in "abcd"}
    assert len(contents) == 1
    with safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata() == texts
        assert torch.equal(file.get_tensor("w"), tensors["w"])
        assert file.get_tensor("a").item() is True
    save_model(tmp_path / "e", tensors)
    assert (tmp_path / "e").read_bytes() == save(tensors)


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
